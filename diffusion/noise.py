"""Noise as a pure function: Philox4x32-10(counter = (block, step, row, stream), key = seed).

Nothing is drawn from a shared generator. The same (seed, row, step, element) gives the same number
whatever else is in the batch and on whatever device, so a request has the same answer alone and
in any batch, and a training run that was killed and resumed sees the same noise.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, final

import torch
from torch import Tensor
from typing_extensions import override

# Tensors, for an operation with one costs a good deal less than with a number.
_MULTIPLIERS: Final = (torch.tensor(0xD2511F53), torch.tensor(0xCD9E8D57))
_HALF: Final = torch.tensor(32)
_LOW: Final = torch.tensor(0xFFFFFFFF)
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10
MAX_SEED: Final = 2**63 - 1


class Stream(IntEnum):
    """The purpose of a draw: one seed serves several without reusing a number."""

    CHAIN = 0
    TERM = 1
    OBSERVATION = 2
    TRAINING = 3
    DATA = 4
    TRAJECTORY = 5
    RESAMPLING = 6
    REPLACEMENT = 7


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10: four 32-bit words of noise for each 128-bit counter.

    Args:
        counter: int64 [..., 4], each word in 0..2^32 - 1.
        key: int64 [..., 2], each word in 0..2^32 - 1; broadcast to `counter`.

    Returns:
        int64 [..., 4], each word in 0..2^32 - 1.
    """
    words = _rounds(counter.unbind(-1), key.unbind(-1))
    return torch.stack(torch.broadcast_tensors(*words), dim=-1)


def _rounds(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """`philox`, a tensor a word, of any shapes that broadcast: the first rounds stay small."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    full = torch.broadcast_tensors(*counter, *key)[0].shape  # of shapes alone it is a slow one
    rounds = torch.arange(_ROUNDS, device=k0.device).view(-1, *[1] * k0.ndim)
    keys = ((k + weyl * rounds).bitwise_and_(_LOW) for k, weyl in zip(key, _WEYL, strict=True))

    def mix(product: Tensor, c: Tensor, k: Tensor) -> Tensor:
        high = product >> _HALF
        # In place where that can be: new arrays cost as much as the arithmetic.
        mixed = high.bitwise_xor_(c).bitwise_xor_(k) if high.shape == full else high ^ (c ^ k)
        return mixed.bitwise_and_(_LOW)

    for k0, k1 in zip(*(k.unbind() for k in keys), strict=True):
        # A 64-bit product that wraps still holds the right bits. Its upper half may stay on the
        # odd words, which are never multiplied: what they are mixed into is masked.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = mix(p1, c1, k0), p1, mix(p0, c3, k1), p0
    return [c0, c1 & _LOW, c2, c3 & _LOW]


class Noise(ABC):
    """The randomness of distributions: one array of standard draws for a batch of rows."""

    @abstractmethod
    def normal(self, event: Sequence[int]) -> Tensor:
        """Standard normal draws, float32 [B, *event]."""

    @abstractmethod
    def uniform(self, event: Sequence[int]) -> Tensor:
        """Uniform draws in the open interval (0, 1), float32 [B, *event]."""


@final
class CounterNoise(Noise):
    """Counter-based noise of B rows.

    Args:
        seed: int64 [B], 0..2^63 - 1; the key.
        row: int64 [B], 0..2^32 - 1; which chain or example of the request.
        step: int64 [B], 0..2^32 - 1; which step of it.
        stream: what the draws are for.
    """

    def __init__(
        self, seed: Tensor, row: Tensor, step: Tensor, stream: Stream = Stream.CHAIN
    ) -> None:
        self.seed, self.row, self.step, self.stream = seed, row, step, stream

    def _words(self, event: Sequence[int]) -> list[Tensor]:
        """Four words [B, ceil(elements / 4)] for every four elements of each row."""
        blocks = -(-math.prod(event) // 4)
        block = torch.arange(blocks, device=self.seed.device)[None]
        stream = torch.full_like(block[:, :1], int(self.stream))
        counter = (block, self.step[:, None], self.row[:, None], stream)
        return _rounds(counter, ((self.seed & _LOW)[:, None], (self.seed >> _HALF)[:, None]))

    @override
    def normal(self, event: Sequence[int]) -> Tensor:
        words = self._words(event)
        # Box-Muller; 32 bits under the logarithm put the tail's end at 6.7 standard deviations.
        found: list[Tensor] = []
        for first, second in (words[:2], words[2:]):
            radius = first.to(torch.float32).add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
            angle = second.to(torch.float32).mul_(2.0 * math.pi * 2.0**-32)
            found += [radius * angle.cos(), angle.sin_().mul_(radius)]
        return self._join(found, event)

    @override
    def uniform(self, event: Sequence[int]) -> Tensor:
        # 23 bits and a half: exact in float32, never 0 and never 1.
        words = self._words(event)
        found = [(word >> 9).to(torch.float32).add_(0.5).mul_(2.0**-23) for word in words]
        return self._join(found, event)

    @staticmethod
    def _join(fours: list[Tensor], event: Sequence[int]) -> Tensor:
        flat = torch.stack(fours, dim=-1).flatten(1)
        return flat[:, : math.prod(event)].reshape(len(flat), *event)


@final
class DrawnNoise(Noise):
    """Draws made before, with those of other steps.

    Args:
        draws: [B, *event], normal or uniform, whichever the distribution that reads them takes.
    """

    def __init__(self, draws: Tensor) -> None:
        self.draws = draws

    @override
    def normal(self, event: Sequence[int]) -> Tensor:
        return self.draws

    @override
    def uniform(self, event: Sequence[int]) -> Tensor:
        return self.draws


def counter_noise(
    seed: int,
    rows: Tensor,
    step: int | Tensor,
    stream: Stream = Stream.CHAIN,
) -> CounterNoise:
    """The noise of `rows` (int64 [B]) that share one seed, at one step or one step each."""
    steps = step if isinstance(step, Tensor) else torch.full_like(rows, step)
    return CounterNoise(torch.full_like(rows, seed), rows, steps, stream)
