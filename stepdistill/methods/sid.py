"""Score identity distillation, SiD (Zhou et al. 2024, arXiv:2404.04057): a Fisher divergence.

With x the student's sample, x_t = α x + σ ε, u = T(x_t, t) − F(x_t, t) of teacher and critic,

    L(θ) = E mean[ u · ((T(x_t, t) − x) − a u) ] / N,        N = mean|x − T(x_t, t)| of each sample,

with a gradient through x, x_t *and both networks*, which are frozen; N has none. For an exact
critic the loss is (1 − a) E‖u‖² at N = 1: near 0 at a = 1, whatever the student, so it measures no
progress. a = 1 is safe for a student that is too wide, a = 1.2 the published one. Needs no data.
The paper asks the student at σ/α = 2.5, not at pure noise: `sampler: {grid: {start: …}}`. Guidance
is the teacher's alone; SiD-LSG, which guides the critic in its training and here, is not there.
"""

from dataclasses import dataclass

from ..families.matching import Matching
from ..losses.score import normaliser
from ..method import Batch, Loss, Passes, Players
from ..schema import NotNegative
from ..solver import Sampler
from ..times import TimeLaw


@dataclass(frozen=True)
class Sid(Matching):
    """a: weight of ‖u‖².  ratio: critic turns for each of the student's.

    time, critic_time: laws of t in the two.
    """

    a: NotNegative = 1.2
    time: TimeLaw = TimeLaw("karras_index", high=0.8)
    critic_time: TimeLaw = TimeLaw("log_normal", mean=-1.2, std=1.2)

    paper = "SiD (arXiv:2404.04057)"

    def student_loss(self, p: Players, batch: Batch) -> Loss:
        made, x_t, t = self.noised(p, batch)
        x = made.x
        real, fake = p.teacher(x_t, t, batch.cond).x0, p.critic(x_t, t, batch.cond).x0
        u = real - fake
        loss = (u * ((real - x) - self.a * u) / normaliser(x, real)).mean()
        return Loss({"fisher": loss}, carry=made.detached())

    def passes(self, sampler: Sampler) -> Passes:
        before = self.steps_before(sampler)
        fresh = (self.ratio - 1) * (before + 1)
        # The critic is passed backwards too, and so is the teacher: a backward counts as two.
        return Passes(trained=2 + self.ratio, frozen=before + fresh, teacher=3)
