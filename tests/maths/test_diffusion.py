"""Training from data: the loss by hand, with and without the weight of a velocity.

Mutations that must each fail a test here: a weight without its cap; a weight on the error instead
of its square.
"""

import pytest
import torch
from cases import MLP, PREDICTIONS, PROCESSES, close, normal, scales

from stepdistill.data.loader import stream
from stepdistill.denoiser import Denoiser
from stepdistill.method import Batch, Players
from stepdistill.methods.diffusion import Diffusion


@pytest.mark.parametrize("most", [None, 3.0, 60.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["vp", "vp-linear", "rf", "trig", "ve"])
def test_the_loss_is_the_weighted_square(name, prediction, most):
    process, n = PROCESSES[name], 40
    student = Denoiser(MLP(2, slow=process.t_max), process, prediction)
    method, x0 = Diffusion(most=most), normal(1, n, 2)
    loss = method.loss(Players(student=student), Batch(x0, {}, stream(1), stream(2)))
    local = stream(2)
    t = method.time.draw(process, n, local)
    eps = torch.randn(x0.shape, generator=local).to(x0)
    alpha, sigma = (torch.tensor(c)[:, None] for c in scales(name, t.tolist()))
    x_t = alpha * x0 + sigma * eps
    made, meant = student(x_t, t), process.target(x0, eps, t, prediction)
    right = process.estimate(x_t, meant, t, prediction)
    gap = made.raw - meant
    velocity = (alpha * made.eps - sigma * made.x0) - (alpha * right.eps - sigma * right.x0)
    weight = process.loss_weight(prediction, t)[:, None]
    if most is not None:
        weight = (velocity / gap).square().clamp(max=most)
    expected = (weight * gap.square()).mean()
    close(loss.terms["denoising"], float(expected), rtol=1e-5)
