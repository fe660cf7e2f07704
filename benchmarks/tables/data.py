"""The tables that gaps are put into, their splits, and which cells are hidden.

    pip install --no-deps palmerpenguins vega_datasets ISLP

ships penguins, cars and wages, which are read as files; scikit-learn ships breast cancer, wine,
diabetes, iris and digits, and `training.data.weather` is here.

A row is float64 [J]: a number, or a category's place among its labels; NaN is a gap of the data's
own, which nobody is asked to fill. 30% of the rows are withheld, whole weeks of them for weather.
"""

import csv
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from training.data import weather as training_weather

Rows = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

HIDDEN = 0.3  # share of cells, of columns, or of a day's hours
HELD = 0.3  # share of rows, or of weeks
TESTED = 250  # withheld rows that are asked about, at most


@dataclass(frozen=True)
class Column:
    """A column's name, and its labels if it has categories."""

    name: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows, and what is known of them.

    Attributes:
        columns: in order.
        rows: float64 [N, J].
        groups: rows of one group are in one split, int [N].
        given: places of the columns that are never hidden.
        blocks: sets of columns of which neighbouring ones are hidden together, in order.
        wrong: cells known to be wrong, which are not asked for and do not count in a scale.
        classes: what each row is, for novelty, int [N].
    """

    columns: tuple[Column, ...]
    rows: Rows
    groups: Ints
    given: tuple[int, ...] = ()
    blocks: tuple[tuple[int, ...], ...] = ()
    wrong: Bools = field(default_factory=lambda: np.zeros((0, 0), np.bool_))
    classes: Ints | None = None

    @property
    def categories(self) -> list[int]:
        """Places of the columns with labels."""
        return [j for j, column in enumerate(self.columns) if column.labels]

    @property
    def numbers(self) -> list[int]:
        """Places of the others."""
        return [j for j, column in enumerate(self.columns) if not column.labels]

    def scale(self) -> Rows:
        """The deviation of each column over all rows, 1 for categories, [J]."""
        rows = np.where(self.wrong, np.nan, self.rows) if self.wrong.size else self.rows
        found: Rows = np.nanstd(rows, axis=0)
        found[self.categories] = 1.0
        return found

    def split(self, seed: int) -> tuple[Ints, Ints]:
        """The numbers of the rows to fit, and of those asked about."""
        dice = np.random.default_rng([seed, 0])
        names = dice.permutation(np.unique(self.groups))
        held = np.isin(self.groups, names[: round(HELD * len(names))])
        test = dice.permutation(held.nonzero()[0])[:TESTED]
        return (~held).nonzero()[0], np.sort(test)

    def hide(self, pattern: str, test: Ints, seed: int) -> Bools:
        """Which cells of the rows numbered `test` are hidden and asked for, [M, J]."""
        dice = np.random.default_rng([seed, 1])
        hidden = PATTERNS[pattern](self, len(test), dice)
        hidden[:, list(self.given)] = False
        if self.wrong.size:
            hidden &= ~self.wrong[test]
        found: Bools = hidden & ~np.isnan(self.rows[test])
        return found


def _cells(table: Table, count: int, dice: np.random.Generator) -> Bools:
    """Each cell with probability HIDDEN."""
    return dice.random((count, len(table.columns))) < HIDDEN


def _columns(table: Table, count: int, dice: np.random.Generator) -> Bools:
    """The same columns of every row."""
    some = [j for j in range(len(table.columns)) if j not in table.given]
    names = dice.permutation(some)[: max(1, round(HIDDEN * len(some)))]
    return np.tile(np.isin(np.arange(len(table.columns)), names), (count, 1))


def _hours(table: Table, count: int, dice: np.random.Generator) -> Bools:
    """Neighbouring columns of every block, as many as HIDDEN of them, somewhere."""
    hidden = np.zeros((count, len(table.columns)), np.bool_)
    long = len(table.blocks[0])
    size = round(HIDDEN * long)
    first = dice.integers(0, long - size + 1, count)
    for block in table.blocks:
        for row, start in enumerate(first):
            hidden[row, list(block[start : start + size])] = True
    return hidden


PATTERNS: dict[str, Callable[[Table, int, np.random.Generator], Bools]] = {
    "cells": _cells,
    "columns": _columns,
    "hours": _hours,
}


def patterns(table: Table) -> list[str]:
    """The patterns that suit a table."""
    return ["cells", "columns", *["hours"] * bool(table.blocks)]


def _sklearn(name: str, **options: bool) -> Table:
    from sklearn import datasets

    found = getattr(datasets, f"load_{name}")(**options)
    rows = np.asarray(found.data, np.float64)
    columns = [Column(str(each)) for each in found.feature_names]
    return Table(
        tuple(columns), rows, np.arange(len(rows)), classes=np.asarray(found.target, np.int64)
    )


def digits() -> Table:
    """8 x 8 digits, without the pixels that are the same in almost all of them."""
    whole = _sklearn("digits")
    kept = whole.rows.std(0) > 0.5
    columns = tuple(each for each, keep in zip(whole.columns, kept, strict=True) if keep)
    return Table(columns, whole.rows[:, kept], whole.groups, classes=whole.classes)


def diabetes() -> Table:
    """Patients in their own units, sex as a category, and the progression a year later."""
    from sklearn import datasets

    found = datasets.load_diabetes(scaled=False)
    rows = np.column_stack([found.data, found.target])
    rows[:, 1] -= 1
    names = [*found.feature_names, "progression"]
    columns = (Column(each, ("1", "2") if each == "sex" else ()) for each in names)
    return Table(tuple(columns), rows, np.arange(len(rows)))


def penguins() -> Table:
    """Palmer's penguins, with the gaps of eleven rows."""
    lines = _read("palmerpenguins", "data/penguins.csv")
    table = _typed(lines, ("species", "island", "sex"))
    species = table.rows[:, 0].astype(np.int64)
    return Table(table.columns, table.rows, table.groups, classes=species)


