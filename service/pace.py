"""How long a job still takes, by its own pace: seconds_left = (total - done) / rate.

The rate is that of the last seconds, so it holds whatever else the engine is doing by the end of
them. No clock here: the caller says when.
"""

import math
from typing import final

_WINDOW = 10.0  # seconds after which what was measured has lost most of its weight


@final
class Pace:
    """A job's progress over time.

    Args:
        total: network evaluations it needs.
        started: when its first row was put through the network, seconds.
    """

    def __init__(self, total: int, started: float) -> None:
        self._total = total
        self._done = 0
        self._changed = started
        self._evaluations = self._seconds = 0.0

    def observe(self, done: int, now: float) -> None:
        """So many evaluations are done by now."""
        if done == self._done or now <= self._changed:
            return  # between ticks nothing is learnt
        passed = now - self._changed
        kept = math.exp(-passed / _WINDOW)
        self._evaluations = kept * self._evaluations + done - self._done
        self._seconds = kept * self._seconds + passed
        self._done, self._changed = done, now

    @property
    def seconds_left(self) -> float | None:
        """From when the last progress was seen; None until there was some."""
        if not self._evaluations:
            return None
        return (self._total - self._done) * self._seconds / self._evaluations
