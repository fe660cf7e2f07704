"""Accepted work, and how long it takes: seconds = sum over models of evaluations_m / rate_m.

The bounds of the queue, in evaluations and in bytes, and `Retry-After` come from here. Not
thread-safe: the engine holds its lock.
"""

import math
import sys
from collections.abc import Iterable
from typing import final

_FORGET = 0.98  # of a tick's weight in the rate at the next: about the last 50 ticks count
_FIRST_GUESS = 1e-3  # seconds an evaluation, until a model has been measured


@final
class Ledger:
    """What is accepted and not yet done, by model.

    Args:
        models: names of the models.
        limit: most network evaluations accepted and not yet done.
        room: most bytes held at once, of bodies being read and of accepted jobs.
    """

    def __init__(self, models: Iterable[str], limit: int, room: int = sys.maxsize) -> None:
        self._limit, self._room = limit, room
        self._held = 0
        self._owed = dict.fromkeys(models, 0)
        self._evaluations = dict.fromkeys(self._owed, 0.0)
        self._seconds = dict.fromkeys(self._owed, 0.0)

    @property
    def owed(self) -> int:
        """Network evaluations accepted and not yet done."""
        return sum(self._owed.values())

    def excess(self, cost: int) -> int:
        """By how many evaluations a job of this cost would overrun the limit; 0 where it fits."""
        return max(0, self.owed + cost - self._limit)

    @property
    def held(self) -> int:
        """Bytes of bodies being read and of accepted jobs."""
        return self._held

    def overflow(self, size: int) -> int:
        """By how many bytes this would overrun the room; 0 where it fits."""
        return max(0, self._held + size - self._room)

    def hold(self, size: int) -> None:
        """So many bytes are taken."""
        self._held += size

    def release(self, size: int) -> None:
        """So many bytes are given back."""
        self._held -= size

    def accept(self, model: str, cost: int) -> None:
        """A job has been accepted."""
        self._owed[model] += cost

    def settle(self, model: str, evaluations: int) -> None:
        """So many evaluations are done, or no longer wanted."""
        self._owed[model] -= evaluations

    def measure(self, model: str, evaluations: int, seconds: float) -> None:
        """A tick of so many rows took so many seconds."""
        self._evaluations[model] = _FORGET * self._evaluations[model] + evaluations
        self._seconds[model] = _FORGET * self._seconds[model] + seconds

    def seconds_until(self, evaluations: int) -> float:
        """How long until so many of the owed evaluations are done, at the measured rates."""
        owed = self.owed
        if owed == 0:
            return 0.0
        total = sum(count * self._seconds_each(model) for model, count in self._owed.items())
        return min(evaluations, owed) / owed * total

    def seconds_until_free(self, size: int) -> float:
        """How long until so many of the bytes held are free, where evaluations free them evenly."""
        return self.seconds_until(math.ceil(self.owed * min(1.0, size / max(1, self._held))))

    def _seconds_each(self, model: str) -> float:
        evaluations = self._evaluations[model]
        return self._seconds[model] / evaluations if evaluations else _FIRST_GUESS
