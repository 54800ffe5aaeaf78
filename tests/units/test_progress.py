"""What a user sees of progress: honest times left, few lines where there is no terminal."""

import io
import re

import pytest
from rich.console import Console

from stepdistill.runs import progress as chapter
from stepdistill.runs.progress import Snapshot, duration, progress

COSTS, UPDATES = (1.0, 4.0), (600, 300)  # seconds of an update, updates of a stage


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(chapter.time, "perf_counter", lambda: now[0])
    return now


def test_the_time_left_is_honest_over_stages(clock):
    console = Console(file=io.StringIO(), width=200)
    total = sum(c * n for c, n in zip(COSTS, UPDATES))
    wrong = []
    with progress(console, "training") as show:
        show(0, total)
        done = 0.0
        for cost, updates in zip(COSTS, UPDATES):
            for _ in range(updates):
                clock[0] += cost
                done += cost
                show(done, total, "text")
                wrong.append(abs(seconds(show.left(total - done)) - (total - done)))
    assert max(wrong) <= 30  # minutes are rounded; by updates alone it would be 900 at the start
    assert len(wrong) == sum(UPDATES)


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+) (s|min|h) left", text).groups()
    return float(number) * {"s": 1, "min": 60, "h": 3600}[unit]


def test_the_pace_is_the_recent_one(clock):
    with progress(Console(quiet=True, file=io.StringIO()), "t") as show:
        for k in range(1001):
            clock[0] += 1 if k < 500 else 10
            show(k, 1100)
        assert seconds(show.left(100)) == pytest.approx(1000, rel=0.05)


def test_what_was_done_before_is_no_pace(clock):
    with progress(Console(quiet=True, file=io.StringIO()), "t") as show:
        show(900, 1000)
        assert show.left(100) == ""
        clock[0] += 5
        show(901, 1000)
        assert seconds(show.left(99)) == pytest.approx(495, abs=30)


def lines(first: int) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    with progress(console, "training") as show:
        for k in range(first, 1001):
            show(k, 1000, f"update {k} [sic]")
    return console.file.getvalue().splitlines()


def test_without_a_terminal_there_is_a_line_every_tenth():
    shown = [int(re.search(r"update (\d+) \[sic\]", line)[1]) for line in lines(0)]
    assert shown == list(range(0, 1001, 100))
    resumed = [re.match(r"training (\d+) %", line)[1] for line in lines(730)]
    assert resumed == ["73", "80", "90", "100"]


def test_in_a_terminal_there_is_one_bar(clock):
    file = io.StringIO()
    console = Console(file=file, width=160, force_terminal=True, color_system=None)
    with progress(console, "training a → b") as show:
        show(0, 10, "a 0/5")
        clock[0] += 3
        show(3, 10, "b 2/5  student loss 0.1 [x]")
    *_, last = [line for line in file.getvalue().splitlines() if "training" in line]
    assert "training a → b" in last and "30 %" in last and "7 s left" in last
    assert "b 2/5  student loss 0.1 [x]" in last and last.count("training") == 1


def test_a_moment_in_words():
    losses = {"critic": {"score": 0.12345}, "student": {"dmd": 1e-7, "gan": 2.0}}
    moment = Snapshot("dmd2", 3, 500, 30.0, 900.0, losses, skipped=0)
    words = "dmd2 3/500  critic score 0.1235  student dmd 1e-07 gan 2"
    assert str(moment) == words
    assert str(Snapshot("dmd2", 3, 500, 30.0, 900.0, losses, 2)) == words + "  2 steps skipped"


def test_durations_are_rounded_for_people():
    assert [duration(s) for s in (0.4, 119, 121, 7100, 7300)] == [
        "0 s", "119 s", "2 min", "118 min", "2.0 h",
    ]  # fmt: skip
