"""Consistency training: the student learns from data what a teacher's ODE would have shown it.

Two noisy states of one sample and one noise must have one clean end; f maps there, f = x̂₀:

    L(θ) = E d( f_θ(x_t, t), f_θ⁻(x_s, s) ) / (t − s),   x_u = α_u x₀ + σ_u ε,
    f(x_{t_clean}, t_clean) = x₀,

θ⁻ the student itself (`target_ema: 0`; an average, unless that is written), never differentiated;
t − s shrinks in training. With

    pairs: {name: grid}    iCT, on a grid that is refined        (Song & Dhariwal, arXiv:2310.14189)
    pairs: {name: ratio}   ECT, from a diffusion model, s/t → 1    (Geng et al., arXiv:2406.14548)
    cut: σ′/α′             TCM: only t ≥ t′ is trained, on the stage's own frozen start below t′; a
                           share `boundary` of the pairs straddles t′ (Lee et al., arXiv:2410.14895)

d is √(‖·‖² + c²) − c, at c = 0 the plain norm, with ECT's `ratio`; iCT has c = 0.00054 √D. No
teacher: the stage may start from any network. TCM is a second stage, after one that has made a
consistency function, and its pairs go on where that one's have ended: s/t stays near 0.999.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..conditions import Cond
from ..families.pairs import Pairs, TimePair
from ..losses.distances import Distance, distance
from ..method import Batch, Loss, Method, Needs, Passes, Players, Turn
from ..process import NoiseProcess, per_sample
from ..schema import NotNegative, Share
from ..solver import Sampler, jump
from ..times import times_above

FINAL = Pairs(q=1000.0, stages=1)  # 1 − s/t is 0.001 far out, and 0.009 at most, throughout


@dataclass(frozen=True)
class ConsistencyTraining(Method):
    """pairs: the law of (t, s), None for ECT's from its beginning, or TCM's with a cut.  huber: c.
    cut: σ/α below which the start stays, 0 to train all.

    boundary: share of pairs (t′, s < t′).  boundary_weight: of their part of the loss.
    """

    pairs: Pairs | None = None
    distance: Distance = "pseudo_huber"
    huber: NotNegative = 0.0
    cut: NotNegative = 0.0
    boundary: Share = 0.25
    boundary_weight: NotNegative = 0.1

    paper = "iCT (arXiv:2310.14189), ECT (arXiv:2406.14548), TCM (arXiv:2410.14895)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cut > 0 and (self.law.name == "grid" or self.law.time != Pairs().time):
            raise ValueError("pairs: with a cut, t has a law of its own: name ratio, and no time")

    @property
    def law(self) -> Pairs:
        """The law of pairs at work."""
        return self.pairs or (FINAL if self.cut > 0 else Pairs())

    @property
    def needs(self) -> Needs:
        return Needs(("student", "target"), initial=self.cut > 0, boundary=True)

    def turns(self) -> tuple[Turn, ...]:
        return (Turn("student", self.loss),)

    def loss(self, p: Players, batch: Batch) -> Loss:
        process, eps = p.student.process, batch.noise()
        t, s = self.draw(process, batch)
        x_t, x_s = (process.add_noise(batch.x0, eps, u) for u in (t, s))

        end = torch.full_like(t, process.t_clean)
        guess = jump(p.student, x_t, t, end, batch.cond)
        with torch.no_grad():
            goal = self.goal(p, x_s, s, batch.cond)

        errors = distance(self.distance, guess, goal, self.huber) / (t - s).to(x_t)
        if self.cut == 0:
            return Loss({"consistency": errors.mean()})
        edge = (t <= self.cut_time(process)).to(errors)
        above, at = ((errors * w).sum() / w.sum().clamp(min=1) for w in (1 - edge, edge))
        return Loss({"consistency": above, "boundary": self.boundary_weight * at})

    def goal(self, p: Players, x_s: Tensor, s: Tensor, cond: Cond) -> Tensor:
        """f_θ⁻(x_s, s), of the frozen start below the cut."""
        end = torch.full_like(s, p.student.process.t_clean)
        goal = jump(p.target, x_s, s, end, cond)
        if self.cut == 0:
            return goal
        (below,) = per_sample(x_s, s < self.cut_time(p.student.process))
        return torch.where(below.bool(), jump(p.initial, x_s, s, end, cond), goal)

    def draw(self, process: NoiseProcess, batch: Batch) -> TimePair:
        """The times of a batch's pairs, (b,) each."""
        n, generator = len(batch.x0), batch.local
        if self.cut == 0:
            return self.law.draw(process, n, batch.progress, generator)
        first, t = self.cut_time(process), times_above(process, self.cut, n, generator)
        straddles = torch.rand(n, generator=generator) < self.boundary
        t = torch.where(straddles, first, t.clamp(min=first))
        return t, self.law.before(process, t, batch.progress)

    def cut_time(self, process: NoiseProcess) -> Tensor:
        """t′ ()."""
        return process.time_at(-torch.tensor([self.cut], dtype=torch.float64).log())[0]

    def trained_times(self, process: NoiseProcess, sampler: Sampler) -> None:
        for n in sampler.steps if self.cut > 0 else ():
            if float(sampler.times(process, n)[-1]) < float(self.cut_time(process)):
                raise ValueError(f"{n} steps go below the cut, where the student is not trained")

    def passes(self, sampler: Sampler) -> Passes:
        return Passes(trained=1, frozen=1 + (self.cut > 0), teacher=0)
