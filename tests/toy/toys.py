"""Small players and methods the tests train: a tiny UNet, a cycle like DMD2's, guided paths."""

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel
from torch import Tensor, nn

from stepdistill.conditions import Cond
from stepdistill.critic import Critic
from stepdistill.data.loader import Drawn, InMemory, Loader, stream
from stepdistill.denoiser import Denoiser, Guided
from stepdistill.exact import GaussianMixture
from stepdistill.losses.denoising import denoising_loss
from stepdistill.losses.gan import discriminator_loss, generator_loss
from stepdistill.losses.score import pull
from stepdistill.method import Batch, Loss, Method, Needs, Passes, Players, Sample, Turn
from stepdistill.networks.taps import Taps
from stepdistill.process import NoiseProcess
from stepdistill.solver import Sampler, Trajectory, ddim_step, rollout, start
from stepdistill.teachers.backbone import Asked
from stepdistill.teachers.codec import Pixels
from stepdistill.teachers.loading import few_step_class
from stepdistill.teachers.teacher import Teacher
from stepdistill.times import Grid, TimeLaw


def tiny_unet(
    seed: int = 0, classes: int | None = 3, widths: tuple[int, int] = (8, 8)
) -> UNet2DModel:
    """A UNet of a few thousand parameters on 8×8 pictures, every weight drawn afresh."""
    net = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=widths,
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


def tiny_teacher(seed: int = 0) -> Teacher:
    """A labelled flow teacher on 8×8 pictures."""
    pipeline = few_step_class()(tiny_unet(seed), FlowMatchEulerDiscreteScheduler())
    return Teacher.from_pipeline(pipeline)


def tiny_denoiser(seed: int = 0, process: NoiseProcess | None = None) -> Denoiser:
    """A labelled flow denoiser on 8×8 pictures, whose weights are still to be trained."""
    denoiser = tiny_teacher(seed).denoiser
    denoiser.net.requires_grad_(True)
    return replace(denoiser, process=process or denoiser.process)


def tiny_images(n: int = 64, seed: int = 0) -> Loader:
    """Random pictures with labels 0 and 1; 2 is the empty label."""
    g = stream(seed, 78)
    images = torch.rand(n, 1, 8, 8, generator=g) * 2 - 1
    labels = torch.randint(2, (n,), generator=g)
    return Loader(InMemory(images, labels), tiny_teacher(), dropout=0.2)


class Labelled:
    """What a loader asks of a teacher of pixels with labels, or without."""

    codec, device = Pixels(1), "cpu"

    def __init__(self, classes: int | None = None) -> None:
        self.classes = classes
        self.null = {} if classes is None else {"label": torch.tensor([classes])}

    def conditions(self, asked: Asked) -> Cond:
        return {} if asked is None else {"label": asked}


class Head(nn.Module):
    """Logits from the mean of a block's output."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features.mean((2, 3)))


def tiny_players(seed: int = 0) -> Players:
    """Student, teacher and critic with a realness head, all different tiny UNets."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = Critic(tiny_denoiser(seed + 1), Head(8), Taps(("mid_block",)))
    return Players(tiny_denoiser(seed + 2), tiny_denoiser(seed + 3), critic)


@dataclass(frozen=True)
class AdversarialCycle(Method):
    """A cycle like DMD2's: two critic turns on the sample carried from the student's turn."""

    gan: float = 0.1
    time: TimeLaw = TimeLaw("uniform", low=0.02, high=0.98)

    needs = Needs(("student", "teacher", "critic"), discriminator="critic")
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
        _, logits = p.critic.discriminate(x_t, t, batch.cond)
        dmd, gan = pull(x, fake - real), generator_loss(logits)
        carry = Sample(x.detach(), batch.cond)
        return Loss({"dmd": dmd, "gan": self.gan * gan}, carry=carry)

    def critic_loss(self, p: Players, batch: Batch) -> Loss:
        process, (x, cond, _) = p.critic.process, p.carry
        t = self.time.draw(process, len(x), batch.local)
        score = denoising_loss(p.critic.denoiser, x, batch.noise(), t, cond)
        _, fake = p.critic.discriminate(process.add_noise(x, batch.noise(), t), t, cond)
        _, real = p.critic.discriminate(
            process.add_noise(batch.x0, batch.noise(), t), t, batch.cond
        )
        gan = discriminator_loss(fake, real)
        return Loss({"score": score, "realness": self.gan * gan})


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
    cond = {"label": torch.randint(len(mixture.means), (n,), generator=generator)}
    guided, times = Guided(mixture, w, mixture.null), Grid().times(process, steps)
    noise = torch.randn(n, 2, generator=generator)
    states, guesses = [start(process, noise, times[0])], []
    for t, s in pairwise(times):
        at_t = guided(states[-1], t.expand(n), cond)
        guesses.append(at_t.x0)
        states.append(ddim_step(process, at_t, s.expand(n)))
    path = Trajectory(times, torch.stack(states, 1), torch.stack(guesses, 1), w)
    return Drawn(states[-1], cond, path)
