"""Limits of a table's numbers, in place of values: "<0.01", {"below": 0.01}, {"between": [1, 2]}.

Draws that are outside are left out, so the others are draws given the limits too.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from diffusion.space import Space
from service.codecs.rows import names_of, numeric
from service.errors import InvalidRequest

_SIGNED = re.compile(r"\s*(<=?|>=?)\s*(\S+)\s*")
_FORMS = '"<0.01", ">=5", {"below": 0.01}, {"above": 5} or {"between": [1, 2]}'


@final
@dataclass(frozen=True)
class Limits:
    """Where the numbers of N rows lie.

    Attributes:
        low, high: the least and greatest values allowed, float64 [N, J], maybe infinite.
    """

    low: Tensor
    high: Tensor

    @property
    def rows(self) -> Tensor:
        """Which rows have limits, bool [N]."""
        return (self.low.isfinite() | self.high.isfinite()).any(1)

    def within(self, x: Tensor) -> Tensor:
        """Whether draws x [N, n, J] are within the limits, bool [N, n]."""
        return ((x >= self.low[:, None]) & (x <= self.high[:, None])).all(2)

    def choose(self, x: Tensor, count: int) -> Tensor:
        """Return `count` of the draws x [N, n, J] that are within, in turn if they are fewer.

        Rows with none keep their first draws.
        """
        within = self.within(x)
        order = (~within).to(torch.int8).argsort(dim=1, stable=True)
        found = within.sum(1, keepdim=True)
        place = torch.arange(count) % found.clamp_min(1)
        return x.gather(1, order.gather(1, place)[:, :, None].expand(-1, -1, x.shape[2]))


def read_limits(
    rows: Sequence[Any], space: Space, name: str
) -> tuple[Sequence[Any], Limits | None]:
    """Take the limits out of rows, where gaps are then; None if there are none.

    Raises:
        InvalidRequest: a limit is of a category, or cannot be read.
    """
    if space.table is None:
        return rows, None
    names, numbers = names_of(space), numeric(space).tolist()
    places = {column: j for j, column in enumerate(names)}
    low = torch.full((len(rows), len(names)), -math.inf, dtype=torch.float64)
    high, bare = -low, list(rows)
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping | list):
            continue  # refused later
        cells = list(row.items() if isinstance(row, Mapping) else enumerate(row))
        found = [(key, cell) for key, cell in cells if is_limit(cell)]
        for key, cell in found:
            j = places.get(key) if isinstance(key, str) else key
            if j is None or j >= len(names):
                continue
            ends = _ends(cell) if numbers[j] else None
            if ends is None:
                raise InvalidRequest(
                    f"Row {i}, column '{names[j]}', has a limit that cannot be read.",
                    location=name,
                    index=i,
                    column=names[j],
                    received=str(cell)[:100],
                    expected=f"{_FORMS}, of a column of numbers",
                    fix="Correct the limit, or leave the cell empty: then it is a gap.",
                )
            low[i, j], high[i, j] = ends
        if found:
            gaps = dict.fromkeys(key for key, _ in found)
            kept = {**dict(cells), **gaps}
            bare[i] = kept if isinstance(row, Mapping) else list(kept.values())
    limits = Limits(low, high)
    return bare, limits if bool(limits.rows.any()) else None


def is_limit(cell: object) -> bool:
    """Whether a cell limits a number instead of giving it."""
    return isinstance(cell, Mapping) or (isinstance(cell, str) and cell.strip()[:1] in ("<", ">"))


def _ends(cell: Mapping[str, Any] | str) -> tuple[float, float] | None:
    """Return the least and greatest value of a limit; None if it cannot be read."""
    if isinstance(cell, str):
        match = _SIGNED.fullmatch(cell)
        number = None if match is None else _number(match[2])
        if match is None or number is None:
            return None
        towards = -math.inf if match[1][0] == "<" else math.inf
        end = number if match[1].endswith("=") else math.nextafter(number, towards)
        return (-math.inf, end) if match[1][0] == "<" else (end, math.inf)
    match list(cell.items()):
        case [("below", end)] if _number(end) is not None:
            return -math.inf, math.nextafter(float(end), -math.inf)
        case [("above", end)] if _number(end) is not None:
            return math.nextafter(float(end), math.inf), math.inf
        case [("between", [low, high])] if None not in (_number(low), _number(high)):
            return (float(low), float(high)) if float(low) < float(high) else None
    return None


def _number(value: object) -> float | None:
    """Return a finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None
