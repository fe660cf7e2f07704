"""Proposals and kernels multiplied by a factor whose logarithm is quadratic, element by element:

    f(x) = exp(c + sum_i (h_i x_i - k_i x_i^2 / 2)),    of bits k = 0

Every Normal, every Bernoulli, and every product or power of them is such a factor, 1 / q(x_t | x_s)
as a function of x_s too, so products of models stay in closed form (Sohl-Dickstein et al. 2015,
Section 2.5). To `join` is to multiply what is aimed at; to `steer` is to draw elsewhere and aim at
the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.conditioned import Conditioned
from diffusion.distributions import LOG_2PI, Bernoulli, Distribution, Normal
from diffusion.noise import Noise
from diffusion.posterior.proposal import Independent, Proposal, joined
from diffusion.process import GaussianProcess, Process, per_row

#: Why a product of models is not to be had beside some observations.
TIED = (
    "a product of models is worked out element by element, and what was seen ties them together: "
    "observe elements (operator 'mask'), with covariance 'diagonal' or 'independent'"
)
#: A product is at most so many times as wide as what was multiplied: where a factor grows faster
#: than a Normal falls there is none, and weights make up for it.
_WIDEST = 4.0


@final
@dataclass(frozen=True)
class Tilt:
    """f, of B rows.

    Attributes:
        constant: c, float64 [B].
        linear: h, float64 [B, *event].
        curvature: k, float64, broadcastable to `linear`; of bits 0.
    """

    constant: Tensor
    linear: Tensor
    curvature: Tensor

    @classmethod
    def of(cls, density: Distribution) -> Self:
        """A density or probability as a factor."""
        if isinstance(density, Normal):
            mean = density.mean.double()
            var = density.var.double().expand_as(mean)
            constant = -0.5 * _sum(mean.square() / var + var.log() + LOG_2PI)
            return cls(constant, mean / var, 1 / var)
        assert isinstance(density, Bernoulli)  # there are two families
        logits = density.logits.double()
        return cls(_sum(F.logsigmoid(-logits)), logits, torch.zeros_like(logits))

    @classmethod
    def of_likelihood(cls, process: Process, x_t: Tensor, t: Tensor, s: Tensor) -> Self:
        """q(x_t | x_s) as a function of x_s."""
        if isinstance(process, GaussianProcess):
            rate, x = per_row(process.rate(t, s), x_t.double()), x_t.double()
            var = 1 - rate
            constant = -0.5 * _sum(x.square() / var + (var.log() + LOG_2PI).expand_as(x))
            return cls(constant, rate.sqrt() * x / var, (rate / var).expand_as(x))
        zero, one = (
            _log_bits(process.forward_kernel(torch.full_like(x_t, bit), t, s), x_t)
            for bit in (0.0, 1.0)
        )
        return cls(_sum(zero), one - zero, torch.zeros_like(zero))

    def times(self, other: Self, power: Tensor | float = 1.0) -> Self:
        """f g^power; power a number, or float64 [B]."""
        power = torch.as_tensor(power, dtype=torch.float64, device=self.constant.device)
        each = per_row(power.reshape(-1), self.linear)
        return type(self)(
            self.constant + power * other.constant,
            self.linear + each * other.linear,
            self.curvature + each * other.curvature,
        )

    def log(self, x: Tensor) -> Tensor:
        """log f(x), nats, float64 [B]."""
        x = x.double()
        return self.constant + _sum(self.linear * x - self.curvature * x.square() / 2)

    def multiply(self, density: Distribution) -> tuple[Distribution, Tensor, Tensor]:
        """The normalised product p f / Z; log Z, float64 [B]; and what of the curvature is missing.

        With g = h - k mean the slope of log f at the mean: var' = var / (1 + k var), mean' = mean +
        var' g and log Z = log f(mean) + g^2 var' / 2 - log(1 + k var) / 2. Where 1 + k var is below
        1 / 4 the product is none or hardly one: then 1 / 4 is taken and e, float64 [B, *event],
        0 elsewhere, says that p f / Z = p' exp(e (x - mean)^2 / 2).
        """
        if isinstance(density, Bernoulli):
            logits = density.logits.double()
            one, zero = F.logsigmoid(logits) + self.linear, F.logsigmoid(-logits)
            log_z = self.constant + _sum(torch.logaddexp(one, zero))
            product = Bernoulli((logits + self.linear).to(density.logits.dtype))
            return product, log_z, torch.zeros_like(logits)
        assert isinstance(density, Normal)  # there are two families
        mean = density.mean.double()
        var = density.var.double().expand_as(mean)
        narrow = (1 + self.curvature * var).clamp_min(1 / _WIDEST)
        slope, left = self.linear - self.curvature * mean, var / narrow
        log_z = self.log(mean) + 0.5 * _sum(slope.square() * left - narrow.log())
        missing = torch.where(var > 0, narrow - 1 - self.curvature * var, 0.0) / var.clamp_min(
            1e-300
        )
        dtype = density.mean.dtype
        return Normal((mean + left * slope).to(dtype), left.to(dtype)), log_z, missing


@final
@dataclass(frozen=True)
class Joined:
    """A proposal q multiplied by f, as what it aims at is: q' = q f / Z.

    Attributes:
        inner: q.
        drawn: q'.
        log_z: log Z, float64 [B].
        missing: of `Tilt.multiply`, and the mean that it is about.
        mean: likewise.
    """

    inner: Proposal
    drawn: Distribution
    log_z: Tensor
    missing: Tensor
    mean: Tensor

    def sample(self, noise: Noise) -> Tensor:
        """One draw a row, [B, *event]."""
        return self.drawn.sample(noise)

    def log_ratio(self, x: Tensor) -> Tensor:
        """log q'(x) - log p(x) f(x), nats, float64 [B]."""
        return self.inner.log_ratio(x) - self.log_z - self.owed(x)

    def owed(self, x: Tensor) -> Tensor:
        """log q(x) f(x) / (Z q'(x)), nats, float64 [B]; 0 where the product is exact."""
        return 0.5 * _sum(self.missing * (x.double() - self.mean.double()).square())

    def rows(self, index: Tensor) -> Self:
        """Some of the rows, or one several times; int64 [b]."""
        parts = (part[index] for part in (self.log_z, self.missing, self.mean))
        return type(self)(self.inner.rows(index), self.drawn.rows(index), *parts)

    @classmethod
    def joined(cls, parts: "Sequence[Joined]") -> Self:
        """Their rows in turn."""
        held = [(part.log_z, part.missing, part.mean) for part in parts]
        drawn = type(parts[0].drawn).joined([part.drawn for part in parts])
        return cls(
            joined([part.inner for part in parts]),
            drawn,
            *(torch.cat(column) for column in zip(*held, strict=True)),
        )


