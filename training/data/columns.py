"""The columns of a table, from the text of its cells: what each holds, and what is left out.

A column is, in this order,

- left out, if all its values are the same, or all differ as an id's or a date's do;
- a category, if it is text, or has two values, or few integers (`CODES`);
- a number on a lattice, if its values are multiples of a step and come again and again;
- a real number, else.

Numbers are scaled, or go along their quantiles to those of a Normal (`Maps`).

`kinds` overrides this by column.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from diffusion.table import Category, Number, TableSpace, fitted_number
from noneq.reading import tables

Kind = Literal["real", "integer", "category", "out"]
Maps = Literal["scaled", "skewed", "quantiles"]
"""Which columns of numbers go along their quantiles: none, those that are skewed, or all."""

CODES = 5  # integers up to so many different ones are codes
LABELS = 100  # categories of a column, at most
OFTEN = 3  # rows a label of text has on average, if it is a category
AGAIN = 2  # rows a value has on average, if it is one of a lattice
FINEST = 300  # steps of a lattice in a standard deviation, at most
PLACES = 6  # decimal places that a step may have
SKEWED = 1.0  # skewness from which numbers follow their quantiles
HEAVY = 6.0  # kurtosis from which they do
KNOTS = (10, 101)  # points of a map along quantiles: least and most
ROWS_A_KNOT = 10
NEAR = 0.25  # deviations between 0 and the least value for which 0 is a limit
FAR, BEYOND = 20.0, 3  # times as far from the median as all but so many values are: a gross error

_NUMBER = re.compile(r"[-+]?[€$£]?\d[\d.,']*\s?[%€$£]?")  # in any notation
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?([T ].*)?|\d\d?[/.]\d\d?[/.]\d{2,4}.*|\d\d?:\d\d(:\d\d)?")


@dataclass(frozen=True)
class Found:
    """What was found in a table.

    Attributes:
        space: the columns that are modelled.
        places: theirs in the table.
        notes: what was inferred, in sentences.
        plain: whether all columns of the table are real numbers without gaps.
    """

    space: TableSpace
    places: tuple[int, ...]
    notes: tuple[str, ...]
    plain: bool

    def encode(self, rows: Sequence[Sequence[str]]) -> Tensor:
        """The rows of the table in data units, float64 [N, J]; gaps are NaN."""
        return self.space.encode([[gap_to_blank(row[i]) for i in self.places] for row in rows])


@dataclass(frozen=True)
class Column:
    """The cells of a column.

    Attributes:
        name: of the column.
        cells: text, stripped; "" for a gap.
        numbers: the same as numbers, NaN for a gap, or None if a cell is no number.
    """

    name: str
    cells: tuple[str, ...]

    @property
    def filled(self) -> list[str]:
        """The cells that are no gaps."""
        return [cell for cell in self.cells if cell]

    @property
    def numbers(self) -> list[float] | None:
        """The cells that are no gaps as numbers; None if one is none."""
        found = [tables.number(cell) for cell in self.filled]
        return None if None in found else [n for n in found if n is not None]


def infer(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    fitted: Tensor,
    kinds: Mapping[str, Kind],
    maps: Maps = "skewed",
) -> Found:
    """Find what the columns of a table hold.

    Args:
        names: of the columns.
        rows: the text of the cells.
        fitted: the rows that numbers are scaled by, int64.
        kinds: of columns whose kind is given.
        maps: which go along their quantiles.

    Raises:
        ValueError: a column cannot be of the kind given, or none is left.
    """
    columns: list[Number | Category] = []
    places: list[int] = []
    notes: list[str] = []
    wanted = set(fitted.tolist())
    for place, name in enumerate(names):
        cells = [gap_to_blank(row[place]) for row in rows]
        whole = Column(name, tuple(cells))
        part = Column(name, tuple(cell for i, cell in enumerate(cells) if i in wanted))
        made, why = _column(whole, part, kinds.get(name), maps)
        if made is None:
            notes.append(f"{name}: left out, {why}")
            continue
        columns.append(made)
        places.append(place)
        gaps = len(cells) - len(whole.filled)
        empty = f"; {gaps:,} of {len(cells):,} are gaps" if gaps else ""
        notes.append(f"{name}: {why}{empty}")
    if not columns:
        raise ValueError(f"no column is left to model: {'; '.join(notes)}")
    reals = all(isinstance(each, Number) and each.step is None for each in columns)
    full = not any(gap_to_blank(cell) == "" for row in rows for cell in row)
    plain = reals and full and len(columns) == len(names)
    return Found(TableSpace(columns=tuple(columns)), tuple(places), tuple(notes), plain)


def gross(x: Tensor, values: Tensor) -> Tensor:
    """Which of x are gross errors beside a column's values without gaps, bool.

    A value is one if it is `FAR` times as far from the median as the value that only `BEYOND`
    others are beyond, as a wind of 1,048 miles an hour is. One that is fitted to spoils a scale.
    """
    ordered = values.double().sort().values
    if len(ordered) <= 2 * BEYOND:
        return torch.zeros_like(x, dtype=torch.bool)
    middle = ordered[len(ordered) // 2]
    low, high = ordered[BEYOND] - middle, ordered[-BEYOND - 1] - middle
    off = x.double() - middle
    return ((off > FAR * high) & (high > 0)) | ((off < FAR * low) & (low < 0))


def without_errors(space: TableSpace, rows: Tensor, fitted: int) -> tuple[Tensor, list[str]]:
    """Make gaps of gross errors, and say of which.

    Args:
        space: of the rows.
        rows: data units, float64 [N, J].
        fitted: how many of them, the first ones, say what is gross.
    """
    rows, notes = rows.clone(), []
    for place in space.numbers:
        own = rows[:, place]
        wrong = gross(own, own[:fitted][~own[:fitted].isnan()])
        if bool(wrong.any()):
            came = ", ".join(f"{value:.6g}" for value in own[wrong].tolist()[:3])
            notes.append(
                f"{space.names[place]}: {came} so far from all others that it is not fitted to"
            )
            rows[wrong, place] = torch.nan
    return rows, notes


def gap_to_blank(cell: str) -> str:
    """Return a cell stripped, and "" for a gap."""
    text = cell.strip()
    return "" if text.lower() in tables.GAPS else text


def _column(
    whole: Column, part: Column, kind: Kind | None, maps: Maps
) -> tuple[Number | Category | None, str]:
    """Return a column and what it is, in words; or None and why it is left out."""
    counts, numbers = Counter(whole.filled), whole.numbers
    if kind == "out":
        return None, "as asked"
    if numbers is None and kind != "category":
        _check_numbers(whole, kind)
    if len(set(part.filled)) < 2:
        return None, "as its values are all the same" if counts else "as it is empty"
    if kind == "category":
        return _category(whole, counts)
    if numbers is None:
        return _text(whole, counts)
    different = len(set(numbers))
    integers = all(n == round(n) for n in numbers)
    if kind is None and integers and different <= CODES:
        return _category(whole, counts)
    if kind is None and _is_id(numbers):
        return None, "as an id: its values are the numbers of the rows"
    x = torch.tensor(part.numbers, dtype=torch.float64)
    step = _step(numbers) if kind != "real" else None
    if kind is None and step is not None:
        fine = float(x.std()) / step > FINEST
        step = None if fine or different * AGAIN > len(numbers) else step
    if kind == "integer" and not (integers and step):
        raise ValueError(f"column {whole.name!r} is no integer: {whole.filled[0]!r} comes in it")
    return _number(whole.name, x, min(numbers), step, maps)


def _number(
    name: str, x: Tensor, least: float, step: float | None, maps: Maps
) -> tuple[Number, str]:
    x = x[~gross(x, x)]
    scale = float(x.std(correction=0)) or 1.0
    low = 0.0 if 0 <= least <= NEAR * scale else None
    found = fitted_number(name, x, knots=knots(x, maps), step=step, low=low)
    along = ", along its quantiles" if len(found.knots) > 2 else ""
    kind = "real" if step is None else "integer" if step == 1 else f"steps of {step:g}"
    limit = ", not below 0" if low is not None else ""
    return found, f"{kind}{limit}{along}"


def knots(x: Tensor, maps: Maps) -> int:
    """Return how many points the map of a column's values has: two for a scale."""
    off = x - x.mean()
    scale = float(off.square().mean().sqrt()) or 1.0
    skew = float(off.pow(3).mean()) / scale**3
    kurtosis = float(off.pow(4).mean()) / scale**4 - 3
    skewed = abs(skew) > SKEWED or kurtosis > HEAVY
    bent = maps == "quantiles" or (maps == "skewed" and skewed)
    return min(KNOTS[1], max(KNOTS[0], len(x) // ROWS_A_KNOT)) if bent else 2


def _text(column: Column, counts: Counter[str]) -> tuple[Category | None, str]:
    if sum(bool(_DATE.fullmatch(cell)) for cell in column.filled) > len(column.filled) // 2:
        return None, "as a date or time: write what matters of it (hour, month) in columns"
    few = len(counts) <= LABELS and len(counts) * OFTEN <= len(column.filled)
    alike = sum(bool(_NUMBER.fullmatch(cell)) for cell in column.filled) * 2 > len(column.filled)
    if alike and not few:
        cell = next(cell for cell in column.filled if tables.number(cell) is None)
        raise ValueError(
            f"column {column.name!r}: {cell!r} resembles a number: write 1234.5, with a decimal "
            "point, nothing between thousands and no unit, or leave the column out (--columns "
            f"{column.name}=out)"
        )
    if not few:
        most = f"a category has {LABELS} at most, and each {OFTEN} times on average"
        return None, f"as text: {len(counts)} different values ({most})"
    return _category(column, counts)


def _check_numbers(column: Column, kind: Kind | None) -> None:
    """Raise ValueError if a column with text should hold numbers, as asked or as most cells do."""
    cells = [bool(cell) and tables.number(cell) is None for cell in column.cells]
    if kind is None and sum(cells) * 2 > len(column.filled):
        return
    row = cells.index(True)
    most = "" if kind else ", and most cells of its column are"
    raise ValueError(
        f"row {row}, column {column.name}: {column.cells[row]!r} is no number{most}: write it as "
        "one or leave it empty, or say that the column is a category (--columns)"
    )


def _category(column: Column, counts: Counter[str]) -> tuple[Category, str]:
    if len(counts) > 1000:
        raise ValueError(
            f"column {column.name!r} has {len(counts)} different values, at most 1000 are "
            "categories: leave it out"
        )
    labels = sorted(counts, key=_order)
    shown = ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")
    return Category(name=column.name, labels=tuple(labels)), f"category ({shown})"


def _order(label: str) -> tuple[float, str]:
    number = tables.number(label)
    return (math.inf if number is None else number, label)


def _is_id(numbers: Sequence[float]) -> bool:
    """Whether the numbers are ascending integers, most of them one more than the last."""
    apart = [b - a for a, b in pairwise(numbers)]
    return all(d > 0 and d % 1 == 0 for d in apart) and 2 * apart.count(1) > len(apart)


def _step(numbers: Sequence[float]) -> float | None:
    """Return the greatest decimal step that all numbers are multiples of; None for none."""
    for place in range(PLACES + 1):
        scale = 10**place
        scaled = [n * scale for n in numbers]
        whole = [round(n) for n in scaled]
        if all(abs(a - b) <= 1e-6 * max(1.0, abs(a)) for a, b in zip(scaled, whole, strict=True)):
            divisor = math.gcd(*whole)
            return divisor / scale if divisor else None
    return None
