"""Counter-based random noise: Philox4x32-10(counter = (block, step, row, stream), key = seed).

Noise is a pure function and uses no shared generator. The same (seed, row, step, element) gives the
same number in any batch and on any device, so a request gets the same answer alone or batched, and
a training run that is killed and resumed sees the same noise.

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

# Tensors, because operations with them are much cheaper than with Python numbers.
_MULTIPLIERS: Final = (torch.tensor(0xD2511F53), torch.tensor(0xCD9E8D57))
_HALF: Final = torch.tensor(32)
_LOW: Final = torch.tensor(0xFFFFFFFF)
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10
MAX_SEED: Final = 2**63 - 1


class Stream(IntEnum):
    """The purpose of a draw; one seed gives different numbers in each stream."""

    CHAIN = 0
    TERM = 1
    OBSERVATION = 2
    TRAINING = 3
    DATA = 4
    TRAJECTORY = 5
    RESAMPLING = 6
    REPLACEMENT = 7


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Compute Philox4x32-10: four 32-bit words of noise for each 128-bit counter.

    Args:
        counter: int64 [..., 4], each word in 0..2^32 - 1.
        key: int64 [..., 2], each word in 0..2^32 - 1; broadcast to `counter`.

    Returns:
        int64 [..., 4], each word in 0..2^32 - 1.
    """
    words = _rounds(counter.unbind(-1), key.unbind(-1))
    return torch.stack(torch.broadcast_tensors(*words), dim=-1)


def _rounds(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Compute `philox` with one tensor per word; broadcasting keeps the first rounds small."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    full = torch.broadcast_tensors(*counter, *key)[0].shape  # faster than broadcast_shapes
    rounds = torch.arange(_ROUNDS, device=k0.device).view(-1, *[1] * k0.ndim)
    keys = ((k + weyl * rounds).bitwise_and_(_LOW) for k, weyl in zip(key, _WEYL, strict=True))

    def mix(product: Tensor, c: Tensor, k: Tensor) -> Tensor:
        high = product >> _HALF
        # In place if possible: allocating arrays costs as much as the arithmetic.
        mixed = high.bitwise_xor_(c).bitwise_xor_(k) if high.shape == full else high ^ (c ^ k)
        return mixed.bitwise_and_(_LOW)

    for k0, k1 in zip(*(k.unbind() for k in keys), strict=True):
        # A 64-bit product that wraps still holds the right bits. The odd words may keep its upper
        # half: they are never multiplied, and what they are mixed into is masked.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = mix(p1, c1, k0), p1, mix(p0, c3, k1), p0
    return [c0, c1 & _LOW, c2, c3 & _LOW]


class Noise(ABC):
    """A source of one array of standard draws for a batch of rows."""

    @abstractmethod
    def normal(self, event: Sequence[int]) -> Tensor:
        """Return standard normal draws, float32 [B, *event]."""

    @abstractmethod
    def uniform(self, event: Sequence[int]) -> Tensor:
        """Return uniform draws in the open interval (0, 1), float32 [B, *event]."""

    def mixed(self, uniform: Tensor) -> Tensor:
        """Return draws of each element, float32 [B, D]: uniform where `uniform`, bool [D].

        The others are standard normal.
        """
        # A normal draw uses two words, so the uniform ones have words of their own.
        size = len(uniform)
        words = 4 * -(-size // 4)
        normal, rest = self.normal((size,)), self.uniform((words + size,))[:, words:]
        return torch.where(uniform, rest, normal)


@final
class CounterNoise(Noise):
    """Counter-based noise for B rows.

    Args:
        seed: int64 [B], 0..2^63 - 1; the key.
        row: int64 [B], 0..2^32 - 1; index of the chain or example in the request.
        step: int64 [B], 0..2^32 - 1; its step.
        stream: the purpose of the draws.
    """

    def __init__(
        self, seed: Tensor, row: Tensor, step: Tensor, stream: Stream = Stream.CHAIN
    ) -> None:
        self.seed, self.row, self.step, self.stream = seed, row, step, stream

    def _words(self, event: Sequence[int]) -> list[Tensor]:
        """Return four words [B, ceil(elements / 4)] for every four elements of each row."""
        blocks = -(-math.prod(event) // 4)
        block = torch.arange(blocks, device=self.seed.device)[None]
        stream = torch.full_like(block[:, :1], int(self.stream))
        counter = (block, self.step[:, None], self.row[:, None], stream)
        return _rounds(counter, ((self.seed & _LOW)[:, None], (self.seed >> _HALF)[:, None]))

    @override
    def normal(self, event: Sequence[int]) -> Tensor:
        words = self._words(event)
        # Box-Muller; 32 bits under the logarithm limit the tail to 6.7 standard deviations.
        found: list[Tensor] = []
        for first, second in (words[:2], words[2:]):
            radius = first.to(torch.float32).add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
            angle = second.to(torch.float32).mul_(2.0 * math.pi * 2.0**-32)
            found += [radius * angle.cos(), angle.sin_().mul_(radius)]
        return self._join(found, event)

    @override
    def uniform(self, event: Sequence[int]) -> Tensor:
        # 23 bits plus one half: exact in float32, never 0 and never 1.
        words = self._words(event)
        found = [(word >> 9).to(torch.float32).add_(0.5).mul_(2.0**-23) for word in words]
        return self._join(found, event)

    @staticmethod
    def _join(fours: list[Tensor], event: Sequence[int]) -> Tensor:
        flat = torch.stack(fours, dim=-1).flatten(1)
        return flat[:, : math.prod(event)].reshape(len(flat), *event)


@final
class DrawnNoise(Noise):
    """Noise that was drawn in advance, together with other steps' noise.

    Args:
        draws: [B, *event], normal or uniform, whichever the distribution needs.
    """

    def __init__(self, draws: Tensor) -> None:
        self.draws = draws

    @override
    def normal(self, event: Sequence[int]) -> Tensor:
        return self.draws

    @override
    def uniform(self, event: Sequence[int]) -> Tensor:
        return self.draws

    @override
    def mixed(self, uniform: Tensor) -> Tensor:
        return self.draws


def counter_noise(
    seed: int,
    rows: Tensor,
    step: int | Tensor,
    stream: Stream = Stream.CHAIN,
) -> CounterNoise:
    """Build the noise of `rows` (int64 [B]) that share a seed, at one step or one step each."""
    steps = step if isinstance(step, Tensor) else torch.full_like(rows, step)
    return CounterNoise(torch.full_like(rows, seed), rows, steps, stream)
