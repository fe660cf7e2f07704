"""The matched start: a chain that denoises begins at the step whose noise is the observation's.

    (1 - alpha_bar_t) / alpha_bar_t = sigma^2,    x_t = sqrt(alpha_bar_t) y

Where everything was seen with independent noise no guidance is needed: sqrt(alpha_bar_t) y is a
draw from q(x_t | x_0) as it stands, so the plain chain from there is the posterior, exact up to the
model and the steps.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.process import BinomialProcess


@final
@dataclass(frozen=True)
class MatchedStart:
    """Where a chain that denoises begins.

    Attributes:
        t: the step, 1..T; `plan(..., start=t)` goes on from there.
        x_t: [N, *event], sqrt(alpha_bar_t) y; for bits y.
        noise: the noise that step stands for: a standard deviation in model units, or a flip
            probability. It differs from what was asked by the grid's spacing.
    """

    t: int
    x_t: Tensor
    noise: float


def matched_start(model: DiffusionModel, y: Tensor, noise: float) -> MatchedStart:
    """The step whose noise equals an observation's, y = x_0 + noise n (or bits flipped).

    Gaussian: (1 - alpha_bar_t) / alpha_bar_t = noise^2, the nearest such t on a logarithmic scale.
    Bits with base rate 1/2: alpha_bar_t = 1 - 2 noise, the nearest t.

    Args:
        model: the model.
        y: [N, *event], model units.
        noise: a standard deviation in model units, or a flip probability below 1/2; above 0.

    Raises:
        ValueError: no noise, flips no rarer than not, or bits with a base rate other than 1/2,
            whose process flips zeros and ones unequally.
    """
    if not 0 < noise < math.inf:
        raise ValueError(f"a matched start needs noise above 0, came {noise:g}")
    alpha_bar = model.process.alpha_bar[1:]
    if isinstance(model.process, BinomialProcess):
        if model.process.base_rate != 0.5:
            raise ValueError(
                "a matched start for flipped bits needs base rate 1/2, this process has "
                f"{model.process.base_rate:g} and flips zeros and ones unequally: "
                "use method 'product'"
            )
        if noise >= 0.5:
            raise ValueError(
                f"flips of probability 1/2 or more leave nothing to go by, came {noise:g}: "
                "for more than 1/2 invert the bits"
            )
        t = int((alpha_bar - (1 - 2 * noise)).abs().argmin()) + 1
        return MatchedStart(t, y, float(1 - alpha_bar[t - 1]) / 2)
    log_ratio = torch.log1p(-alpha_bar) - torch.log(alpha_bar)
    t = int((log_ratio - 2 * math.log(noise)).abs().argmin()) + 1
    at = float(alpha_bar[t - 1])
    return MatchedStart(t, math.sqrt(at) * y, math.sqrt((1 - at) / at))
