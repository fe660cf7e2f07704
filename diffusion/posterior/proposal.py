"""Proposals of a particle's next step, beside the kernel that they replace, and factors of them.

A factor whose logarithm is quadratic, element by element,

    f(x) = exp(c + sum_i (h_i x_i - k_i x_i^2 / 2)),    of bits k = 0

is held in canonical (information) form (`Tilt`). Every Normal, every Bernoulli, and every product
or power of them is such a factor, 1 / q(x_t | x_s) as a function of x_s too, so products of models
stay in closed form (Sohl-Dickstein et al. 2015, Section 2.5). To `join` is to multiply what is
aimed at; to `steer` is to draw elsewhere and aim at the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, final

import torch
from torch import Tensor

from diffusion.conditioned import Conditioned
from diffusion.distributions import Distribution, Tilt
from diffusion.noise import Noise


class Proposal(Protocol):
    """q(x_s | x_t, y), B rows, beside the kernel p(x_s | x_t) that it replaces."""

    def sample(self, noise: Noise) -> Tensor:
        """One draw a row, [B, *event]."""

    def log_ratio(self, x: Tensor) -> Tensor:
        """log q(x) - log p(x), nats, float64 [B]."""

    def rows(self, index: Tensor) -> Self:
        """Some of the rows, or one several times; int64 [b]."""

    @classmethod
    def joined(cls, parts: "Sequence[Self]") -> Self:
        """Their rows in turn."""


def joined(parts: Sequence[Proposal]) -> Proposal:
    """Proposals of the same kind, their rows in turn."""
    kind: Any = type(parts[0])
    found: Proposal = kind.joined(parts)
    return found


@final
@dataclass(frozen=True)
class Independent:
    """A proposal of the kernel's own family, element by element."""

    kernel: Distribution
    proposal: Distribution

    def sample(self, noise: Noise) -> Tensor:
        """One draw a row, [B, *event]."""
        return self.proposal.sample(noise)

    def log_ratio(self, x: Tensor) -> Tensor:
        """log q(x) - log p(x), nats, float64 [B]."""
        q, p = (part.double().log_prob(x.double()) for part in (self.proposal, self.kernel))
        return q - p

    def rows(self, index: Tensor) -> Self:
        """Some of the rows, or one several times; int64 [b]."""
        return type(self)(self.kernel.rows(index), self.proposal.rows(index))

    @classmethod
    def joined(cls, parts: "Sequence[Independent]") -> Self:
        """Their rows in turn."""
        kernel, proposal = parts[0].kernel, parts[0].proposal
        return cls(
            type(kernel).joined([part.kernel for part in parts]),
            type(proposal).joined([part.proposal for part in parts]),
        )


#: log of what draws x_0 [b, *event] of rows int64 [b] still weigh, nats, float64 [b].
Left = Callable[[Tensor, Tensor], Tensor]


@final
@dataclass(frozen=True)
class TwistValue:
    """What a twist says of B rows at x_t.

    Attributes:
        log_r: log r_t(x_t), nats, float64 [B].
        proposal: of x_s.
        x_0: what the network takes x_0 to be, [B, *event].
        left: at the last step, log of p(x_0 | x_t) r(x_0) / (q(x_0) r_t(x_t)); None where it is 0.
    """

    log_r: Tensor
    proposal: Proposal
    x_0: Tensor
    left: Left | None = None

    def where(self, good: Tensor, other: "TwistValue") -> "TwistValue":
        """This where `good`, bool [B], else the other of the same x_0hat and kind of proposal."""
        place = (
            good.logical_not() * len(good) + torch.arange(len(good), device=good.device)
        ).long()
        log_r = torch.where(good, self.log_r, other.log_r)
        return TwistValue(log_r, joined([self.proposal, other.proposal]).rows(place), self.x_0)

    @classmethod
    def joined(cls, parts: "Sequence[TwistValue]") -> Self:
        """Looks of the same kind, their rows in turn."""
        if len(parts) == 1:
            return parts[0]
        log_r, x_0 = (
            torch.cat(column) for column in zip(*((p.log_r, p.x_0) for p in parts), strict=True)
        )
        proposal = joined([part.proposal for part in parts])
        sizes = [len(part.log_r) for part in parts]
        lefts = [part.left for part in parts if part.left is not None]
        return cls(log_r, proposal, x_0, _left_of(lefts, sizes) if lefts else None)


def _left_of(lefts: Sequence[Left], sizes: Sequence[int]) -> Left:
    """What is left of values of so many rows each, side by side."""

    def left(x_0: Tensor, index: Tensor) -> Tensor:
        found = torch.empty(len(index), dtype=torch.float64, device=x_0.device)
        begin = 0
        for of, size in zip(lefts, sizes, strict=True):
            mine = ((index >= begin) & (index < begin + size)).nonzero()[:, 0]
            if len(mine):
                found[mine] = of(x_0[mine], index[mine] - begin)
            begin += size
        return found

    return left


#: Why a product of models is not to be had beside some observations.
TIED = (
    "a product of models is worked out element by element, and what was seen ties them together: "
    "observe elements (operator 'mask'), with covariance 'diagonal' or 'independent'"
)


@final
@dataclass(frozen=True)
class Joined:
    """A proposal q multiplied by f, as what it aims at is: q' = q f / Z.

    Attributes:
        inner: q.
        drawn: q'.
        log_z: log Z, float64 [B].
        missing: of `Distribution.tilted`, and the mean that it is about.
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
    product, log_z, missing = drawn.tilted(tilt)
    return Joined(proposal, product, log_z, missing, drawn.mean)


def steer(proposal: Proposal, slope: Tensor) -> Steered:
    """The proposal tilted by exp(slope x), slope [B, *event]."""
    slope, drawn = slope.double(), _drawn(proposal)
    if isinstance(drawn, Conditioned):
        moved, log_z = drawn.tilted(slope)
        return Steered(proposal, moved, slope, log_z)
    zero = torch.zeros_like(slope)
    product, log_z, _ = drawn.tilted(Tilt(zero.flatten(1).sum(1), slope, zero))
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


def _sum(x: Tensor) -> Tensor:
    """Sum over everything but the rows."""
    return x.flatten(1).sum(1)
