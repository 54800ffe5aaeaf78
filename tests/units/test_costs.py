"""What an image costs: each number against its definition, and none that loses a score.

Mutations that must each fail a test here: FLOPs for MACs; attention that is not counted; the VAE
or the text encoder among `other`; the first call among the timed ones; a p95 of three calls; a
failure that is raised; a Pareto line with a model on it that another beats.
"""

import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from others import PROMPTS, stable_diffusion
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stepdistill.data.sources import digits
from stepdistill.evaluation import costs
from stepdistill.evaluation.costs import ByPart, Cost, macs_of, measure
from stepdistill.evaluation.evaluate import Request, Requests
from stepdistill.evaluation.reference import Kind
from stepdistill.evaluation.report.costs import cost_notes, cost_tables
from stepdistill.evaluation.report.headline import headline
from stepdistill.evaluation.report.latex import latex
from stepdistill.evaluation.report.quality import axes_of, pareto, pareto_line, quality_panels
from stepdistill.evaluation.report.report import Report, markdown, page, read_results, write_report
from stepdistill.evaluation.rows import Row, Score
from stepdistill.jobs.costs import with_costs
from stepdistill.jobs.foreign import Call, Foreign, sampled
from stepdistill.jobs.samplers import of_teacher
from stepdistill.jobs.suites import load
from stepdistill.teachers.loading import load_pipeline
from stepdistill.teachers.teacher import Teacher

SUITE = load("digits", Kind(digits.EVENT, digits.CLASSES))
MANY = 10**6  # images, whose share of time is no limit


