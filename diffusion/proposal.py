"""Proposals of a particle's next step, beside the kernel that they replace."""

from collections.abc import Sequence
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
    def joined(cls, parts: Sequence[Any]) -> Self:
        """Proposals of the same kind, their rows in turn."""


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


@final
@dataclass(frozen=True)
class Look:
    """What a twist says of B rows at x_t.

    Attributes:
        log_r: log r_t(x_t), nats, float64 [B].
        proposal: of x_s.
        x_0: what the network takes x_0 to be, [B, *event].
    """

    log_r: Tensor
    proposal: Proposal
    x_0: Tensor

    @classmethod
    def joined(cls, parts: "Sequence[Look]") -> Self:
        """Looks of the same kind, their rows in turn."""
        first = parts[0]
        if len(parts) == 1:
            return cls(first.log_r, first.proposal, first.x_0)
        log_r, x_0 = (
            torch.cat(column) for column in zip(*((p.log_r, p.x_0) for p in parts), strict=True)
        )
        return cls(log_r, type(first.proposal).joined([part.proposal for part in parts]), x_0)


def _double(distribution: Distribution) -> Distribution:
    """The same in float64: differences of log-densities of many elements cancel."""
    if isinstance(distribution, Normal):
        return Normal(distribution.mean.double(), distribution.var.double())
    assert isinstance(distribution, Bernoulli)  # there are two families
    return Bernoulli(distribution.logits.double())
