"""How long a tick takes, by its rows: seconds(k) >= max over measured b of s_b min(1, k / b).

For a tick of more rows takes no less time, and no more time a row. So the sizes that were measured
bound those that were not from below, and what has not been measured is never held to be slow.
"""

import math
from dataclasses import dataclass
from typing import final

_FORGET = 0.98  # of a tick's weight at the next of its size: about the last 50 count
_ENOUGH = 9.0  # ten ticks of a size, less what is forgotten: the first are slow, one tells little
_DOUBT = 0.5


@dataclass(slots=True)
class _Mean:
    ticks: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0


@final
class Speed:
    """The ticks of one model. Sizes are told apart by powers of two."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Mean] = {}

    def measure(self, rows: int, seconds: float, calls: int = 1) -> None:
        """A tick of so many rows took so many seconds; or each of several in a burst."""
        mean = self._sizes.setdefault(rows.bit_length(), _Mean())
        kept = _FORGET**calls
        weight = (1 - kept) / (1 - _FORGET)
        mean.ticks = kept * mean.ticks + weight
        mean.rows = kept * mean.rows + weight * rows
        mean.seconds = kept * mean.seconds + weight * seconds

    def seconds(self, rows: float) -> float:
        """The least that a tick of so many rows takes; 0 where nothing has been measured."""
        known = {size: mean for size, mean in self._sizes.items() if mean.ticks > _ENOUGH}
        own = known.get(math.ceil(rows).bit_length())
        return max(
            (
                mean.seconds * min(1.0 / mean.ticks, rows / mean.rows)
                for mean in ([own] if own else known.values())
            ),
            default=0.0,
        )

    def doubt(self) -> None:
        """Hold every size to be twice as fast, where measuring has no other way to go on."""
        for mean in self._sizes.values():
            mean.seconds *= _DOUBT
