"""The distillation methods on the five-mode mixture at equal cost, with an exact teacher.

    python eval/mixture.py eval/results/mixture 3

Every method starts from one MLP that has seen the data, and is trained at each budget with each
seed. A budget counts network passes of one sample: a forward is 1, a forward and its backward 3,
whoever's network; `dmd` pays for its pairs. The score is the energy distance of 4,000 samples in
the student's fewest steps to the truth, whose own noise is ± 0.002. Every row is appended to
rows.jsonl as it is made, so that a stopped comparison goes on; in another folder, or without that
file, it begins anew. README.md has the mean over seeds and its 95 % interval. Learning rates warm
up over 50 updates, at the smaller budget half the training of a method with five critic turns.
Without guidance `lcm` is `consistency`; `guidance` and `agd`, which only guide, are left out.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from stepdistill.conditions import Cond
from stepdistill.data.loader import Drawn, stream
from stepdistill.denoiser import Denoiser, Guided, Weight
from stepdistill.exact import GaussianMixture
from stepdistill.families.pairs import Pairs
from stepdistill.files import whole_lines, write_whole
from stepdistill.jobs.benchmark import over_seeds
from stepdistill.losses.denoising import denoising_loss
from stepdistill.method import Method, Players, load
from stepdistill.networks.views import load_own
from stepdistill.process import NoiseProcess, Prediction, RectifiedFlow
from stepdistill.runs.costs import held_in_training
from stepdistill.solver import EVALUATIONS, Sampler, Trajectory, solve_ode
from stepdistill.teachers.backbone import Backbone
from stepdistill.teachers.codec import Codec
from stepdistill.times import Grid, TimeLaw
from stepdistill.training.players import PlayerSettings, make_players
from stepdistill.training.trainer import Optimiser, Trainer, Training

SAMPLES, BATCH = 4000, 256
BUDGETS = (1_000_000, 4_000_000)
PAIRS = 16  # steps to the end of a pair, by Heun
NOISE = 2e-3  # of an energy distance of 4,000 samples


@dataclass(frozen=True)
class Case:
    """A method's settings here. updates: what it takes to pass the tests' gate."""

    settings: dict[str, Any]
    updates: int
    sampler: Sampler = Sampler((1,))
    lr: float = 1e-3
    target: float = 0.0

    def training(self, updates: int) -> Training:
        rate = Optimiser(lr=self.lr, warmup=50, schedule="cosine")
        critic = Optimiser(lr=1e-3)
        return Training(updates, BATCH, 1, rate, critic, ema=0.998, target_ema=self.target)


HUBER = {"steps": 18, "solver": "heun", "distance": "pseudo_huber", "huber": 0.03}
GAN = {"gan": 0.03, "gan_critic": 0.1}
UNIFORM = {"time": TimeLaw(low=0.02, high=0.98), "critic_time": TimeLaw()}
LOG_NORMAL = TimeLaw("log_normal", mean=0.0, std=1.6)
FOUR = Sampler((4,), Grid(of=18), gamma=0.0)
# TCD and TSCD are not told where a jump goes, which costs them variance in long jumps: they are
# asked for four, and TCD for the noise between them that gives it back.
CASES = {
    "consistency": Case(HUBER, 2000, target=0.95),
    "consistency_training": Case({"pairs": Pairs(time=TimeLaw()), "huber": 0.03}, 6000),
    "lcm": Case(HUBER, 2000, target=0.95),
    "scm": Case({"sigma_data": 1.0, "time": LOG_NORMAL, "warmup": 0.5}, 3000, lr=5e-4),
    "ctm": Case({"steps": 8, "grid": Grid(), "denoising": 0.3}, 2000, target=0.95),
    "tscd": Case({**HUBER, "segments": 2}, 2000, FOUR, target=0.95),
    "pcm": Case({**HUBER, "phases": 1}, 2000),
    "pcm, two phases": Case({**HUBER, "phases": 2}, 2000, Sampler((2,), gamma=0.0)),
    "tcd": Case(HUBER, 2000, Sampler((4,), Grid(of=18), gamma=0.7), target=0.95),
    "dmd": Case({"ratio": 2}, 1500, lr=5e-4),
    "dmd2": Case(GAN, 800, lr=5e-4),
    "f_distill": Case(GAN, 800, lr=5e-4),
    "diff_instruct": Case({**UNIFORM, "ratio": 5}, 1500, lr=5e-4),
    "sid": Case({**UNIFORM, "ratio": 5, "a": 1.0}, 1500, lr=5e-4),
    "tdm": Case({"ratio": 5}, 1500, Sampler((4,), gamma=0.0), lr=5e-4),
    "ladd": Case({"ratio": 2}, 2000, lr=2e-4),
    "vsd": Case({"ratio": 5}, 1500, lr=5e-4),
}


class MLP(nn.Module):
    """3×width SiLU on two numbers and sines of the time."""

    def __init__(self, width: int = 128, dimension: int = 2) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, 4, 8)))
        layers: list[nn.Module] = [nn.Linear(dimension + 16, width), nn.SiLU()]
        for _ in range(2):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Linear(width, dimension))

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        phase = t.to(x)[:, None] * self.frequencies.to(x)
        return self.body(torch.cat([x, phase.sin(), phase.cos()], 1))


def mlp_denoiser(process: NoiseProcess | None = None, prediction: Prediction = "flow") -> Denoiser:
    """An untrained MLP on two numbers."""
    process = process or RectifiedFlow()
    return Denoiser(MLP(), process, prediction, taps=Flat(None).read())


class Flat(Backbone):
    """An MLP on two numbers as a family of its own, without a pipeline."""

    pipelines = ()
    time_embedding = "body.0"
    tap = "body.3"
    size = (1, 1)

    def codec(self) -> Codec:
        raise ValueError("two numbers are no image")

    def call(self, net: nn.Module, x: Tensor, t: Tensor, cond: Cond, w: Weight) -> Tensor:
        return net(x, t, cond)

    def taps(self) -> tuple[str, ...]:
        return ("body.1", "body.3")


def five_modes(process: NoiseProcess | None = None) -> GaussianMixture:
    """The five-mode ring: radius 1.5, std 0.35, weights 0.3, 0.25, 0.2, 0.15, 0.1."""
    angle = torch.arange(5) * (2 * torch.pi / 5)
    means = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
    weights = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1])
    return GaussianMixture(means, 0.35, process or RectifiedFlow(), weights)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|a − b| − E|a − a′| − E|b − b′|, without self-pairs."""
    within = [torch.pdist(x.double()).mean() for x in (a, b)]
    return float(2 * torch.cdist(a.double(), b.double()).mean() - within[0] - within[1])


