"""The command line. Exit codes: 0 done, 1 failed while running, 2 bad input.

Every error is one line on stderr; `--debug` shows its traceback too.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import format_exc
from typing import Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from .jobs.terminal import PlainConsole, Unread, table
from .schema import ConfigError, printable, shown

UsageError = typer.BadParameter.__base__


class OneLineGroup(TyperGroup):
    """Commands whose misuse, too, is one line."""

    def invoke(self, ctx: typer.Context) -> object:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            fail(f"{error.format_message()} (see {(error.ctx or ctx).command_path} --help)", 2)


app = typer.Typer(
    cls=OneLineGroup,
    help="Distil many-step diffusion models into one- and few-step students.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
LONGEST = 290  # characters of an error


width = None if sys.stdout and sys.stdout.isatty() else 120
console = PlainConsole(width=width, markup=False, emoji=False)
errors = PlainConsole(stderr=True, soft_wrap=True)
Config = Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped config.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, dotted keys.")]
Runs = Annotated[Path, typer.Option(help="The folder that holds run folders.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
BLOCKS = 3  # fresh seed blocks of a comparison
BUDGET = "Network passes of one sample to train each config with; may be given several times."
SEEDS = "Seeds at every budget; 3 if none is said."
SUITE = "What scores them: a shipped suite, or a YAML file; by default what their runs say."
REFERENCE = "A folder of real images, or a published .npz; else what the runs' data hold out."
PROMPTS = "A file of prompts (.txt, .csv, .jsonl, .parquet) for models that take them."
GUIDANCE = "Guidance of pipelines that are not ours; by default their own."
BESIDE = "Steps of the run's teacher, drawn from the same noise below each row."
READ = "Guidance, of students that are trained for several."
TEACHER = "Which source is the teacher of the others, called as it is by default."
DOWNLOAD = "Fetch what is not on this machine: weights of metrics, pipelines of the hub."
LAYOUT = "Copy images of prompts as other scorers expect them: geneval or compbench."
CODE = "Run the code that lies in the folders of pipelines that are not ours."
COUNT = "Number of images: 64, or 4 of each prompt."
ASKED = "A prompt, for models that take one; may be given several times."
FEWEST = "Steps of exported pipelines and samples; the fewest by default."
CALL = "The call to judge, like 'num_inference_steps=4, guidance_scale=0'; else its card's."
TRUSTED = "A module of yours that a run's folder names; such folders run no others."
Trust = Annotated[list[str] | None, typer.Option("--trust-method", metavar="NAME", help=TRUSTED)]
Download = Annotated[bool, typer.Option("--download", help=DOWNLOAD)]
Extend = Annotated[bool, typer.Option("--extend", help="Go on with a run that is now longer.")]
RunFolder = Annotated[Path, typer.Argument(help="A finished run's folder, like runs/demo.")]


@contextmanager
def guarded(debug: bool, download: bool = False) -> Iterator[None]:
    """Turn whatever is raised into one line and an exit code. download: whether what is missing on
    this machine may be fetched."""
    from .resources import DOWNLOADS

    DOWNLOADS.allowed = download
    try:
        yield
    except KeyboardInterrupt:
        fail("stopped; the same command goes on from the last checkpoint", 1)
    except Exception as error:
        if debug:
            errors.print(Text(format_exc().rstrip()))
        fail(*verdict(error))
    finally:
        DOWNLOADS.allowed = False


def verdict(error: Exception) -> tuple[str, int]:
    """The line for the user, and the exit code: 2 for bad input, 1 for all that fails later."""
    from .files import is_out_of_memory
    from .training.checkpoint import CheckpointError

    kind = type(error)
    line = (str(error).strip() or kind.__name__).splitlines()[0]
    if isinstance(error, ConfigError | CheckpointError):
        return line, 2
    if is_out_of_memory(error):
        return f"out of memory: take a smaller batch and more accumulation ({line})", 1
    # Our own exceptions tell users what to do, and the machine's failures are no bug.
    if kind.__module__.startswith("stepdistill.") or isinstance(error, OSError):
        return line, 1
    bug = "unexpected, a bug of stepdistill or of a method of yours: --debug shows where"
    return f"{kind.__name__}: {line} ({bug})", 1


def fail(message: str, code: int) -> None:
    """Print one printable line of at most LONGEST characters, and exit."""
    line = printable(message.replace("\n", " "))
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
    errors.print(Text.assemble(("error:", "bold red"), f" {line}"))
    raise typer.Exit(code)


def require_writable(folder: Path) -> None:
    """Raise ConfigError, before any work, unless files can be made in `folder`."""
    try:
        existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    except OSError as error:  # a name longer than any file's
        raise ConfigError(f"{shown(str(folder))}: {error.strerror}: write elsewhere") from error
    if not existing.is_dir():
        raise ConfigError(f"{folder}: {existing.name} is a file, not a folder: write elsewhere")
    if not os.access(existing, os.W_OK):
        raise ConfigError(f"{folder}: no permission to write there: write elsewhere")


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    extend: Extend = False,
    download: Download = False,
    debug: Debug = False,
) -> None:
    """Train, export, evaluate and report: the whole job, resumable."""
    with guarded(debug, download):
        require_writable(runs)
        from .jobs.distill import distill
        from .runs.config import read

        result = distill(read(config, tuple(overrides or ())), runs, console, extend)
        console.print(table(result.rows))
        console.print(f"report: {result.folder / 'report.html'}   student: {result.student}")


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    extend: Extend = False,
    download: Download = False,
    debug: Debug = False,
) -> None:
    """Train only; `export` and `eval` take the run's folder."""
    with guarded(debug, download):
        require_writable(runs)
        from .jobs.distill import train_run
        from .runs.config import read

        settings = read(config, tuple(overrides or ()))
        stages = train_run(settings, runs / settings.name, console, extend)
        stages.setup.accelerator.end_training()
        console.print(f"trained: {stages.folder.path}")


