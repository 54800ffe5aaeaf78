"""What tests may cost, in seconds of processor time, and what they did cost: a plugin of pytest.

A tier is a folder of tests. It has a limit for each test, of which a test may take the triple for
its luck and for what it is the first to import, and a limit for their sum, looked at when all tests
have run. Processor time of the process and of its children that ended does not grow when others
use the machine. Tests marked `full` or `bench` cost what they cost.

STEPDISTILL_DURATIONS names a file for each tier's sum and the dearest tests; without it none is
written.
"""

import json
import os
import resource
from pathlib import Path
from typing import NamedTuple

import pytest


class Tier(NamedTuple):
    """Seconds for one test, and for all of them; the least number of tests."""

    test: float
    sum: float
    fewest: int = 0


FAST = "not full and not bench"
TIERS = {
    "maths": Tier(1, 60, fewest=2000),  # closed forms
    "contracts": Tier(1.5, 95),
    "units": Tier(4, 350),
    "hostile": Tier(10, 195),
    "jobs": Tier(20, 360),
    "book": Tier(20, 130),
}
TOLERANCE = 3
DEAREST = 40
COST = "cpu:"  # the property of a report that holds seconds, with the tier's name
BEGAN = pytest.StashKey[float]()


def spent() -> float:
    """Processor seconds of this process and of its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def tier_of(item: pytest.Item) -> str | None:
    """The folder that limits a test; None for a test that nothing limits."""
    exempt = item.get_closest_marker("full") or item.get_closest_marker("bench")
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    return folder if folder in TIERS and not exempt else None


class Limits:
    """Fails tests that cost too much, and a whole run in which a tier does.

    whole: whether the run is of all tests. record: the file to write, if any. costs: seconds by
    tier and test.
    """

    def __init__(self, whole: bool, record: str | None) -> None:
        self.whole, self.record = whole, record
        self.costs: dict[str, dict[str, float]] = {name: {} for name in TIERS}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item):
        item.stash[BEGAN] = spent()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item):
        result = yield
        seconds, tier = spent() - item.stash[BEGAN], tier_of(item)
        if tier and seconds > TOLERANCE * TIERS[tier].test:
            pytest.fail(
                f"took {seconds:.1f} s of processor time: a test in {tier}/ may take "
                f"{TIERS[tier].test:g}, and at worst {TOLERANCE * TIERS[tier].test:g}",
                pytrace=False,
            )
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item):
        result = yield
        if tier := tier_of(item):
            item.user_properties.append((COST + tier, spent() - item.stash[BEGAN]))
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, seconds in report.user_properties if report.when == "teardown" else ():
            if name.startswith(COST):
                test = report.nodeid.removeprefix("tests/")
                self.costs[name.removeprefix(COST)][test] = float(seconds)

    def faults(self) -> list[str]:
        """A line for each tier over its sum, with its dearest tests, or with too few tests."""
        sums = {name: sum(costs.values()) for name, costs in self.costs.items()}
        return [
            f"{name}/ took {sums[name]:.0f} s of processor time, may take {tier.sum:g}; dearest: "
            + ", ".join(f"{test} {s:.1f}" for test, s in dearest(self.costs[name], 5).items())
            for name, tier in TIERS.items()
            if sums[name] > tier.sum
        ] + [
            f"{name}/ has {len(self.costs[name])} tests, {tier.fewest} are the least"
            for name, tier in TIERS.items()
            if len(self.costs[name]) < tier.fewest
        ]

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.whole and exitstatus == 0 and self.faults():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self.record:
            Path(self.record).parent.mkdir(parents=True, exist_ok=True)
            Path(self.record).write_text(json.dumps(self.durations(), indent=1) + "\n")

    def durations(self) -> dict:
        """What is kept of a run: sums and numbers of tests by tier, and the dearest tests."""
        every = {test: cost for costs in self.costs.values() for test, cost in costs.items()}
        tiers = {
            name: {"seconds": round(sum(costs.values()), 1), "tests": len(costs)}
            for name, costs in self.costs.items()
        }
        found = {test: round(cost, 2) for test, cost in dearest(every, DEAREST).items()}
        return {"unit": "processor seconds", "tiers": tiers, "dearest": found}

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.whole:
            parts = [f"{name} {sum(costs.values()):.0f}" for name, costs in self.costs.items()]
            terminalreporter.write_line(f"processor seconds: {', '.join(parts)}")
            for fault in self.faults():
                terminalreporter.write_line(fault, red=True)


def dearest(costs: dict[str, float], n: int) -> dict[str, float]:
    """The n tests that cost most, the dearest first."""
    return dict(sorted(costs.items(), key=lambda cost: -cost[1])[:n])


def install(config: pytest.Config) -> None:
    """Limit the tests of a run; under xdist workers measure, and the controller adds up."""
    option, every = config.option, config.args_source == config.ArgsSource.TESTPATHS
    whole = every and option.markexpr == FAST and not (option.keyword or config.getoption("lf", 0))
    plugin = Limits(whole=whole, record=os.environ.get("STEPDISTILL_DURATIONS"))
    if hasattr(config, "workerinput"):
        plugin = Limits(whole=False, record=None)
    config.pluginmanager.register(plugin, "limits")