class MixtureTeacher:
    """What players are made from: an exact teacher, and the network that they start from."""

    event, w, backbone, device = (2,), 1.0, Flat(None), torch.device("cpu")

    def __init__(self, mixture: GaussianMixture, base: Denoiser, labelled: bool = False) -> None:
        self.guided = Guided(mixture, 1.0, mixture.null) if labelled else mixture
        self.denoiser, self.classes = base, len(mixture.means) if labelled else None
        self.null = mixture.null if labelled else {}

    def some(self, n: int) -> Cond:
        return {} if self.classes is None else {"label": torch.arange(n) % self.classes}


@dataclass(frozen=True)
class MixtureData:
    """Fresh exact samples, without conditions, or with the components they come from."""

    mixture: GaussianMixture
    labelled: bool = False

    def batch(self, number: int, size: int, local: torch.Generator) -> Drawn:
        x, k = self.mixture.sample(size, local)
        return Drawn(x, {"label": k} if self.labelled else {})


@dataclass(frozen=True)
class MixturePairs:
    """The ends of the exact teacher's trajectories, and the noise they began with."""

    path: Trajectory

    @classmethod
    def of(cls, mixture: GaussianMixture, n: int, generator: torch.Generator) -> "MixturePairs":
        noise, times = torch.randn(n, 2, generator=generator), Grid().times(mixture.process, PAIRS)
        ends = torch.stack(list(solve_ode(mixture, noise, times, solver="heun")), 1)
        return cls(Trajectory(times, ends, ends[:, 1:], torch.ones(n)))

    def batch(self, number: int, size: int, local: torch.Generator) -> Drawn:
        row = torch.randint(len(self.path.x), (size,), generator=local)
        path = Trajectory(self.path.times, *(v[row] for v in self.path[1:]))
        return Drawn(path.x[:, -1], {}, path)


