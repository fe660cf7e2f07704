"""Proposals of a particle's next step, beside the kernel that they replace."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, final

import torch
from torch import Tensor

from diffusion.distributions import Bernoulli, Distribution, Normal
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
        q, p = (_double(part).log_prob(x.double()) for part in (self.proposal, self.kernel))
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
class Look:
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

    def where(self, good: Tensor, other: "Look") -> "Look":
        """This where `good`, bool [B], else the other of the same x_0hat and kind of proposal."""
        place = (
            good.logical_not() * len(good) + torch.arange(len(good), device=good.device)
        ).long()
        log_r = torch.where(good, self.log_r, other.log_r)
        return Look(log_r, joined([self.proposal, other.proposal]).rows(place), self.x_0)

    @classmethod
    def joined(cls, parts: "Sequence[Look]") -> Self:
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
    """What is left of looks of so many rows each, side by side."""

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


def _double(distribution: Distribution) -> Distribution:
    """The same in float64: differences of log-densities of many elements cancel."""
    if isinstance(distribution, Normal):
        return Normal(distribution.mean.double(), distribution.var.double())
    assert isinstance(distribution, Bernoulli)  # there are two families
    return Bernoulli(distribution.logits.double())
