"""Published directions about DMD2, measured on the digits teacher: seen here, or not seen.

    python eval/claims.py eval/results/claims 5

For every seed one consistency student is trained; each variant of DMD2 goes on from it, except the
cold one, which starts from the teacher and gets the consistency stage's network passes as further
updates. Every row is appended to rows.jsonl as it is made, so that a stopped run goes on; the table
README.md shows, for each claim, the mean difference over seeds and its 95 % interval (paired,
Student's t). Batches of 64; Fréchet distances at n = 2 × 1,000, one step.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from scipy import stats
from torch import Tensor

from stepdistill.evaluation.evaluate import evaluate
from stepdistill.evaluation.suite import Suite
from stepdistill.evaluation.suites.digits import KIND
from stepdistill.files import whole_lines, write_whole
from stepdistill.jobs.samplers import of_student
from stepdistill.jobs.suites import load
from stepdistill.runs.config import RunConfig, read
from stepdistill.runs.stages import Stages

WARM, UPDATES = 800, 100  # student updates of the consistency stage and of DMD2
BATCH = 64
SPACES = ("domain_cnn", "random_conv")
VARIANTS = {
    "baseline": (),
    "no GAN": ("stages.1.settings.gan=0", "stages.1.settings.gan_critic=0"),
    "ratio 1": ("stages.1.settings.ratio=1",),
    "ratio 10": ("stages.1.settings.ratio=10",),
}
COLD, START = "cold start", "consistency alone"
# (claim, variant said to be better, variant said to be worse)
CLAIMS = (
    ("a GAN term helps", "baseline", "no GAN"),
    ("several critic turns to one of the student's help (5 against 1)", "baseline", "ratio 1"),
    ("more critic turns help (10 against 5)", "ratio 10", "baseline"),
    ("a warm start helps, at equal network passes", "baseline", COLD),
    ("DMD2 improves a consistency student", "baseline", START),
)


@dataclass(frozen=True)
class Row:
    """One trained student's distances."""

    variant: str
    seed: int
    domain_cnn: float
    random_conv: float


def settings(seed: int, overrides: tuple[str, ...] = ()) -> RunConfig:
    return read("digits-dmd2", (f"seed={seed}", *stage(0, WARM), *stage(1, UPDATES), *overrides))


def stage(i: int, updates: int) -> tuple[str, str]:
    key = f"stages.{i}.training"
    return f"{key}.updates={updates}", f"{key}.batch={BATCH}"


def train(session: Stages) -> None:
    while not session.trainer.done:
        session.trainer.step()


def score(session: Stages, suite: Suite, variant: str) -> Row:
    run = session.setup.run
    student = of_student("student", session.student(), run.sampler, 1, session.teacher)
    row, _ = evaluate([student], suite, 1000, 2, 5000)
    return Row(variant, run.seed, *(row.value(metric) for metric in suite.headline))


def cold(seed: int) -> Stages:
    """DMD2 from the teacher, with the passes of both stages."""
    both = settings(seed)
    first, second = (s.build().passes(both.sampler).work(1) for s in both.stages)
    updates = UPDATES + round(WARM * first / second)
    run = settings(seed, stage(1, updates))
    session = Stages.of(run, Path("."), Accelerator(cpu=True))
    session.next_stage()
    return session


def rows_of(seed: int, suite: Suite, done: set[str]) -> Iterator[Row]:
    """The rows of one seed that are not done yet, one at a time."""
    wanted = [name for name in (START, *VARIANTS, COLD) if name not in done]
    start: dict[str, Tensor] | None = None
    for name in wanted:
        if name == COLD:
            session = cold(seed)
        else:
            run = settings(seed, VARIANTS.get(name, ()))
            session = Stages.of(run, Path("."), Accelerator(cpu=True))
            if start is None:
                train(session)
                start = session.trainer.averaged()
            if name != START:
                session.next_stage(start)
        train(session)
        yield score(session, suite, name)


def table(rows: list[Row]) -> str:
    """The claims, seen or not."""
    found = {(row.variant, row.seed): row for row in rows}
    seeds = sorted({row.seed for row in rows})
    lines = [__doc__, f"\n{len(seeds)} seeds.\n", "| students | domain-cnn | random-conv |"]
    lines.append("|---|---:|---:|")
    for variant in (START, *VARIANTS, COLD):
        values = np.array([[getattr(found[variant, s], k) for k in SPACES] for s in seeds])
        cells = [f"{m:.4f} ± {d:.4f}" for m, d in zip(values.mean(0), values.std(0, ddof=1))]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    lines += ["", "| claim | better − worse, domain-cnn | random-conv | seen |"]
    lines.append("|---|---:|---:|---|")
    for claim, better, worse in CLAIMS:
        gaps = [
            [getattr(found[better, s], k) - getattr(found[worse, s], k) for s in seeds]
            for k in SPACES
        ]
        ranges = [interval(np.array(gap)) for gap in gaps]
        cells = [f"{m:+.4f} ({low:+.4f} … {high:+.4f})" for m, low, high in ranges]
        lines.append(f"| {claim} | {' | '.join(cells)} | {verdict(ranges)} |")
    return "\n".join(lines) + "\n"


def interval(gap: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % interval of paired differences."""
    half = stats.t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / len(gap) ** 0.5
    return gap.mean(), gap.mean() - half, gap.mean() + half


def verdict(ranges: list[tuple[float, float, float]]) -> str:
    """In which of the spaces the interval lies on the claimed side."""
    seen = [name.replace("_", "-") for name, (_, _, high) in zip(SPACES, ranges) if high < 0]
    against = [name.replace("_", "-") for name, (_, low, _) in zip(SPACES, ranges) if low > 0]
    parts = [f"yes, in {' and '.join(seen)}"] if seen else []
    parts += [f"the opposite in {' and '.join(against)}"] if against else []
    return "; ".join(parts) or "not seen"


def main(folder: Path, seeds: int) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rows.jsonl"
    whole = whole_lines(file)
    write_whole(file, "".join(whole))
    rows = [Row(**json.loads(line)) for line in whole]
    suite = load("digits", KIND)
    for seed in range(seeds):
        for row in rows_of(seed, suite, {r.variant for r in rows if r.seed == seed}):
            rows.append(row)
            with file.open("a") as f:
                f.write(json.dumps(asdict(row)) + "\n")
    (folder / "README.md").write_text("# Claims about DMD2\n\n" + table(rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