def pretrained(process: NoiseProcess | None = None, updates: int = 400, seed: int = 0) -> Denoiser:
    """An MLP that has seen the data: where distillation starts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = mlp_denoiser(process)
    process, mixture = student.process, five_modes(student.process)
    optimiser = torch.optim.Adam(student.net.parameters(), 3e-3)
    for k in range(updates):
        g = stream(3, seed, k)
        x0, _ = mixture.sample(128, g)
        t = process.t_min + torch.rand(128, generator=g).double() * (process.t_max - process.t_min)
        loss = denoising_loss(student, x0, torch.randn(128, 2, generator=g), t, {})
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return student


@cache
def base(seed: int) -> Denoiser:
    """The MLP that players start from."""
    return pretrained(updates=1500, seed=seed)


def trainer_of(
    method: Method, start: Denoiser, sampler: Sampler, training: Training, seed: int
) -> Trainer:
    """What trains a student from `start` by the exact teacher."""
    mixture = five_modes()
    casting = PlayerSettings(
        sampler, target=training.target_ema, inputs=method.needs.inputs, seed=(seed,)
    )
    players = make_players(method, MixtureTeacher(mixture, start), casting)
    pairs = (
        MixturePairs.of(mixture, SAMPLES, stream(seed, 8)) if method.needs.trajectories else None
    )
    data = pairs or MixtureData(mixture)
    return Trainer(method, players, data, training, Accelerator(cpu=True), (seed,))


def distil(
    method: Method, start: Denoiser, sampler: Sampler, training: Training, seed: int
) -> Players:
    """The players after training from `start`; the student is the average."""
    trainer = trainer_of(method, start, sampler, training, seed)
    while not trainer.done:
        trainer.step()
    load_own(trainer.players.student.net, trainer.averaged())
    return trainer.players


def energy(players: Players, seed: int) -> float:
    """Energy distance of samples in the student's fewest steps to the truth."""
    noise = torch.randn(SAMPLES, 2, generator=stream(seed, 5))
    student, sampler = players.student, players.sampler
    with torch.no_grad():
        made = sampler.draw(student, noise, min(sampler.steps), {}, stream(seed, 6))
    return energy_distance(made, five_modes().sample(SAMPLES, stream(seed, 7))[0])


def method_of(name: str) -> Method:
    """The method of a case, "pcm, two phases" being one of pcm's."""
    return load(name.partition(",")[0])(**CASES[name].settings)


def trained(name: str, seed: int, updates: int) -> Players:
    """The players of a case."""
    case = CASES[name]
    return distil(method_of(name), base(seed), case.sampler, case.training(updates), seed)


@dataclass(frozen=True)
class Row:
    """What one training came to."""

    method: str
    budget: int
    seed: int
    steps: int
    updates: int
    energy: float
    seconds: float


def rows(done: list[Row], seeds: int) -> Iterator[Row]:
    """What is not done yet, trained one after another."""
    made = {(row.method, row.budget, row.seed) for row in done}
    for budget in BUDGETS:
        for name in CASES:
            for seed in range(seeds):
                if (name, budget, seed) not in made:
                    yield row_of(name, budget, seed)


def updates_of(name: str, budget: int) -> int:
    """How many updates a budget pays for."""
    method = method_of(name)
    left = budget - SAMPLES * PAIRS * EVALUATIONS["heun"] * method.needs.trajectories
    return max(1, round(left / (BATCH * method.passes(CASES[name].sampler).work(1))))


def row_of(name: str, budget: int, seed: int) -> Row:
    """One training and its score."""
    sampler, updates = CASES[name].sampler, updates_of(name, budget)
    base(seed)  # all methods share it, so none is charged for it
    start = time.perf_counter()
    players = trained(name, seed, updates)
    seconds = time.perf_counter() - start
    return Row(name, budget, seed, min(sampler.steps), updates, energy(players, seed), seconds)


