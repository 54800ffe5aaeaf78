"""`stepdistill compare A B …`: trains shipped or own configs, scores all in one table, and says
what each cost.
"""

from pathlib import Path

from rich.console import Console

from ..evaluation.rows import Row
from ..runs.config import RunConfig, guidance_of, modules_of
from ..runs.costs import RunCost
from ..runs.folder import RunFolder
from ..runs.log import seconds_of
from ..schema import ConfigError
from ..training.trainer import TrainingFailed
from .distill import train_run
from .evaluate import score
from .sources import Against, Opening
from .suites import require_suite


def compare(
    wanted: list[RunConfig], runs: Path, out: Path, size: tuple[int, int], console: Console
) -> list[Row]:
    """Train each run below `runs`, or go on with it, then score all students as `score` does.

    What a folder already holds is not trained again. Raises ConfigError, before anything is
    written, for runs that cannot be trained or do not fit in one table, and TrainingFailed, at the
    end, if some could not be trained to theirs."""
    against = require_comparable(wanted, runs)
    for run in wanted:
        require_suite(run)
    costs = train_all(wanted, runs, console)
    opening = Opening(trusted=modules_named(wanted))
    scored = score([runs / name for name in costs], against, out, size, opening, console, costs)
    require_all(wanted, costs, out)
    return scored.rows


def require_comparable(wanted: list[RunConfig], runs: Path) -> Against:
    """Their suite and its reference. Raises ConfigError for names, suites, teachers or folders
    that forbid a comparison."""
    names = [run.name for run in wanted]
    if len(set(names)) < len(names):
        raise ConfigError(f"compare: {', '.join(names)}: names one run twice")
    suites = {(run.evaluation.suite, run.evaluation.reference) for run in wanted}
    if len(suites) > 1:
        named = sorted(" of ".join(filter(None, each)) for each in suites)
        raise ConfigError(f"compare: one suite a table, got {', '.join(named)}")
    scored = [run for run in wanted if run.evaluation.teacher_steps and run.teacher is not None]
    teachers = {f"{run.teacher}, {guidance_of(run)}" for run in scored}
    if len(teachers) > 1:
        raise ConfigError(f"compare: one teacher a table, got {'; '.join(sorted(teachers))}")
    for run in wanted:
        folder = RunFolder(runs / run.name)
        if folder.is_run:
            folder.open(run)
    return Against(*suites.pop())


def modules_named(wanted: list[RunConfig]) -> tuple[str, ...]:
    """The modules of configs of one's own, which their runs' folders may name."""
    return tuple({name for run in wanted for _, _, name in modules_of(run)})


def train_all(wanted: list[RunConfig], runs: Path, console: Console) -> dict[str, str]:
    """Train every run to its end; what each cost, by name, without those whose training failed.

    Raises TrainingFailed if all did."""
    costs, failed = {}, None
    for run in wanted:
        try:
            stages = train_run(run, runs / run.name, console)
        except TrainingFailed as error:
            console.print(f"{run.name}: {error}", markup=False)
            failed = error
            continue
        seconds = seconds_of(stages.folder.log)
        costs[run.name] = str(RunCost.of(stages.setup, seconds))
        stages.setup.accelerator.end_training()
    if failed is not None and not costs:
        raise failed
    return costs


def require_all(wanted: list[RunConfig], costs: dict[str, str], out: Path) -> None:
    """Raise TrainingFailed if a run has no cost, for it was not trained to its end."""
    missing = [run.name for run in wanted if run.name not in costs]
    if missing:
        raise TrainingFailed(f"{', '.join(missing)}: not trained; {out} has the others")
