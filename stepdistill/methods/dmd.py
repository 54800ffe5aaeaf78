"""Distribution matching distillation, DMD (Yin et al. 2023, arXiv:2311.18828), one step.

DMD2's direction, one critic turn to one of the student's, and a regression that keeps all modes, on
pairs of a noise z and the end y of the guided teacher's own trajectory from it, from the cache:

    L(θ) = pull(x, (F(x_t, t) − T(x_t, t)) / N) + λ d(G_θ(z), y),       N = mean|x − T(x_t, t)|

with x = G_θ of fresh noise. The pairs' ends take the place of data.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..families.matching import MATCHING, Matching
from ..losses.distances import Distance, distance, require_weights
from ..losses.score import matching_direction, pull
from ..method import Batch, Loss, Needs, Passes, Players
from ..process import NoiseProcess
from ..schema import NotNegative
from ..solver import Sampler, clean_end


@dataclass(frozen=True)
class Dmd(Matching):
    """regression: λ.  distance: d.  huber: c of a Huber distance.  ratio: critic turns for each of
    the student's.  time, critic_time: laws of t in the two."""

    regression: NotNegative = 0.25
    distance: Distance = "pseudo_huber"
    huber: NotNegative = 0.03

    needs = Needs(MATCHING, data=False, trajectories=True)
    paper = "DMD (arXiv:2311.18828)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance == "lpips":
            require_weights()

    def student_loss(self, p: Players, batch: Batch) -> Loss:
        made, x_t, t = self.noised(p, batch)
        x = made.x
        with torch.no_grad():
            real, fake = p.teacher(x_t, t, batch.cond).x0, p.critic(x_t, t, batch.cond).x0
        dmd = pull(x, matching_direction(x, real, fake))

        z, y = batch.path.x[:, 0], batch.path.x[:, -1]
        guess = clean_end(p.student, z, batch.path.times[0], batch.cond)
        regression = distance(self.distance, guess, y, self.huber).mean()
        terms = {"dmd": dmd, "regression": self.regression * regression}
        return Loss(terms, carry=made.detached())

    def trained_times(self, process: NoiseProcess, sampler: Sampler) -> Tensor:
        if sampler.steps != (1,):
            raise ValueError("dmd trains a student of one step: sampler.steps [1]")
        times = super().trained_times(process, sampler)
        if times[0] < process.t_max:
            raise ValueError("dmd's pairs begin at pure noise, so must its student: grid.start 1")
        return times

    def passes(self, sampler: Sampler) -> Passes:
        plain = super().passes(sampler)
        return plain._replace(trained=plain.trained + 1)
