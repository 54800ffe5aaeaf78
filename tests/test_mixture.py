"""The five-mode mixture: distillation with an exact teacher, scored by energy distance."""

import time
from statistics import fmean

import pytest
import torch
from accelerate import Accelerator
from toys import (
    MixtureData,
    MixtureTeacher,
    energy_distance,
    five_modes,
    mlp_denoiser,
    pretrained,
)

from stepdistill.adapters import load_own
from stepdistill.data import stream
from stepdistill.denoiser import Denoiser
from stepdistill.method import load
from stepdistill.methods.consistency import Consistency
from stepdistill.methods.dmd2 import Dmd2
from stepdistill.pairs import Pairs
from stepdistill.roles import Casting, cast
from stepdistill.solver import Sampler
from stepdistill.times import Grid, TimeLaw
from stepdistill.trainer import Optimiser, Trainer, Training

SAMPLES = 4000
GATE = 0.012


def one_step_energy(seed: int, updates: int) -> float:
    """Distil an MLP from scratch; the energy distance of its one-step samples to the truth."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = mlp_denoiser()
    mixture, method = five_modes(), Consistency()
    rate = Optimiser(lr=1e-3, warmup=50, schedule="cosine")
    training = Training(updates=updates, batch=256, optimiser=rate, average=0.99, target=0.95)
    teacher = MixtureTeacher(mixture, student)
    players = cast(method, teacher, Casting(target=training.target))
    data = MixtureData(mixture)
    trainer = Trainer(method, players, data, training, Accelerator(cpu=True), (seed,))
    while not trainer.done:
        trainer.step()
    load_own(players.student.net, trainer.averaged())
    return energy(players.student, seed)


def dmd2_energy(seed: int, updates: int) -> float:
    """DMD2 from an MLP that has seen the data; its one-step samples' energy distance."""
    method = Dmd2(gan=0.03, gan_critic=0.1)
    rates = Optimiser(lr=5e-4, warmup=20, schedule="cosine"), Optimiser(lr=1e-3)
    training = Training(updates, 256, 1, *rates, average=0.99)
    teacher = MixtureTeacher(five_modes(), pretrained(updates=1500, seed=seed))
    players = cast(method, teacher, Casting(Sampler((1,)), seed=(seed,)))
    data = MixtureData(five_modes())
    trainer = Trainer(method, players, data, training, Accelerator(cpu=True), (seed,))
    while not trainer.done:
        trainer.step()
    load_own(players.student.net, trainer.averaged())
    return energy(players.student, seed)


def energy(student: Denoiser, seed: int) -> float:
    """Of one-step samples, to the truth."""
    noise = torch.randn(SAMPLES, 2, generator=stream(seed, 5))
    with torch.no_grad():
        made = Sampler().draw(student, noise, 1, None, stream(seed, 6))
    return energy_distance(made, five_modes().sample(SAMPLES, stream(seed, 7))[0])


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


HUBER = {"steps": 18, "solver": "heun", "distance": "pseudo_huber", "huber": 0.03}
# method → (settings, sampler, learning rate, updates, target decay); TCD and TSCD are not told
# where a jump goes, which costs them variance in long jumps: they are asked for four, and TCD for
# the noise between them that gives it back.
FAMILIES = {
    "pcm": ({**HUBER, "phases": 1}, Sampler((1,)), 1e-3, 2000, 0.0),
    "pcm, two phases": ({**HUBER, "phases": 2}, Sampler((2,), gamma=0.0), 1e-3, 2000, 0.0),
    "lcm": (HUBER, Sampler((1,)), 1e-3, 2000, 0.95),
    "tcd": (HUBER, Sampler((4,), Grid(of=18), gamma=0.7), 1e-3, 2000, 0.95),
    "tscd": (
        {**HUBER, "segments": 2},
        Sampler((4,), Grid(of=18), gamma=0.0),
        1e-3,
        2000,
        0.95,
    ),
    "ctm": ({"steps": 8, "grid": Grid(), "denoising": 0.3}, Sampler((1,)), 1e-3, 2000, 0.95),
    "scm": (
        {"sigma_data": 1.0, "time": TimeLaw("log_normal", mean=0.0, std=1.6), "warmup": 0.5},
        Sampler((1,)),
        5e-4,
        3000,
        0.0,
    ),
    "consistency_training": (
        {"pairs": Pairs(time=TimeLaw()), "huber": 0.03},
        Sampler((1,)),
        1e-3,
        6000,
        0.0,
    ),
}


def family_energy(case: str, seed: int) -> float:
    """From an MLP that has seen the data; the energy distance of its fewest steps' samples."""
    settings, sampler, lr, updates, target = FAMILIES[case]
    method = load(case.partition(",")[0])(**settings)
    rate = Optimiser(lr=lr, warmup=50, schedule="cosine")
    training = Training(updates, 256, 1, rate, average=0.998, target=target)
    casting = Casting(sampler, target=target, extras=method.extras, seed=(seed,))
    mixture = five_modes()
    base = pretrained(updates=1500, seed=seed)
    players = cast(method, MixtureTeacher(mixture, base), casting)
    data, accelerator = MixtureData(mixture), Accelerator(cpu=True)
    trainer = Trainer(method, players, data, training, accelerator, (seed,))
    while not trainer.done:
        trainer.step()
    load_own(players.student.net, trainer.averaged())
    noise = torch.randn(SAMPLES, 2, generator=stream(seed, 5))
    with torch.no_grad():
        made = sampler.draw(players.student, noise, sampler.steps[0], None, stream(seed, 6))
    return energy_distance(made, mixture.sample(SAMPLES, stream(seed, 7))[0])


@pytest.mark.full(shard="mixture-families")
@pytest.mark.parametrize("case", FAMILIES)
def test_every_family_passes_the_gate(case, figure):
    energies = [family_energy(case, seed) for seed in range(3)]
    figure(f"energy distance, {case}, mean of 3 seeds", fmean(energies))
    assert fmean(energies) <= GATE
