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

    @classmethod
    def joined(cls, parts: "Sequence[Look]") -> Self:
        """Looks of the same kind with nothing left, their rows in turn."""
        first = parts[0]
        if len(parts) == 1:
            return cls(first.log_r, first.proposal, first.x_0)
        log_r, x_0 = (
            torch.cat(column) for column in zip(*((p.log_r, p.x_0) for p in parts), strict=True)
        )
        kind: Any = type(first.proposal)  # one that a twist makes: `joined` is theirs alone
        return cls(log_r, kind.joined([part.proposal for part in parts]), x_0)


def _double(distribution: Distribution) -> Distribution:
    """The same in float64: differences of log-densities of many elements cancel."""
    if isinstance(distribution, Normal):
        return Normal(distribution.mean.double(), distribution.var.double())
    assert isinstance(distribution, Bernoulli)  # there are two families
    return Bernoulli(distribution.logits.double())
