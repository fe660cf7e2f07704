"""Accepted work, and how long it takes: seconds = sum over queues of evaluations_q / rate_q.

The bounds of the queue, in evaluations and in bytes, and `Retry-After` come from here. Not
thread-safe: the engine holds its lock.
"""

import math
import sys
from collections.abc import Iterable
from typing import final

from service.engine.ticks import Queue

_FORGET = 0.98  # of a tick's weight in the rate at the next: about the last 50 ticks count
_FIRST_GUESS = 1e-3  # seconds an evaluation, until a queue has been measured


@final
class Ledger:
    """What is accepted and not yet done, by queue.

    Args:
        queues: their names.
        limit: most network evaluations accepted and not yet done.
        room: most bytes held at once, of bodies being read and of accepted jobs.
    """

    def __init__(self, queues: Iterable[Queue], limit: int, room: int = sys.maxsize) -> None:
        self._limit, self._room = limit, room
        self._held = 0
        self._owed = dict.fromkeys(queues, 0)
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

    def accept(self, queue: Queue, cost: int) -> None:
        """A job has been accepted."""
        self._owed[queue] += cost

    def settle(self, queue: Queue, evaluations: int) -> None:
        """So many evaluations are done, or no longer wanted."""
        self._owed[queue] -= evaluations

    def measure(self, queue: Queue, evaluations: int, seconds: float) -> None:
        """So many evaluations took so many seconds."""
        self._evaluations[queue] = _FORGET * self._evaluations[queue] + evaluations
        self._seconds[queue] = _FORGET * self._seconds[queue] + seconds

    def seconds_until(self, evaluations: int) -> float:
        """How long until so many of the owed evaluations are done, at the measured rates."""
        owed = self.owed
        if owed == 0:
            return 0.0
        total = sum(count * self._seconds_each(queue) for queue, count in self._owed.items())
        return min(evaluations, owed) / owed * total

    def seconds_until_free(self, size: int) -> float:
        """How long until so many of the bytes held are free, where evaluations free them evenly."""
        return self.seconds_until(math.ceil(self.owed * min(1.0, size / max(1, self._held))))

    def _seconds_each(self, queue: Queue) -> float:
        evaluations = self._evaluations[queue]
        return self._seconds[queue] / evaluations if evaluations else _FIRST_GUESS
