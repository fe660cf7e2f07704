"""Rows of categories, one-hot, and distributions over them.

    x = [0 1 0 | 1 0 | 0 0 0 1]        one block of K_j numbers for each category column j

A distribution holds the log-probabilities of all blocks side by side, [B, K_1 + .. + K_J].
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self, final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.distributions import Distribution, Tilt
from diffusion.noise import Noise
from diffusion.rows import row_sum

#: Stands for the logarithm of 0 where differences are taken.
_LOG_ZERO = -1e30
#: Log-odds that a network is told as if they were certain.
_SUREST = 14.0


@final
@dataclass(frozen=True)
class Blocks:
    """The sizes K_j of the blocks of a one-hot row, and sums within them."""

    sizes: tuple[int, ...]

    @property
    def width(self) -> int:
        """The length of a row."""
        return sum(self.sizes)

    @cached_property
    def block(self) -> Tensor:
        """The block of each element, int64 [width]."""
        return torch.repeat_interleave(torch.tensor(self.sizes, dtype=torch.int64))

    @cached_property
    def first(self) -> Tensor:
        """The place of each block's first element, int64 [J]."""
        sizes = torch.tensor(self.sizes, dtype=torch.int64)
        return sizes.cumsum(0) - sizes

    def total(self, x: Tensor) -> Tensor:
        """Sum within blocks: [B, width] to [B, J]."""
        found = x.new_zeros(len(x), len(self.sizes))
        return found.index_add(1, self.block.to(x.device), x)

    def each(self, of_block: Tensor) -> Tensor:
        """Give every element its block's number: [B, J] to [B, width]."""
        return of_block[:, self.block.to(of_block.device)]

    def greatest(self, x: Tensor) -> Tensor:
        """The greatest within blocks: [B, width] to [B, J]."""
        index = self.block.to(x.device).expand(len(x), -1)
        found = x.new_full((len(x), len(self.sizes)), -torch.inf)
        return found.scatter_reduce(1, index, x, "amax")

    def log_total(self, x: Tensor) -> Tensor:
        """The log of the sum of exp within blocks: [B, width] to [B, J]."""
        most = self.greatest(x.detach()).clamp_min(_LOG_ZERO)
        return most + self.total((x - self.each(most)).exp()).log()

    def normalised(self, logits: Tensor) -> Tensor:
        """Log-probabilities from logits, [B, width]."""
        return logits - self.each(self.log_total(logits))

    def one_hot(self, codes: Tensor) -> Tensor:
        """Codes 0..K_j - 1 of each block, [B, J], as a one-hot row, float32 [B, width]."""
        row = torch.zeros(len(codes), self.width, device=codes.device)
        return row.scatter_(1, codes.long() + self.first.to(codes.device), 1.0)

    def codes(self, x: Tensor) -> Tensor:
        """The place of each block's greatest number, the first of equals: int64 [B, J]."""
        empty = torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
        parts = (part.argmax(1)[:, None] for part in x.split(self.sizes, 1) if self.sizes)
        return torch.cat([empty, *parts], 1)


