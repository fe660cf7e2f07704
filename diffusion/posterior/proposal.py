"""Proposals for a particle's next step, each with the kernel p(x_s | x_t) that it replaces.

A factor with an elementwise quadratic logarithm,

    f(x) = exp(c + sum_i (h_i x_i - k_i x_i^2 / 2)),    k = 0 for bits

is held in canonical (information) form (`Tilt`). Every Normal, every Bernoulli, and every product
or power of them is such a factor, including 1 / q(x_t | x_s) as a function of x_s, so products of
models stay in closed form (Sohl-Dickstein et al. 2015, Section 2.5). `join` multiplies the target
by a factor; `steer` moves the draws and keeps the target.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, final

import torch
from torch import Tensor

from diffusion.distributions import Distribution, Tilt
from diffusion.noise import Noise
from diffusion.observation import Conditioned
from diffusion.rows import Rows, row_sum


class Proposal(Protocol):
    """A proposal q(x_s | x_t, y) of B rows; also a `Rows`."""

    @property
    def base(self) -> Distribution:
        """The kernel p(x_s | x_t) that it replaces."""

    @property
    def drawn(self) -> Distribution | Conditioned:
        """The distribution q that draws come from."""

    def sample(self, noise: Noise) -> Tensor:
        """Draw once per row, [B, *event]."""

    def log_ratio(self, x: Tensor) -> Tensor:
        """Return log q(x) - log p(x), nats, float64 [B]."""

    def rows(self, index: slice | Tensor) -> Self:
        """Select rows, possibly repeated; int64 [b]."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the rows."""


@final
@dataclass(frozen=True)
class Independent(Rows):
    """A proposal of the kernel's own family, with independent elements."""

    base: Distribution
    drawn: Distribution

    def sample(self, noise: Noise) -> Tensor:
        """Draw once per row, [B, *event]."""
        return self.drawn.sample(noise)

    def log_ratio(self, x: Tensor) -> Tensor:
        """Return log q(x) - log p(x), nats, float64 [B]."""
        q, p = (part.double().log_prob(x.double()) for part in (self.drawn, self.base))
        return q - p


#: Maps draws x_0 [b, *event] and their rows, int64 [b], to log-weights still due, nats float64 [b].
Left = Callable[[Tensor, Tensor], Tensor]


@final
@dataclass(frozen=True)
class TwistValue:
    """The value of a twist at B rows x_t.

    Attributes:
        log_r: log r_t(x_t), nats, float64 [B].
        proposal: the proposal for x_s.
        x_0: the network's estimate, [B, *event].
        left: at the last step, log of p(x_0 | x_t) r(x_0) / (q(x_0) r_t(x_t)); None if it is 0.
    """

    log_r: Tensor
    proposal: Proposal
    x_0: Tensor
    left: Left | None = None

    def where(self, good: Tensor, other: "TwistValue") -> "TwistValue":
        """Take this where `good`, bool [B], else `other`; both have the same x_0hat."""
        place = (~good * len(good) + torch.arange(len(good), device=good.device)).long()
        log_r = torch.where(good, self.log_r, other.log_r)
        both = type(self.proposal).joined([self.proposal, other.proposal])
        return TwistValue(log_r, both.rows(place), self.x_0)

    @classmethod
    def joined(cls, parts: "Sequence[TwistValue]") -> "TwistValue":
        """Concatenate the rows of values of the same kind."""
        if len(parts) == 1:
            return parts[0]
        log_r, x_0 = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("log_r", "x_0")
        )
        proposal = type(parts[0].proposal).joined([part.proposal for part in parts])
        sizes = [len(part.log_r) for part in parts]
        lefts = [part.left for part in parts if part.left is not None]
        return cls(log_r, proposal, x_0, _left_of(lefts, sizes) if lefts else None)


def _left_of(lefts: Sequence[Left], sizes: Sequence[int]) -> Left:
    """Concatenate the `left` of several values with the given numbers of rows."""

    def left(x_0: Tensor, index: Tensor) -> Tensor:
        found = torch.empty(len(index), dtype=torch.float64, device=x_0.device)
        begin = 0
        for part, size in zip(lefts, sizes, strict=True):
            mine = ((index >= begin) & (index < begin + size)).nonzero()[:, 0]
            if len(mine):
                found[mine] = part(x_0[mine], index[mine] - begin)
            begin += size
        return found

    return left


@dataclass(frozen=True)
class _Tilted(Rows):
    """A proposal q multiplied by a factor f: q' = q f / Z.

    Attributes:
        inner: q.
        drawn: q'.
        log_z: log Z, float64 [B].
    """

    inner: Proposal
    drawn: Distribution | Conditioned
    log_z: Tensor

    @property
    def base(self) -> Distribution:
        """The kernel p(x_s | x_t) that it replaces."""
        return self.inner.base

    def sample(self, noise: Noise) -> Tensor:
        """Draw once per row, [B, *event]."""
        return self.drawn.sample(noise)


@final
@dataclass(frozen=True)
class Joined(_Tilted):
    """A proposal q' for the target multiplied by f.

    Attributes:
        missing: the missing curvature e of `Distribution.tilted`.
        mean: the mean about which e acts.
    """

    missing: Tensor
    mean: Tensor

    def log_ratio(self, x: Tensor) -> Tensor:
        """Return log q'(x) - log p(x) f(x), nats, float64 [B]."""
        return self.inner.log_ratio(x) - self.log_z - self.owed(x)

    def owed(self, x: Tensor) -> Tensor:
        """Return log q(x) f(x) / (Z q'(x)), nats, float64 [B]; 0 where the product is exact."""
        return 0.5 * row_sum(self.missing * (x.double() - self.mean.double()).square())


@final
@dataclass(frozen=True)
class Steered(_Tilted):
    """A proposal q' = q exp(slope x) / Z for an unchanged target.

    Attributes:
        slope: float64 [B, *event].
    """

    slope: Tensor

    def log_ratio(self, x: Tensor) -> Tensor:
        """Return log q'(x) - log p(x), nats, float64 [B]."""
        return self.inner.log_ratio(x) + row_sum(self.slope * x.double()) - self.log_z


def join(proposal: Proposal, tilt: Tilt) -> Joined:
    """Turn a proposal for p into one for p f.

    Raises:
        ValueError: the proposal's elements depend on each other.
    """
    drawn = proposal.drawn
    product, log_z, missing = drawn.tilted(tilt)
    return Joined(proposal, product, log_z, missing, drawn.mean)


def steer(proposal: Proposal, slope: Tensor) -> Steered:
    """Tilt a proposal by exp(slope x), slope [B, *event], for the same target."""
    slope = slope.double()
    zero = torch.zeros_like(slope)
    product, log_z, _ = proposal.drawn.tilted(Tilt(row_sum(zero), slope, zero))
    return Steered(proposal, product, log_z, slope)
