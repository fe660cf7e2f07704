"""Accepted work, and how long it takes: seconds = sum over models of evaluations_m / rate_m.

The bound of the queue and `Retry-After` come from here. Not thread-safe: the engine holds its lock.
"""

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
    """

    def __init__(self, models: Iterable[str], limit: int) -> None:
        self._limit = limit
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

    def _seconds_each(self, model: str) -> float:
        evaluations = self._evaluations[model]
        return self._seconds[model] / evaluations if evaluations else _FIRST_GUESS