@final
@dataclass(frozen=True)
class Steered:
    """A proposal q drawn elsewhere, q' = q exp(slope x) / E_q exp(slope x); it aims at the same.

    Attributes:
        inner: q.
        drawn: q'.
        slope: float64 [B, *event].
        log_z: log E_q exp(slope x), float64 [B].
    """

    inner: Proposal
    drawn: Distribution | Conditioned
    slope: Tensor
    log_z: Tensor

    def sample(self, noise: Noise) -> Tensor:
        """One draw a row, [B, *event]."""
        return self.drawn.sample(noise)

    def log_ratio(self, x: Tensor) -> Tensor:
        """log q'(x) - log p(x), nats, float64 [B]."""
        return self.inner.log_ratio(x) + _sum(self.slope * x.double()) - self.log_z

    def rows(self, index: Tensor) -> Self:
        """Some of the rows, or one several times; int64 [b]."""
        parts = (part[index] for part in (self.slope, self.log_z))
        return type(self)(self.inner.rows(index), self.drawn.rows(index), *parts)

    @classmethod
    def joined(cls, parts: "Sequence[Steered]") -> Self:
        """Their rows in turn."""
        held = [(part.slope, part.log_z) for part in parts]
        kind: Any = type(parts[0].drawn)  # alike in all of them
        return cls(
            joined([part.inner for part in parts]),
            kind.joined([part.drawn for part in parts]),
            *(torch.cat(column) for column in zip(*held, strict=True)),
        )


def join(proposal: Proposal, tilt: Tilt) -> Joined:
    """The proposal for p f of one for p.

    Raises:
        ValueError: a proposal whose elements depend on each other.
    """
    drawn = _drawn(proposal)
    if isinstance(drawn, Conditioned):
        raise ValueError(TIED)
    product, log_z, missing = tilt.multiply(drawn)
    mean = drawn.mean if isinstance(drawn, Normal) else torch.zeros_like(missing)
    return Joined(proposal, product, log_z, missing, mean)


def steer(proposal: Proposal, slope: Tensor) -> Steered:
    """The proposal tilted by exp(slope x), slope [B, *event]."""
    slope, drawn = slope.double(), _drawn(proposal)
    if isinstance(drawn, Conditioned):
        moved, log_z = drawn.tilted(slope)
        return Steered(proposal, moved, slope, log_z)
    zero = torch.zeros_like(slope)
    product, log_z, _ = Tilt(zero.flatten(1).sum(1), slope, zero).multiply(drawn)
    return Steered(proposal, product, slope, log_z)


def kernel_of(proposal: Proposal) -> Distribution:
    """p(x_s | x_t), which the proposal stands beside."""
    if isinstance(proposal, Independent):
        return proposal.kernel
    if isinstance(proposal, Conditioned):
        return proposal.base
    assert isinstance(proposal, Joined | Steered)  # there are four
    return kernel_of(proposal.inner)


def _drawn(proposal: Proposal) -> Distribution | Conditioned:
    """What a proposal is drawn from."""
    if isinstance(proposal, Independent):
        return proposal.proposal
    if isinstance(proposal, Conditioned):
        return proposal
    assert isinstance(proposal, Joined | Steered)  # there are four
    return proposal.drawn


def _log_bits(density: Distribution, x: Tensor) -> Tensor:
    """log-probability of each bit of x, float64 [B, *event]."""
    assert isinstance(density, Bernoulli)
    logits = density.logits.double()
    return F.logsigmoid(torch.where(x > 0.5, logits, -logits))


def _sum(x: Tensor) -> Tensor:
    """Sum over everything but the rows."""
    return x.flatten(1).sum(1)