class Attentive(nn.Module):
    """A convolution, a linear layer, and both ways of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8, 12)
        self.layer = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, x):
        y = self.linear(self.conv(x).flatten(2).transpose(1, 2))
        y = F.scaled_dot_product_attention(y, y, y)
        return self.layer(y, y, y)[0]


def test_macs_of_convolution_linear_layer_and_attention_are_their_closed_form():
    net, tokens = Attentive().eval(), 5 * 7
    with torch.inference_mode():
        found = macs_of(lambda n: net(torch.randn(n, 3, 5, 7)), {"network": [net]})
    attention = 2 * tokens * tokens * 12  # scores, and what they weigh
    layers = tokens * (3 * 9 * 8 + 8 * 12) + tokens * (3 * 12 * 12 + 12 * 12)
    assert found == ByPart(network=layers + 2 * attention)
    assert found.total == found.network


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Foreign:
    folder = tmp_path_factory.mktemp("costs") / "sd"
    stable_diffusion().save_pretrained(folder)
    return Foreign.of(folder, Call(steps=3, guidance=4.0))


@pytest.fixture(scope="module")
def requests() -> Requests:
    return Requests([Request(prompt, i) for i, prompt in enumerate(PROMPTS)], 4, 2)


def flops(call) -> int:
    """By torch's counter alone, with attention as the products it is made of."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_macs_of_a_pipeline_are_those_of_each_part_times_its_calls(foreign, requests):
    sampler, pipe = sampled(foreign, requests, None), foreign.pipeline
    found = macs_of(sampler.call, sampler.parts)
    tokens, text = torch.ones(1, 77, dtype=torch.long), torch.zeros(2, 77, 16)
    latents = torch.zeros(1, 4, 8, 8)
    pair = torch.zeros(2, 4, 8, 8)
    wanted = {
        "network": 3 * flops(lambda: pipe.unet(pair, 1, text)),
        "vae": flops(lambda: pipe.vae.decode(latents)),
        "text_encoder": 2 * flops(lambda: pipe.text_encoder(tokens)),  # and of no prompt
    }
    assert all(wanted.values())
    assert found == ByPart(**{name: count // 2 for name, count in wanted.items()})


def test_a_pipeline_measured_twice_says_the_same(foreign, requests):
    sampler = sampled(foreign, requests, None)
    rows = [row("student", 3, 1.0)] * 2
    one, two = (found.costs for found in with_costs(rows, [sampler] * 2, SUITE))
    assert one.macs == two.macs and one.macs.network > one.macs.vae > 0
    assert one.parameters == two.parameters
    assert one.parameters.network == sampler.parameters < one.parameters.total
    assert one.device == two.device == f"CPU, {torch.get_num_threads()} threads"
    assert min(one.latency, two.latency) > 0 and one.runs >= costs.FEWEST
    weights = 4 * one.parameters.total
    assert weights < one.memory == pytest.approx(two.memory, rel=0.01)


def test_macs_grow_with_steps_and_guidance():
    teacher = Teacher.from_pipeline(load_pipeline("digits"), w=2.0)
    rows = [row("teacher", steps, 1.0) for steps in (1, 3)]
    one, three = with_costs(rows, [of_teacher(teacher, steps) for steps in (1, 3)], SUITE)
    net = teacher.denoiser.net
    alone = flops(lambda: net(torch.zeros(2, 1, 8, 8), torch.ones(2), torch.zeros(2).long())) // 2
    assert one.costs.macs == ByPart(network=alone)
    assert three.costs.macs.total == 3 * alone
    assert one.costs.parameters.total == one.costs.parameters.network > 0


class Sleeper:
    """A model whose call takes a known time, whatever it makes."""

    def __init__(self, seconds: float, most: int = 10**6) -> None:
        self.seconds, self.most, self.calls = seconds, most, []

    def __call__(self, count: int) -> None:
        self.calls.append(count)
        if count > self.most:
            raise RuntimeError("out of memory")
        time.sleep(self.seconds)


def test_a_known_time_is_the_latency_and_batches_share_it(monkeypatch):
    monkeypatch.setattr(costs, "SECONDS", 60)  # enough on a busy machine
    model = Sleeper(0.02)
    found = measure(model, {}, MANY, 16)
    assert found.latency >= 0.02 and costs.FEWEST <= found.runs <= costs.RUNS
    assert found.batch in (4, 16) and 1 / found.latency < found.throughput <= 16 / 0.02
    assert model.calls.count(1) == 2 + found.runs  # of which two are counted
    assert [count for count in model.calls if count > 1] == [4, 4, 16, 16]


def test_a_p95_is_of_enough_calls_and_of_no_fewer():
    found = measure(Sleeper(0), {}, 10**9, 1)
    assert found.runs == costs.RUNS and found.p95 >= found.latency > 0 and found.batch == 1
    few = measure(Sleeper(0.001), {}, 1, 16)
    assert few.runs == costs.FEWEST and few.p95 is None and few.missing["p95"]
    assert few.batch == 1 and few.throughput == pytest.approx(1 / few.latency)


def test_what_is_measured_is_the_median_and_the_95th_percentile(monkeypatch):
    taken = iter(range(1, 1000))
    monkeypatch.setattr(costs, "seconds_of", lambda call, count: float(next(taken)))
    monkeypatch.setattr(costs, "SECONDS", 1e9)
    found = measure(lambda count: None, {}, 10**9, 1)
    times = list(range(1, costs.RUNS + 1))
    assert (found.latency, found.p95) == (median(times), np.percentile(times, 95))


def test_time_is_bounded_by_seconds_and_by_a_share_of_the_evaluation(monkeypatch):
    monkeypatch.setattr(costs, "seconds_of", lambda call, count: 0.5)
    for images, runs in ((MANY, 8), (20, costs.FEWEST), (100, 4)):
        model = Sleeper(0)
        assert measure(model, {}, images, 1).runs == runs
        assert model.calls == [1, 1]  # those that are counted


def test_a_batch_that_does_not_fit_leaves_the_best_that_does(monkeypatch):
    monkeypatch.setattr(costs, "SECONDS", 60)
    model = Sleeper(0.01, most=16)
    found = measure(model, {}, MANY, 256)
    assert model.calls[-1] == 64
    assert found.batch in (4, 16) and found.throughput > 1 / found.latency


def test_memory_is_of_weights_and_of_what_a_call_holds_at_a_time():
    net = nn.Linear(300, 200)

    def call(count: int) -> None:
        first = torch.empty(count, 10**6)
        second = torch.empty(count, 2 * 10**6)
        del first
        torch.empty(count, 10**5).sum()
        del second
        torch.empty(count, 10**6)

    once = costs.peak_memory(call, {"network": [net]})
    assert once == 4 * (301 * 200 + 3 * 10**6)
    assert costs.peak_memory(call, {"network": [net], "vae": [nn.Linear(9, 1)]}) == once + 4 * 10


def test_memory_on_a_gpu_leaves_out_what_lay_there_before(monkeypatch):
    held = {"now": 700, "most": 900}

    def call(count: int) -> None:
        held["most"] = max(held["most"], held["now"] + 50)

    for name, fake in {
        "memory_allocated": lambda: held["now"],
        "max_memory_allocated": lambda: held["most"],
        "reset_peak_memory_stats": lambda: held.update(most=held["now"]),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    assert costs.allocated_on_cuda(call) == 50


def row(model: str, nfe: int, frechet: float, parameters: int = 5, cost: Cost | None = None) -> Row:
    scores = {name: Score(frechet) for name in ("frechet", "frechet_random")}
    return Row(model, nfe, nfe, 60, "", parameters, 0.001, scores, cost)


def test_a_measurement_that_fails_says_so_and_keeps_the_scores(tmp_path: Path):
    teacher = Teacher.from_pipeline(load_pipeline("digits"))
    good = of_teacher(teacher, 1)

    def broken(*_: object) -> None:
        raise RuntimeError("boom\n\x1b[31m")

    rows = [row("teacher", 1, 1.0), row("student", 1, 2.0), row("student", 2, 2.5)]
    folder = replace(good, sample=None)  # images that exist already
    found = with_costs(
        [*rows, row("real", 0, 0.1)], [good, replace(good, sample=broken), folder], SUITE
    )
    assert [replace(one, costs=None) for one in found] == [*rows, row("real", 0, 0.1)]
    fine, failed, unknown, real = (one.costs for one in found)
    assert fine.latency > 0 and unknown is real is None
    assert failed.latency is failed.throughput is failed.macs is None
    assert failed.missing["latency"] == failed.missing["macs"] == "RuntimeError: boom \\x1b[31m"
    assert failed.parameters == fine.parameters
    write_report(tmp_path, Report("t", found, SUITE, {}))
    assert read_results(tmp_path / "results.json") == found
    assert "RuntimeError: boom" in (tmp_path / "report.md").read_text()


COSTS = [
    Cost("CPU, 1 threads", 40, 0.002, 0.003, 900.0, 16, None, ByPart(3_200_000), ByPart(5)),
    Cost("CPU, 1 threads", 3, 0.1, None, 10.0, 1, 3 * 2**20, ByPart(4, 2, 1, 1), ByPart(7, 1, 1)),
]


def test_the_table_of_costs_is_in_every_form_and_its_words_are_explained():
    rows = [row("student", 1, 1.0, cost=COSTS[0]), row("teacher", 8, 0.5, cost=COSTS[1])]
    rows.append(row("real", 0, 0.1))
    report = Report("t", rows, SUITE, {})
    lines = markdown(report).splitlines()
    assert (
        "| model | NFE | latency p50, ms | p95, ms | images / s | peak memory, MiB | MACs, network "
        "| MACs, all | parameters, network | parameters, all |"
    ) in lines
    said = "| student 1 step | 1 | 2 40 calls | 3 | 900 batch 16 | – | 3.2 M | 3.2 M | 5 | 5 |"
    assert said in lines
    said = "| teacher 8 steps | 8 | 100 3 calls | – | 10 batch 1 | 3 | 4.0 | 8.0 | 7 | 9 |"
    assert said in lines
    html, tables = page(report), latex(rows, SUITE)
    (table,) = cost_tables(rows)
    for heading in (column.name for column in table.columns):
        assert f'<th scope="col">{heading}</th>' in html and heading in tables
    assert tables.count(r"\begin{tabular}") == 2 and "<h3>Cost of an image</h3>" in html
    notes = " ".join(cost_notes(rows))
    for word in ("`latency`", "`images / s`", "`peak memory`", "`MACs`", "on CPU, 1 threads"):
        assert word in notes
    assert cost_tables(rows[2:]) == cost_notes(rows[2:]) == []
    assert "Cost of an image" not in page(replace(report, rows=rows[2:]))


def test_times_in_one_table_are_all_of_one_kind():
    student, teacher = row("student", 1, 1.0), row("teacher", 8, 0.5)
    measured = [replace(student, costs=COSTS[0]), replace(teacher, costs=COSTS[1])]
    assert "1× as fast per image" in headline([student, teacher], SUITE)
    assert "50× as fast per image" in headline(measured, SUITE)
    assert "as fast" not in headline([measured[0], teacher], SUITE)


def unbeaten(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The non-dominated set, by its definition."""

    def beaten(p: tuple[int, int]) -> bool:
        return any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)

    return sorted({p for p in points if not beaten(p)})


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_the_pareto_line_is_of_those_that_no_other_beats(n):
    draw = np.random.default_rng(n)
    for _ in range(25):
        points = [tuple(point) for point in draw.integers(0, 12, (n, 2)).tolist()]
        assert [points[i] for i in pareto(points)] == unbeaten(points)


def test_the_pareto_line_is_a_step_that_goes_by_what_is_better():
    rows = [row("student", 1, 3.0), row("student", 2, 4.0), row("teacher", 8, 1.0)]
    rows += [row("teacher", 16, 2.0), row("real", 0, 0.1)]
    axis = axes_of(rows)[0]
    metric = {m.name: m for m in SUITE.metrics}["frechet"]
    (line,) = pareto_line(rows, axis, metric)
    assert (line.cost, line.value) == ([1, 8, 16], [3.0, 1.0, 1.0])
    assert pareto_line(rows[:1], axis, metric) == []
    scores = [replace(r, scores={"recall": r.scores["frechet"]}) for r in rows]
    recall = {m.name: m for m in SUITE.metrics}["recall"]
    (line,) = pareto_line(scores, axis, recall)  # larger is better
    assert (line.cost, line.value) == ([1, 2, 16], [3.0, 4.0, 4.0])


def test_quality_is_drawn_against_costs_that_are_known_and_differ():
    rows = [row("student", 1, 3.0, cost=COSTS[0]), row("teacher", 8, 1.0, 9, COSTS[1])]
    folder = replace(row("student", 0, 2.0, 0), seconds=None)
    titles = [panel.title for panel in quality_panels([*rows, folder], SUITE)]
    costs = ("network evaluations an image", "milliseconds an image", "parameters")
    assert titles == [f"Quality against {cost}" for cost in costs]
    alike = [replace(r, parameters=5) for r in rows]
    assert len(quality_panels(alike, SUITE)) == 2
    assert quality_panels([folder], SUITE) == []
