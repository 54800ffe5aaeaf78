"""Small players and methods the tests train: a tiny UNet, an MLP, the five-mode mixture."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from stepdistill.backbones.labelled import call_labelled
from stepdistill.critic import Critic, denoising_loss, fooling_loss, pull, realness_loss
from stepdistill.data import Drawn, Images, stream
from stepdistill.denoiser import Denoiser, GaussianMixture, Guided
from stepdistill.method import Batch, Loss, Method, Passes, Players, Sample, Trajectory, Turn
from stepdistill.process import NoiseProcess, Prediction, RectifiedFlow
from stepdistill.solver import Sampler, ddim_step, rollout, start
from stepdistill.times import Grid, TimeLaw


def tiny_unet(seed: int = 0, classes: int | None = 3) -> UNet2DModel:
    """A UNet of a few thousand parameters on 8×8 pictures, every weight drawn afresh."""
    net = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        add_attention=False,
        num_class_embeds=classes,
    ).eval()
    generator = stream(seed, 77)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.15 + (p.ndim == 1) * 0.5)
    return net


def tiny_denoiser(seed: int = 0, process: NoiseProcess | None = None) -> Denoiser:
    """A labelled flow denoiser on 8×8 pictures."""
    return Denoiser(tiny_unet(seed), process or RectifiedFlow(), "flow", call_labelled, 1000.0)


def tiny_images(n: int = 64, seed: int = 0) -> Images:
    """Random pictures with labels 0 and 1; 2 is the empty label."""
    g = stream(seed, 78)
    images = torch.rand(n, 1, 8, 8, generator=g) * 2 - 1
    return Images(images, torch.randint(2, (n,), generator=g), null=2, dropout=0.2)


class Head(nn.Module):
    """Logits from the mean of a block's output."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features.mean((2, 3)))


def cast(seed: int = 0) -> Players:
    """Student, teacher and critic with a realness head, all different tiny UNets."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = tiny_denoiser(seed + 1)
        critic = Critic(judge, Head(8), [judge.net.mid_block])
    return Players(tiny_denoiser(seed + 2), tiny_denoiser(seed + 3), critic)


@dataclass(frozen=True)
class AdversarialCycle(Method):
    """A cycle like DMD2's: two critic turns on the sample carried from the student's turn."""

    gan: float = 0.1
    time: TimeLaw = TimeLaw("uniform", low=0.02, high=0.98)

    roles = ("student", "teacher", "critic")
    paper = "none: a test"

    def turns(self) -> tuple[Turn, ...]:
        critic = Turn("critic", self.critic_loss)
        return (Turn("student", self.student_loss), critic, critic)

    def passes(self, sampler: Sampler) -> Passes:
        return Passes(trained=1, frozen=0, teacher=1)

    def student_loss(self, p: Players, batch: Batch) -> Loss:
        steps = 1 + int(torch.randint(2, (), generator=batch.shared))
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
        x = rollout(p.student, batch.noise(), times, batch.cond, batch.local)
        t = self.time.draw(p.student.process, len(x), batch.local)
        x_t = p.student.process.add_noise(x, batch.noise(), t)
        with torch.no_grad():
            real, fake = p.teacher(x_t, t, batch.cond).x0, p.critic(x_t, t, batch.cond).x0
        _, logits = p.critic.judge(x_t, t, batch.cond)
        dmd, gan = pull(x, fake - real), fooling_loss(logits)
        carry = Sample(x.detach(), batch.cond)
        return Loss({"dmd": dmd, "gan": self.gan * gan}, carry=carry)

    def critic_loss(self, p: Players, batch: Batch) -> Loss:
        process, (x, cond) = p.critic.process, p.carry
        t = self.time.draw(process, len(x), batch.local)
        score = denoising_loss(p.critic.denoiser, x, batch.noise(), t, cond)
        _, fake = p.critic.judge(process.add_noise(x, batch.noise(), t), t, cond)
        _, real = p.critic.judge(process.add_noise(batch.x0, batch.noise(), t), t, batch.cond)
        gan = realness_loss(fake, real)
        return Loss({"score": score, "realness": self.gan * gan})


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


def five_modes(process: NoiseProcess | None = None) -> GaussianMixture:
    """The five-mode ring: radius 1.5, std 0.35, weights 0.3, 0.25, 0.2, 0.15, 0.1."""
    angle = torch.arange(5) * (2 * torch.pi / 5)
    means = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
    weights = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1])
    return GaussianMixture(means, 0.35, process or RectifiedFlow(), weights)


@dataclass(frozen=True)
class MixtureData:
    """Fresh exact samples, without conditions, or with the components they come from."""

    mixture: GaussianMixture
    labelled: bool = False

    def batch(self, number: int, size: int, local: torch.Generator) -> Drawn:
        x, k = self.mixture.sample(size, local)
        return Drawn(x, k if self.labelled else None)


def guided_paths(
    mixture: GaussianMixture,
    n: int,
    guidance: tuple[float, float],
    generator: torch.Generator,
    steps: int = 16,
) -> Drawn:
    """Trajectories of the guided mixture, as a cache holds them."""
    process, (low, high) = mixture.process, guidance
    w = low + (high - low) * torch.rand(n, generator=generator)
    cond = torch.randint(len(mixture.means), (n,), generator=generator)
    guided, times = Guided(mixture, w, mixture.null), Grid().times(process, steps)
    noise = torch.randn(n, 2, generator=generator)
    states, guesses = [start(process, noise, times[0])], []
    for t, s in pairwise(times):
        at_t = guided(states[-1], t.expand(n), cond)
        guesses.append(at_t.x0)
        states.append(ddim_step(process, at_t, s.expand(n)))
    path = Trajectory(times, torch.stack(states, 1), torch.stack(guesses, 1), w)
    return Drawn(states[-1], cond, path)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|a − b| − E|a − a′| − E|b − b′|, without self-pairs."""
    within = [torch.pdist(x.double()).mean() for x in (a, b)]
    return float(2 * torch.cdist(a.double(), b.double()).mean() - within[0] - within[1])


def mlp_denoiser(process: NoiseProcess | None = None, prediction: Prediction = "flow") -> Denoiser:
    """An untrained MLP on two numbers."""
    process = process or RectifiedFlow()
    parts = {"block": "body.3", "embedding": "body.0", "places": ("body.1", "body.3")}
    return Denoiser(MLP(), process, prediction, **parts)


class MixtureTeacher:
    """What `cast` reads of a teacher: an exact one, and the network that players start from."""

    event = (2,)
    w = 1.0

    def __init__(self, mixture: GaussianMixture, base: Denoiser, labelled: bool = False) -> None:
        self.guided = Guided(mixture, 1.0, mixture.null) if labelled else mixture
        self.denoiser, self.classes = base, len(mixture.means) if labelled else None

    def labels(self, n: int) -> Tensor | None:
        return None if self.classes is None else torch.arange(n) % self.classes


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
        loss = denoising_loss(student, x0, torch.randn(128, 2, generator=g), t, None)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return student