@app.command()
def sample(
    source: Annotated[Path, typer.Argument(help="A run's folder or a pipeline.")],
    out: Annotated[Path, typer.Argument(help="A PNG file.")],
    steps: Annotated[int | None, typer.Option(min=1, max=10_000, help=FEWEST)] = None,
    count: Annotated[int | None, typer.Option(min=1, max=10_000, help=COUNT)] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed.")] = 0,
    prompt: Annotated[list[str] | None, typer.Option(help=ASKED)] = None,
    guidance: Annotated[float | None, typer.Option(min=0, max=1000, help=READ)] = None,
    teacher: Annotated[int | None, typer.Option(min=1, max=10_000, help=BESIDE)] = None,
    trust: Trust = None,
    download: Download = False,
    debug: Debug = False,
) -> None:
    """Write a grid of samples as one PNG; of prompts a row each."""
    with guarded(debug, download):
        require_writable(out.parent)
        from .jobs.sample import draw_grid
        from .jobs.sources import Opening

        opening = Opening(steps, tuple(trust or ()), guidance)
        draw_grid(source, out, opening, count, seed, tuple(prompt or ()), teacher)
        console.print(f"images: {out}")


@app.command()
def export(
    folder: RunFolder,
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    best: Annotated[
        bool, typer.Option("--best", help="The best checkpoint, not the last.")
    ] = False,
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Write a finished run's student as a diffusers pipeline, and check the plain call."""
    with guarded(debug):
        require_writable(out.parent)
        from accelerate import Accelerator

        from .export.export import export as write
        from .runs.stages import reopen

        difference = write(reopen(folder, Accelerator(), best, trust or ()), out)
        console.print(f"exported to {out}; plain call equals the sampler to {difference:.1e}")


@app.command(name="eval")
def evaluate(
    sources: Annotated[list[Path], typer.Argument(help="Runs, pipelines, folders of images.")],
    suite: Annotated[str | None, typer.Option(help=SUITE)] = None,
    out: Annotated[Path, typer.Option(help="Where results and report go.")] = Path("evaluation"),
    n: Annotated[int | None, typer.Option(min=20, max=10**6, help="Images a block.")] = None,
    blocks: Annotated[int | None, typer.Option(min=1, max=1000, help="Seed blocks.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=10_000, help=FEWEST)] = None,
    reference: Annotated[str | None, typer.Option(help=REFERENCE)] = None,
    prompts: Annotated[str | None, typer.Option(help=PROMPTS)] = None,
    guidance: Annotated[float | None, typer.Option(min=0, max=1000, help=GUIDANCE)] = None,
    teacher: Annotated[Path | None, typer.Option(help=TEACHER)] = None,
    download: Download = False,
    layout: Annotated[Literal["geneval", "compbench"] | None, typer.Option(help=LAYOUT)] = None,
    trust: Trust = None,
    code: Annotated[bool, typer.Option("--trust-remote-code", help=CODE)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Score models, ours or not, in one report; n and blocks as the suite says, else 1000 and 3."""
    with guarded(debug, download):
        require_writable(out)
        from .jobs.evaluate import require_all, score
        from .jobs.sources import Against, Opening

        how = Opening(steps, tuple(trust or ()), guidance, code, teacher)
        what, where = Against(suite, reference, prompts, layout), errors if as_json else console
        scored = score(sources, what, out, (n, blocks), how, where)
        if as_json and scored.rows:
            typer.echo((out / "results.json").read_text(encoding="utf-8"), nl=False)
        elif scored.rows:
            console.print(table(scored.rows), f"report: {out / 'report.html'}")
        require_all(scored, out)


@app.command()
def compare(
    configs: Annotated[list[str], typer.Argument(help="YAML files, or names of shipped configs.")],
    runs: Runs = Path("runs"),
    out: Annotated[Path, typer.Option(help="Where results and report go.")] = Path("comparison"),
    n: Annotated[int, typer.Option(min=20, max=10**6, help="Images in a seed block.")] = 10_000,
    budget: Annotated[list[float] | None, typer.Option(min=1, help=BUDGET)] = None,
    seeds: Annotated[int | None, typer.Option(min=1, max=100, help=SEEDS)] = None,
    debug: Debug = False,
) -> None:
    """Train several configs and score their students and teacher in one table, costs included."""
    with guarded(debug):
        require_writable(runs)
        require_writable(out)
        from .jobs.benchmark import benchmark
        from .jobs.compare import compare as train_and_score
        from .runs.config import read

        if seeds and not budget:
            raise ConfigError("--seeds: repeats runs of equal --budget: give one")
        wanted = [read(config) for config in configs]
        if budget:
            benchmark(wanted, budget, seeds or 3, runs, out, (n, BLOCKS), console)
            console.print(f"summary: {out / 'comparison.md'}")
        else:
            console.print(table(train_and_score(wanted, runs, out, (n, BLOCKS), console)))
        console.print(f"report: {out / 'report.html'}")


@app.command()
def doctor(
    folder: Annotated[str, typer.Argument(help="A pipeline's folder, of diffusers or exported.")],
    call: Annotated[str | None, typer.Option(metavar="ARGUMENTS", help=CALL)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON on stdout.")] = False,
    download: Download = False,
    debug: Debug = False,
) -> None:
    """What a pipeline's network is really asked, and whether it was trained for that: 1 if not."""
    with guarded(debug, download):
        from .jobs.doctor import diagnose

        found = diagnose(folder, call)
        if as_json:
            console.print(found.json(), soft_wrap=True)
        else:
            listing = Table("call", "steps", "asked at", "guidance", box=SIMPLE_HEAD, padding=0)
            for row in found.rows():
                listing.add_row(*row)
            console.print(listing)
            console.print("\n".join(found.lines()), soft_wrap=True)
    if found.is_wrong:
        raise typer.Exit(1)


@app.command()
def methods() -> None:
    """List the methods: paper, data, players."""
    from .jobs.catalogue import catalogue

    listing = Table("method", "paper", "needs data", "players")
    for entry in catalogue():
        listing.add_row(entry.name, entry.paper, entry.data, entry.players)
    console.print(listing)


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    download: Download = False,
    debug: Debug = False,
) -> None:
    """What a run will cost: memory by player, network passes, wall time on this machine."""
    with guarded(debug, download):
        from .runs.config import read
        from .runs.plan import plan as measure

        lines = measure(read(config, tuple(overrides or ())))
        listing = Table("what", "how much")
        for line in lines:
            listing.add_row(*line)
        console.print(listing)


def main() -> None:
    """Entry point of the `stepdistill` command."""
    with_streams()
    console.quiet = int(os.environ.get("RANK", 0)) > 0  # of several processes one speaks
    # Users' methods lie in the working folder; last, so that nothing there hides a package.
    sys.path.append("")
    app()


def with_streams() -> None:
    """Go on where nobody reads what is printed: no stream, a reader who left, a full disk."""
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    console.file, errors.file = Unread("stdout"), Unread("stderr")


if __name__ == "__main__":
    sys.exit(main())