def cars() -> Table:
    """Cars of 1970 to 1982, with gaps in two columns."""
    found = json.loads(_file("vega_datasets", "_data/cars.json").read_text())
    names = [name for name in found[0] if name != "Name"]
    lines = [{name: _text(each[name]) for name in names} for each in found]
    for line in lines:
        line["Year"] = line["Year"][:4]
    return _typed(lines, ("Origin",))


def wage() -> Table:
    """Wages of 3,000 men, with six columns of categories."""
    lines = _read("ISLP", "data/Wage.csv")
    dropped = ("region", "logwage")  # the same for all, and the wage once more
    lines = [{k: v for k, v in line.items() if k not in dropped} for line in lines]
    return _typed(lines, ("maritl", "race", "education", "jobclass", "health", "health_ins"))


def weather() -> Table:
    """New York's weather by the hour, at three airports, with its gaps and one wrong wind."""
    return _weather(*training_weather.hours(), given=("origin", "day", "hour"))


def weather_day() -> Table:
    """A row of 24 hours: temperature and wind of a day at an airport."""
    blocks = tuple(range(2, 26)), tuple(range(26, 50))
    return replace(_weather(*training_weather.days(), given=("origin", "day")), blocks=blocks)


def _weather(names: list[str], x: Tensor, given: Sequence[str]) -> Table:
    labels = {"origin": training_weather.AIRPORTS, "wind_dir": training_weather.DIRECTIONS}
    rows: Rows = x.numpy()
    wind = np.array([name.startswith("wind_speed") for name in names])
    return Table(
        tuple(Column(name, labels.get(name, ())) for name in names),
        rows,
        (rows[:, names.index("day")].astype(np.int64) - 1) // 7,
        given=tuple(names.index(name) for name in given),
        wrong=wind & (rows > training_weather.GROSS),
    )


TABLES: dict[str, Callable[[], Table]] = {
    "weather": weather,
    "weather_day": weather_day,
    "breast_cancer": lambda: _sklearn("breast_cancer"),
    "wine": lambda: _sklearn("wine"),
    "diabetes": diabetes,
    "iris": lambda: _sklearn("iris"),
    "penguins": penguins,
    "cars": cars,
    "wage": wage,
    "digits": digits,
}


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _file(package: str, path: str) -> Path:
    """Find a file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: pip install --no-deps {package}")
    return Path(spec.origin).parent / path


def _read(package: str, path: str) -> list[dict[str, str]]:
    with _file(package, path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _typed(lines: Sequence[dict[str, str]], categories: Sequence[str]) -> Table:
    """Make numbers of lines of text, and places of those in `categories`."""
    columns, found = [], []
    for name in lines[0]:
        cells = ["" if line[name] == "NA" else line[name] for line in lines]
        labels = tuple(sorted({cell for cell in cells if cell})) if name in categories else ()
        columns.append(Column(name, labels))
        places = {label: float(place) for place, label in enumerate(labels)}
        number = places.__getitem__ if labels else float
        found.append([number(cell) if cell else np.nan for cell in cells])
    rows = np.array(found, np.float64).T
    return Table(tuple(columns), rows, np.arange(len(rows)))
