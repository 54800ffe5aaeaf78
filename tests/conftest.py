"""What every test shares: a quiet, offline, single-threaded process, limits and `figure`."""

import json
import math
import os
import signal
from collections.abc import Callable, Iterator

import limits
import pytest

# Before torch is imported anywhere. One thread each: the tests run in as many processes as there
# are cores, and the sums of small tensors then do not depend on the machine.
for name, value in {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "offline",
    "MPLBACKEND": "Agg",
}.items():
    os.environ.setdefault(name, value)

# Shells start background jobs deaf to Ctrl-C, and so would be the runs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

FIGURE = "figure:"


def pytest_configure(config: pytest.Config) -> None:
    limits.install(config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    if config.getvalue("dist") != "loadfile":
        return None
    from workers import ByGroup  # where there is xdist

    return ByGroup(config, log)


@pytest.fixture(scope="session")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable]:
    """Answers requests of `export.call_plainly`; modules that use it share `xdist_group`."""
    from caller import plain_caller  # not before the environment is set

    with plain_caller(tmp_path_factory.mktemp("caller")) as call:
        yield call


@pytest.fixture(scope="module")
def warm(caller: Callable) -> Iterator[None]:
    """Exports are checked by a process that is there already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stepdistill.export.export.call_plainly", caller)
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch's own threads, too: the last digits depend on their number, and so do timings."""
    import torch  # not before the environment is set

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """`figure(name, value, unit)` records a measured number with the test's result.

    It is printed after the run; `make test-all` keeps it in eval/results/test-all.json.
    """

    def record(name: str, value: float, unit: str = "") -> None:
        if not math.isfinite(value):
            raise ValueError(f"figure '{name}' is {value}")
        record_property(FIGURE + name, json.dumps({"value": float(value), "unit": unit}))

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the figures recorded by tests that passed."""
    lines = [
        f"{report.nodeid}: {name.removeprefix(FIGURE)} = {taken['value']:.6g} {taken['unit']}"
        for report in terminalreporter.stats.get("passed", [])
        for name, recorded in report.user_properties
        if name.startswith(FIGURE)
        for taken in [json.loads(recorded)]
    ]
    if lines:
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(lines))
