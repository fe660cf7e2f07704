"""Accepted work, by what bounds it: evaluations that are not made yet, and bytes that are held.

Not thread-safe: the engine holds its lock.
"""

import sys
from typing import final


@final
class Ledger:
    """What is accepted and not yet done.

    Args:
        limit: most network evaluations accepted and not yet done.
        room: most bytes held at once, of bodies being read and of accepted jobs.
    """

    def __init__(self, limit: int, room: int = sys.maxsize) -> None:
        self._limit, self._room = limit, room
        self._held = self._owed = 0

    @property
    def owed(self) -> int:
        """Network evaluations accepted and not yet done."""
        return self._owed

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
        """So many bytes are taken; fewer than none are given back."""
        self._held += size

    def release(self, size: int) -> None:
        """So many bytes are given back."""
        self._held -= size

    def accept(self, cost: int) -> None:
        """A job has been accepted."""
        self._owed += cost

    def settle(self, evaluations: int) -> None:
        """So many evaluations are done, or no longer wanted."""
        self._owed -= evaluations