@final
@dataclass(frozen=True)
class Categorical(Distribution):
    """Independent category columns; an x is a one-hot row [B, width].

    Args:
        logits: log-probabilities up to a constant of each block, [B, width]; in a factor the
            log-likelihood of each category, all equal where nothing was seen.
        blocks: the columns' sizes.
    """

    continuous = False
    logits: Tensor
    blocks: Blocks

    @property
    def log_p(self) -> Tensor:
        """The log-probabilities, [B, width]."""
        return self.blocks.normalised(self.logits)

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        """The probabilities, [B, width]."""
        return self.log_p.exp()

    @property
    def var(self) -> Tensor:  # type: ignore[override]
        """The variance p (1 - p) of each element, [B, width]."""
        return self.mean * (1 - self.mean)

    @override
    def sample(self, noise: Noise) -> Tensor:
        """Draw by the largest of log p - log(-log u) in each block (Gumbel), [B, width]."""
        u = noise.uniform(self.logits.shape[1:]).to(self.logits)
        found = self.blocks.codes(self.log_p - (-u.log()).log())
        return self.blocks.one_hot(found).to(self.logits)

    @override
    def log_probs(self, x: Tensor) -> Tensor:
        return torch.where(x > 0.5, self.log_p, 0.0)

    @override
    def kls(self, other: Self) -> Tensor:
        mine, theirs = self.log_p, other.log_p
        return torch.where(mine > _LOG_ZERO, mine.exp() * (mine - theirs), 0.0)

    @override
    def entropy(self) -> Tensor:
        log_p = self.log_p
        return -row_sum(torch.where(log_p > _LOG_ZERO, log_p.exp() * log_p, 0.0))

    @override
    def multiply(self, other: Self) -> tuple[Self, Tensor]:
        """Return the product, and log Z = log sum_k p_k r_k summed over blocks, nats [B]."""
        joint = self.log_p + other.logits
        return type(self)(joint, self.blocks), self.blocks.log_total(joint).sum(1)

    @override
    def observe(self, factor: Self) -> tuple[Self, Tensor]:
        product, log_z = self.multiply(factor)
        return product, log_z.double()

    @property
    @override
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.logits,)

    @property
    @override
    def known(self) -> Tensor:
        """The blocks whose categories do not all have the same likelihood."""
        most, least = self.blocks.greatest(self.logits), -self.blocks.greatest(-self.logits)
        return self.blocks.each(most > least)

    @property
    @override
    def values(self) -> Tensor:
        return self.blocks.one_hot(self.blocks.codes(self.logits)).to(self.logits)

    @property
    @override
    def noise(self) -> Tensor:
        """The probability that another category than the likeliest was seen."""
        return self.blocks.each(1 - self.blocks.greatest(self.log_p).exp())

    @property
    @override
    def noisy(self) -> bool:
        return bool((self.known & ~self.exact).any())

    @property
    @override
    def exact(self) -> Tensor:
        """The blocks in which all categories but one are impossible."""
        possible = self.blocks.total((self.logits > _LOG_ZERO).to(self.logits))
        return self.blocks.each(possible == 1)

    @override
    def told(self) -> Tensor:
        """p - 1 / K, its greatest in the block, and the log-odds of the likeliest, scaled."""
        sizes = torch.tensor(self.blocks.sizes, device=self.logits.device).to(self.logits)[None]
        value = self.mean - self.blocks.each(1 / sizes)
        share = self.blocks.each(self.blocks.greatest(value))
        top = self.blocks.each(self.blocks.greatest(self.log_p))
        odds = (top - torch.log1p(-top.exp().clamp(max=1 - 1e-7))).clamp(0, _SUREST) / _SUREST
        known = self.known
        return torch.cat((value, share * known, odds * known), 1)

    @override
    def unseen(self, gone: Tensor) -> Self:
        return type(self)(self.logits.masked_fill(gone, 0.0), self.blocks)

    @override
    def tilt(self) -> Tilt:
        """log p as a linear function of a one-hot x."""
        log_p = self.log_p.double()
        return Tilt(log_p.new_zeros(len(log_p)), log_p, torch.zeros_like(log_p))

    @override
    def tilted(self, tilt: Tilt) -> tuple[Self, Tensor, Tensor]:
        joint = self.log_p.double() + tilt.linear
        log_z = tilt.constant + self.blocks.log_total(joint).sum(1)
        product = type(self)(joint.to(self.logits.dtype), self.blocks)
        return product, log_z, torch.zeros_like(joint)


def of_codes(
    blocks: Blocks, codes: Tensor, known: Tensor, error: Tensor | float = 0.0
) -> Categorical:
    """Observe categories where known, each replaced by another one with probability `error`.

        r_k = 1 - error if k was seen, else error / (K - 1)

    Args:
        blocks: the columns' sizes.
        codes: int64 [N, J].
        known: bool [N, J].
        error: a number or broadcastable to `codes`.
    """
    wrong = torch.as_tensor(error, dtype=torch.float64).expand(codes.shape)
    sizes = torch.tensor(blocks.sizes, dtype=torch.float64)
    others = blocks.each(wrong / (sizes - 1).clamp_min(1))
    likelihood = torch.where(blocks.one_hot(codes) > 0.5, blocks.each(1 - wrong), others)
    return Categorical(torch.where(blocks.each(known), likelihood.log(), 0.0).float(), blocks)
