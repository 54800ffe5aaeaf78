"""The five-mode mixture: distillation with an exact teacher, scored by energy distance."""

import json
import time
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest
import torch

from eval import mixture
from eval.mixture import (
    CASES,
    base,
    distil,
    energy,
    energy_distance,
    five_modes,
    mlp_denoiser,
    trained,
)
from stepdistill.data.loader import stream
from stepdistill.jobs.benchmark import over_seeds
from stepdistill.methods.consistency import Consistency
from stepdistill.methods.dmd2 import Dmd2
from stepdistill.solver import Sampler
from stepdistill.training.trainer import Optimiser, Training

GATE = 0.012
RESULTS = Path(__file__).resolve().parents[2] / "eval" / "results" / "mixture"


def one_step_energy(seed: int, updates: int) -> float:
    """Consistency distillation of an MLP from scratch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = mlp_denoiser()
    rate = Optimiser(lr=1e-3, warmup=50, schedule="cosine")
    training = Training(updates=updates, batch=256, optimiser=rate, ema=0.99, target_ema=0.95)
    return energy(distil(Consistency(), start, Sampler((1,)), training, seed), seed)


def dmd2_energy(seed: int, updates: int) -> float:
    """DMD2 from an MLP that has seen the data."""
    rates = Optimiser(lr=5e-4, warmup=20, schedule="cosine"), Optimiser(lr=1e-3)
    training = Training(updates, 256, 1, *rates, ema=0.99)
    method = Dmd2(gan=0.03, gan_critic=0.1)
    return energy(distil(method, base(seed), Sampler((1,)), training, seed), seed)


def test_energy_distance_sees_a_lost_mode():
    real, other = (five_modes().sample(2000, stream(s))[0] for s in (1, 2))
    lost = other[(other - five_modes().means[0]).norm(dim=1) > 0.9]
    assert abs(energy_distance(real, other)) < 0.004 < GATE < energy_distance(real, lost)


def test_one_seed_in_a_short_run():
    assert one_step_energy(seed=0, updates=1200) <= 2 * GATE


@pytest.mark.full(shard="mixture")
@pytest.mark.parametrize("distil,updates", [(one_step_energy, 4000), (dmd2_energy, 800)])
def test_mean_of_three_seeds_within_two_minutes_each(distil, updates, figure):
    energies, seconds = [], []
    for seed in range(3):
        start = time.perf_counter()
        energies.append(distil(seed, updates))
        seconds.append(time.perf_counter() - start)
    figure("energy distance, mean of 3 seeds", fmean(energies))
    figure("slowest seed", max(seconds), "s")
    assert fmean(energies) <= GATE
    assert max(seconds) <= 120


FIRST = {"consistency", "dmd2"}  # trained above
MATCHING = ("dmd", "f_distill", "diff_instruct", "sid", "tdm", "ladd", "vsd")
FAMILIES = [name for name in CASES if name not in FIRST and name not in MATCHING]


def mean_of_seeds(name: str, figure) -> float:
    energies = [energy(trained(name, seed, CASES[name].updates), seed) for seed in range(3)]
    figure(f"energy distance, {name}, mean of 3 seeds", fmean(energies))
    return fmean(energies)


@pytest.mark.full(shard="mixture-families")
@pytest.mark.parametrize("case", FAMILIES)
def test_every_family_passes_the_gate(case, figure):
    assert mean_of_seeds(case, figure) <= GATE


@pytest.mark.full(shard="mixture-matching")
@pytest.mark.parametrize("case", MATCHING)
def test_every_way_of_matching_passes_the_gate(case, figure):
    assert mean_of_seeds(case, figure) <= GATE


def test_a_stopped_comparison_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(mixture, "BUDGETS", (20_000, 40_000))
    monkeypatch.setattr(mixture, "CASES", {name: CASES[name] for name in ("vsd", "tdm")})
    mixture.main(tmp_path, 1)
    whole = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert len(whole) == 4 and (tmp_path / "comparison.png").stat().st_size > 0
    stale = json.dumps(json.loads(whole[3]) | {"updates": 1})
    (tmp_path / "rows.jsonl").write_text("\n".join([*whole[:3], stale, whole[3][:20]]))
    mixture.main(tmp_path, 1)
    again = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert again[:3] == whole[:3]
    assert json.loads(again[3])["energy"] == json.loads(whole[3])["energy"]
    table = (tmp_path / "README.md").read_text()
    assert table.count("| `vsd` |") == table.count("| `tdm` |") == 2


def test_the_committed_comparison_is_whole_and_of_these_budgets():
    """Three rows of each method and budget, of as many updates as it pays for."""
    lines = (RESULTS / "rows.jsonl").read_text().splitlines()
    found = Counter((row.method, row.budget) for row in mixture.read(RESULTS / "rows.jsonl"))
    assert found == {(name, budget): 3 for name in CASES for budget in mixture.BUDGETS}
    assert len(lines) == found.total()


@pytest.mark.full(shard="mixture-comparison")
def test_the_committed_comparison_lies_inside_a_reruns_intervals(tmp_path, monkeypatch):
    """At the smaller budget."""
    monkeypatch.setattr(mixture, "BUDGETS", mixture.BUDGETS[:1])
    mixture.main(tmp_path, 3)
    committed, rerun = (energies(folder) for folder in (RESULTS, tmp_path))
    for name in CASES:
        _, low, high = over_seeds(rerun[name])
        assert low - mixture.NOISE <= fmean(committed[name]) <= high + mixture.NOISE, name


def energies(folder: Path) -> dict[str, list[float]]:
    """Energy distances of the seeds by method, at the first budget."""
    found: dict[str, list[float]] = {}
    for line in (folder / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["budget"] == mixture.BUDGETS[0]:
            found.setdefault(row["method"], []).append(row["energy"])
    return found
