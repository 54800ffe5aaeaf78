"""How far a student's samples are from its teacher's, in numbers cheap enough to watch.

x are the student's samples, x° what the unguided teacher makes of the same noise in many steps, y
what the teacher makes of it with the guidance that the student is to imitate; m, s are the mean and
deviation of a channel:

    mean         |m − m°| / s°                 of the channel where it is largest
    std          s / s°                        of the channel where it is furthest from 1
    saturation   P(|x| > 1.3) − P(|x°| > 1.3)
    colour       C / C°,  C = E[max − min over the channels]                   three channels only
    diversity    D / D°,  D = E‖x − x′‖ of two samples of one class
    distance     (2 E‖x − y‖ − E‖x − x′‖ − E‖y − y′‖) / E‖y − y′‖              energy distance
                                                    (Székely and Rizzo 2013), 0 where x, y are alike
"""

import torch
from torch import Tensor

EDGE = 1.3  # beyond it a value is saturated; few-step students of a guidance of 3 reach 1.2
TINY = 1e-6


@torch.no_grad()
def signals_of(
    made: Tensor, plain: Tensor, guided: Tensor, labels: Tensor | None
) -> dict[str, float]:
    """Signals of a student's samples (n, c, …), beside the teacher's and the guided teacher's."""
    (mean, std), (mean0, std0) = channel_moments(made), channel_moments(plain)
    stds = ratio(std, std0)
    found = {
        "mean": ratio((mean - mean0).abs(), std0).max(),
        "std": stds[stds.log().abs().argmax()],
        "saturation": saturation(made) - saturation(plain),
        "diversity": ratio(diversity(made, labels), diversity(plain, labels)),
        "distance": energy_distance(made, guided),
    }
    if made.ndim == 4 and made.shape[1] == 3:
        found["colour"] = ratio(colour(made), colour(plain))
    return {name: float(value) for name, value in found.items()}


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b of numbers that are not negative, finite and positive even where they are 0."""
    return a.clamp(min=TINY) / b.clamp(min=TINY)


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (c,) of every channel of samples (n, c, …)."""
    channels = x.transpose(0, 1).flatten(1)
    return channels.mean(1), channels.std(1)


def saturation(x: Tensor) -> Tensor:
    """Share of values outside [−1.3, 1.3]."""
    return (x.abs() > EDGE).float().mean()


def colour(x: Tensor) -> Tensor:
    """Mean range of the channels of pixels (n, c, h, w)."""
    return (x.amax(1) - x.amin(1)).mean()


def diversity(x: Tensor, labels: Tensor | None) -> Tensor:
    """Mean distance of two samples (n, …) of one class, over the classes that have two."""
    x = x.flatten(1)
    groups = [x] if labels is None else [x[labels == c] for c in labels.unique()]
    return torch.stack([torch.pdist(g).mean() for g in groups if len(g) > 1]).mean()


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Energy distance of as many samples (n, …) of each, in units of y's own mean distance.

    Unbiased even if x and y come pairwise from the same noise, so it may fall slightly below 0.
    """
    xx, yy, xy = (mean_distance(*pair) for pair in ((x, x), (y, y), (x, y)))
    return (2 * xy - xx - yy) / yy.clamp(min=TINY)


def mean_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean distance of a sample of x and one of y of another noise."""
    # Through matrix products, small distances would lose their digits.
    exact, n = "donot_use_mm_for_euclid_dist", len(x)
    between = torch.cdist(x.flatten(1), y.flatten(1), compute_mode=exact)
    return (between.sum() - between.diagonal().sum()) / (n * (n - 1))
