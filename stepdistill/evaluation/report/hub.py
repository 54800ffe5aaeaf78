"""Results in the hub's own form, `.eval_results/*.yaml`: a benchmark's score that a model's page
shows. Written where a suite names the benchmark, with the headline's first metric, a file for each
source; to publish one, lay it into the folder of that name in the model's repository.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from ...files import write_whole
from ..metric import Metric
from ..numerals import span
from ..protocol import Procedure
from ..rows import STUDENT, Row
from ..suite import Dataset, Suite
from .table import steps_text

FOLDER = ".eval_results"


def write_results(out: Path, rows: Sequence[Row], suite: Suite, procedure: Procedure) -> None:
    """Write them below `out`; nothing where the suite names no benchmark."""
    if suite.settings is None or suite.settings.dataset is None:
        return
    metric = suite.compared[0]
    sources: dict[str, list[EvalResultEntry]] = {}
    for row in rows:
        if row.model == STUDENT and metric.name in row.scores:
            entry = entry_of(
                row, metric, suite.settings.dataset, said(row, metric, suite, procedure)
            )
            sources.setdefault(row.source, []).append(entry)
    (out / FOLDER).mkdir(exist_ok=True)
    for number, (source, entries) in enumerate(sources.items()):
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
        name = re.sub(r"[^\w.-]+", "-", Path(source).name).lstrip(".-")
        write_whole(out / FOLDER / f"{suite.name}-{number}-{name}.yaml", text)


def entry_of(row: Row, metric: Metric, dataset: Dataset, notes: str) -> EvalResultEntry:
    """A row's score."""
    value = row.value(metric.name)
    return EvalResultEntry(dataset_id=dataset.id, task_id=dataset.task, value=value, notes=notes)


def said(row: Row, metric: Metric, suite: Suite, procedure: Procedure) -> str:
    """What a reader must know beside the value."""
    parts = [metric.title, f"suite {suite.name}", f"n = {row.n:,}", f"seed {procedure.seed}"]
    parts += [steps_text(row.steps), f"{row.nfe} NFE"] if row.steps else []
    departs = [] if suite.settings is None else procedure.departures(suite.settings)
    score = row.scores[metric.name]
    if score.low is not None and score.high is not None:  # as the value is, and not as in a table
        parts.append(f"95 % interval {span(score.low, score.high)}")
    return "; ".join([*parts, *departs])
