"""Observations r(x_0), and kernels multiplied by them (Sohl-Dickstein et al. 2015, Section 2.5).

    p~(x_s | x_t) = p(x_s | x_t) r(x_s) / Z~_t(x_t)

`method="product"` keeps r the same at every step: the paper's, and biased, for r says of x_s what
was seen of x_0. Where everything was seen with independent noise, no guidance is needed: the chain
starts at the step whose noise is the observation's (`matched_start`), exact up to the model and the
steps.
"""

import math
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from diffusion.distributions import Bernoulli, Distribution, Normal
from diffusion.model import DiffusionModel
from diffusion.process import BinomialProcess, Process


@final
@dataclass(frozen=True)
class Observation:
    """What was seen of N data, as a factor over x_0 in model units.

    Attributes:
        factor: [N, *event]; infinite variance, or a logit of 0, where nothing was seen.
    """

    factor: Distribution

    @classmethod
    def of_reals(cls, y: Tensor, known: Tensor, noise_std: Tensor | float = 0.0) -> Self:
        """y = x_0 + noise_std n where known; with 0 the values themselves.

        Args:
            y: [N, *event], model units; ignored where not known.
            known: bool [N, *event].
            noise_std: model units, a number or broadcastable to `y`.
        """
        var = torch.as_tensor(noise_std, dtype=y.dtype, device=y.device).square()
        seen = torch.where(known, var, torch.inf)
        return cls(Normal(torch.where(known, y, 0.0), seen.expand_as(y).contiguous()))

    @classmethod
    def of_bits(cls, y: Tensor, known: Tensor, flip_probability: float = 0.0) -> Self:
        """y = x_0, each bit flipped with `flip_probability` in [0, 1/2), where known."""
        strength = math.inf if flip_probability == 0 else math.log(1 / flip_probability - 1)
        logits = torch.where(y > 0.5, strength, -strength).to(y.dtype)
        return cls(Bernoulli(torch.where(known, logits, 0.0)))

    @classmethod
    def nothing(cls, process: Process, event: tuple[int, ...], rows: int) -> Self:
        """r = 1: sampling is posterior sampling with nothing seen."""
        empty = torch.zeros(rows, *event, device=process.beta.device)
        if isinstance(process, BinomialProcess):
            return cls(Bernoulli(empty))
        return cls(Normal(empty, torch.full_like(empty, torch.inf)))


def restrict(kernel: Distribution, factor: Distribution) -> Distribution:
    """`kernel.multiply(factor)` without its normaliser; both of the process's own family."""
    return kernel.multiply(factor)[0]


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
