"""Whole jobs from Python, cut short: a table teacher, and adapters through five stages.

`smoke` is the job of test_cli, two runs in one table that of test_compare.
"""

from pathlib import Path

import pytest
from rehearse import short

import stepdistill
from stepdistill.export.export import TOLERANCE

pytestmark = [pytest.mark.xdist_group("caller"), pytest.mark.usefixtures("warm")]


@pytest.mark.parametrize("name", ["digits-dmd2-vp", "digits-tscd", "digits-agd"])
def test_a_whole_job(name: str, tmp_path: Path):
    run = short(stepdistill.read(name))
    result = stepdistill.distill(run, tmp_path)
    scored = {row.steps for row in result.rows if row.model == "student"}
    assert scored == set(run.evaluation.steps)
    assert result.difference <= TOLERANCE
    for made in ("results.json", "report.md", "report.html", "student/model_index.json"):
        assert (tmp_path / name / made).stat().st_size > 0, made
