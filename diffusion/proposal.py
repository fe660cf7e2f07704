"""Proposals of a particle's next step, beside the kernel that they replace."""

from dataclasses import dataclass
from typing import Protocol, Self, final

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


@final
@dataclass(frozen=True)
class Look:
    """What a twist says of B rows at x_t.

    Attributes:
        log_r: log r_t(x_t), nats, float64 [B].
        proposal: of x_s.
    """

    log_r: Tensor
    proposal: Proposal


def _double(distribution: Distribution) -> Distribution:
    """The same in float64: differences of log-densities of many elements cancel."""
    if isinstance(distribution, Normal):
        return Normal(distribution.mean.double(), distribution.var.double())
    assert isinstance(distribution, Bernoulli)  # there are two families
    return Bernoulli(distribution.logits.double())
