"""Rows that follow each other, as readings do: a row held out beside its neighbours is no test.

A file is in order of its rows, and of any column that ascends in it, but for a few times where it
begins anew. Its rows are a series along one of these if the row most like another, by all other
columns, is near it in that order (`NEAR`) far more often than by chance.

    group = the 1 / BLOCKS of that order that a row is in

Rows of a group are held out together, and so are folds of them.
"""

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noneq.reading import tables

BLOCKS = 50
NEAR = 0.01  # of the order
ALIKE = 0.3  # share of rows most like one that is near, in a series; by chance it is 2 NEAR
VALUES = 20  # different ones of a column that orders rows
RUN = 50  # rows of an order on average before it begins anew
ROWS = "the rows"
ASKED, MOST = 400, 20_000  # rows whose nearest is looked for, and among which


@dataclass(frozen=True)
class Series:
    """An order in which rows follow each other.

    Attributes:
        along: the column, or "the rows".
        groups: of each row, int64 [N].
    """

    along: str
    groups: Tensor

    @property
    def words(self) -> str:
        """What follows from it, in a sentence."""
        return (
            f"rows near each other along {self.along} are alike: held out are whole stretches of "
            f"it, of {BLOCKS}"
        )


def find(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Series | None:
    """Find the order that rows of a table follow each other in; None if they do not.

    Args:
        names: of its columns.
        rows: the text of its cells.
    """
    columns = [_values([row[place] for row in rows]) for place in range(len(names))]
    orders = {name: values for name, values in zip(names, columns, strict=True) if _orders(values)}
    found = {name: _places(x) for name, x in orders.items() if x is not None}
    found[ROWS] = _places(torch.arange(len(rows)).double())
    z = [torch.special.ndtri(_places(x) * 0.998 + 0.001) for x in columns if x is not None]
    if not z:
        return None
    shares = {name: _alike(place, torch.stack(z, 1).nan_to_num()) for name, place in found.items()}
    alike = [name for name, share in shares.items() if share >= ALIKE]
    if not alike:
        return None
    # What ascends may come in several runs of rows, which the rows' own order tears apart.
    best = max([name for name in alike if name != ROWS] or alike, key=lambda name: shares[name])
    return Series(best, (found[best] * BLOCKS).long().clamp(max=BLOCKS - 1))


def _values(cells: Sequence[str]) -> Tensor | None:
    """A column's numbers or times, gaps NaN, float64 [N]; None if it holds neither."""
    found = [tables.number(cell) for cell in cells]
    if any(value is None for value in found):
        found = [_time(cell) for cell in cells]
    if any(value is None for value in found):
        return None
    return torch.tensor([value for value in found if value is not None], dtype=torch.float64)


def _orders(values: Tensor | None) -> bool:
    """Whether a column's values order the rows."""
    if values is None or bool(values.isnan().any()):
        return False
    few = int((values.diff() < 0).sum()) * RUN < len(values)
    return few and len(values.unique()) >= VALUES


def _time(cell: str) -> float | None:
    if cell.strip().lower() in tables.GAPS:
        return math.nan
    try:
        return datetime.datetime.fromisoformat(cell.strip()).timestamp()
    except (ValueError, OverflowError):
        return None


def _places(values: Tensor) -> Tensor:
    """Where each value is among all, 0 to 1, in the middle of equal ones; gaps stay NaN."""
    ordered = values[~values.isnan()].sort().values
    low, high = (torch.searchsorted(ordered, values.contiguous(), right=r) for r in (False, True))
    place = (low + high) / (2 * max(1, len(ordered)))
    return torch.where(values.isnan(), torch.nan, place)


def _alike(place: Tensor, z: Tensor) -> float:
    """The share of rows whose nearest, by the columns that do not ascend with it, is near."""
    place, z = place[:MOST], z[:MOST]
    own = torch.stack([_tied(place, column) for column in z.T])
    z = z[:, ~own]
    if not z.shape[1] or len(z) < 2:
        return 0.0
    dice = torch.Generator().manual_seed(0)
    some = torch.randperm(len(z), generator=dice)[:ASKED]
    apart = torch.cdist(z[some], z)
    apart[torch.arange(len(some)), some] = torch.inf
    off = (place[some] - place[apart.argmin(1)]).abs()
    return float((off <= max(NEAR, 1.5 / len(z))).double().mean())


def _tied(place: Tensor, column: Tensor) -> Tensor:
    """Whether a column is a function of the place that ascends, as the order's own is."""
    order = place.argsort(stable=True)
    return (column[order].diff() >= -1e-9).all()