def read(file: Path) -> list[Row]:
    """What a comparison of now would make, without a torn last line and rows of other updates."""
    made = [Row(**json.loads(line)) for line in whole_lines(file)]
    known = [row for row in made if row.method in CASES and row.budget in BUDGETS]
    return [row for row in known if row.updates == updates_of(row.method, row.budget)]


@cache
def kibibytes(name: str) -> float:
    """What the trained roles hold from update to update; the teacher is a formula."""
    case, few = CASES[name], CASES[name].training(1)
    trainer = trainer_of(method_of(name), base(0), case.sampler, few, 0)
    return sum(each.bytes for each in held_in_training(trainer)) / 2**10


def seeds_of(done: list[Row], name: str, budget: int) -> list[Row]:
    """The rows of a method at a budget, one a seed."""
    return [row for row in done if (row.method, row.budget) == (name, budget)]


def table(done: list[Row]) -> str:
    """The comparison as Markdown, the best of a budget first."""
    lines = ["| method | passes | steps | energy distance | updates | seconds | KiB |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for budget in BUDGETS:
        found = []
        for name in CASES:
            mine = seeds_of(done, name, budget)
            mean, low, high = over_seeds([row.energy for row in mine])
            seconds = fmean(row.seconds for row in mine)
            spread = f"{mean:.4f} ({low:.4f} – {high:.4f})"
            cells = f"{spread} | {mine[0].updates:,} | {seconds:.0f} | {kibibytes(name):,.0f}"
            found.append((mean, f"| `{name}` | {budget:,} | {mine[0].steps} | {cells} |"))
        lines += [line for _, line in sorted(found)]
    about = __doc__.partition("\n\n")[2]
    return "\n".join(["# The five-mode mixture at equal cost", "", about, *lines, ""])


def draw(file: Path, done: list[Row]) -> None:
    """Each method's energy distance, over seeds, and its seconds at each budget."""
    best = {n: fmean(row.energy for row in seeds_of(done, n, BUDGETS[-1])) for n in CASES}
    order = sorted(CASES, key=lambda name: best[name], reverse=True)
    figure = Figure(figsize=(12, 6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right, last = figure.subplots(1, 3, sharey=True, width_ratios=(2, 1, 0.6))
    last.plot([kibibytes(name) for name in order], range(len(order)), "o", color="grey")
    last.set(xlabel="KiB held in training", xlim=(0, None))
    for budget, colour, shift in zip(BUDGETS, ("C1", "C0"), (0.15, -0.15)):
        for place, name in enumerate(order):
            mine = seeds_of(done, name, budget)
            mean, low, high = over_seeds([row.energy for row in mine])
            left.plot((low, high), [place + shift] * 2, color=colour, linewidth=1.5)
            label = f"{budget:,} passes" if place == 0 else None
            left.plot(mean, place + shift, "o", color=colour, label=label)
            right.plot(fmean(row.seconds for row in mine), place + shift, "o", color=colour)
    left.axvspan(-NOISE, NOISE, color="grey", alpha=0.2, linewidth=0)
    steps = {name: min(CASES[name].sampler.steps) for name in order}
    names = [f"{n}, {steps[n]} step{'s' * (steps[n] > 1)}" for n in order]
    left.set_yticks(range(len(order)), names)
    left.set(xlabel="energy distance, mean and 95 % interval over seeds (grey: its own noise)")
    right.set(xlabel="seconds, one thread", xlim=(0, None))
    left.legend(loc="lower right")
    figure.savefig(file, dpi=120)


def main(out: Path, seeds: int) -> None:
    """Go on with the comparison in `out`, and write its table and plot."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "rows.jsonl"
    done = read(file)
    write_whole(file, "".join(json.dumps(asdict(row)) + "\n" for row in done))
    total = len(BUDGETS) * len(CASES) * seeds
    for row in rows(list(done), seeds):
        done.append(row)
        with file.open("a") as log:
            log.write(json.dumps(asdict(row)) + "\n")
        print(f"{len(done)} of {total}: {row.method}, {row.budget:,}: {row.energy:.4f}", flush=True)
    write_whole(out / "README.md", table(done))
    draw(out / "comparison.png", done)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
