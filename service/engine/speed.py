"""How long a tick takes, by its rows: seconds(k) >= max over measured b of s_b min(1, k / b).

For a tick of more rows takes no less time, and no more time a row. So the sizes that were measured
bound those that were not from below, and what has not been measured is never held to be slow, nor
what has not been measured for long: a size that was slow once would else be refused ever after.
"""

import math
from dataclasses import dataclass
from typing import final

_FORGET = 0.98  # of a tick's weight at the next of its size: about the last 50 count
_FADE = 0.999  # the same at the next of another size: after some 1700 it is no longer known
_ENOUGH = 9.0  # ten ticks of a size, less what is forgotten: the first are slow, one tells little
_DOUBT = 0.5


@dataclass(slots=True)
class _Mean:
    ticks: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0

    def keep(self, share: float) -> None:
        self.ticks *= share
        self.rows *= share
        self.seconds *= share


@final
class Speed:
    """The ticks of one model. Sizes are told apart by powers of two."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Mean] = {}

    def measure(self, rows: int, seconds: float, calls: int = 1) -> None:
        """A tick of so many rows took so many seconds; or each of several in a burst."""
        own = rows.bit_length()
        mean = self._sizes.setdefault(own, _Mean())
        for size, other in self._sizes.items():
            other.keep((_FORGET if size == own else _FADE) ** calls)
        weight = (1 - _FORGET**calls) / (1 - _FORGET)
        mean.ticks += weight
        mean.rows += weight * rows
        mean.seconds += weight * seconds

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
