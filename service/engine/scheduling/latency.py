"""How long a batch takes, by its rows: the one clock, fed once a batch and read by every estimate.

    seconds(k): linear between the sizes that were measured; s_1 below them, s_b k / b beyond them

Sizes are first timed at start, so a server that has done nothing yet knows how fast it is. What is
measured later counts by its last 50 batches. A size that was slow once and has not been seen since
goes back to its best, by half in a minute: a slow moment does not refuse callers for good, and
asking again changes nothing.
"""

import itertools
import math
from dataclasses import dataclass
from typing import final

_FORGET = 0.98  # of a batch's weight at the next of its size: about the last 50 count
_SEED = 10.0  # batches that a timing at start counts as
_HALF_LIFE = 60.0  # seconds


@dataclass(slots=True)
class _Size:
    """Batches of about one size: sums with weights, and the least mean there has been."""

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    best: float = math.inf
    seen: float = 0.0

    def add(self, weight: float, kept: float, rows: int, seconds: float, now: float) -> None:
        self.weight = kept * self.weight + weight
        self.rows = kept * self.rows + weight * rows
        self.seconds = kept * self.seconds + weight * seconds
        self.best, self.seen = min(self.best, self.seconds / self.weight), now

    def mean(self, now: float) -> float:
        age = max(0.0, now - self.seen) / _HALF_LIFE
        return self.best + (self.seconds / self.weight - self.best) * math.exp2(-age)


@final
class StepTimes:
    """The batches of one kind of one model. Sizes are told apart by powers of two."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}

    def seed(self, rows: int, seconds: float, now: float = 0.0) -> None:
        """A batch of so many rows was timed at start, seconds of one step."""
        size = self._sizes.setdefault(rows.bit_length(), _Size())
        size.add(_SEED, 1.0, rows, seconds, now)

    def measure(self, rows: int, seconds: float, steps: int, now: float) -> None:
        """A batch of so many rows by so many steps took so many seconds a step."""
        kept = _FORGET**steps
        size = self._sizes.setdefault(rows.bit_length(), _Size())
        size.add((1 - kept) / (1 - _FORGET), kept, rows, seconds, now)

    def seconds(self, rows: float, now: float) -> float:
        """A step of so many rows; 0 where nothing has been measured."""
        known = sorted((size.rows / size.weight, size.mean(now)) for size in self._sizes.values())
        if not known:
            return 0.0
        if rows <= known[0][0]:
            return known[0][1]
        for (a, at_a), (b, at_b) in itertools.pairwise(known):
            if rows <= b:
                return at_a + (at_b - at_a) * (rows - a) / (b - a)
        most, longest = known[-1]
        return longest * rows / most
