"""Tables of named columns: what a caller has, and the draws and scores of its rows.

Rows come as a pandas DataFrame, objects by name, lists, or CSV (a path, or the text). pandas is
needed only for what returns a DataFrame.
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, final

import numpy as np

from noneq import display
from noneq.codec import Array
from noneq.errors import FileError, MissingExtra
from noneq.models import Column, ModelFacts
from noneq.reading.cells import read_cells
from noneq.reading.tables import GAPS
from noneq.rubin import pool

if TYPE_CHECKING:
    import pandas

Cell = Any
#: A DataFrame, objects by name, lists, an array [N, J], a path of a CSV file, or its text.
Data = "pandas.DataFrame | Iterable[Mapping[str, Cell]] | Iterable[Sequence[Cell]] | str | Path"


@final
@dataclass(frozen=True)
class Table:
    """Rows of cells as a caller gave them.

    Attributes:
        names: the columns' names.
        cells: [N][J]; a gap is None.
        index: the DataFrame's index; None for other data.
    """

    names: tuple[str, ...]
    cells: list[list[Cell]]
    index: Any = None

    @classmethod
    def read(cls, data: Any, model: ModelFacts) -> Self:  # noqa: ANN401  (see `Data`)
        """Read rows for a model.

        Raises:
            FileError: a row has another length, or lacks columns, or a file cannot be read.
        """
        if model.table is None:
            raise FileError(f"{model.name} is a model of {model.kind} data, and these are rows")
        wanted = tuple(column.name for column in model.table)
        if isinstance(data, str | Path):
            heading, text = read_cells(_text(data))
            if heading is not None:
                return cls(heading, list(text))._for(model)
            return cls._in_order(text, wanted, model)
        if hasattr(data, "to_dict") and hasattr(data, "columns"):
            names = tuple(map(str, data.columns))
            columns = [_plain(data.iloc[:, i]) for i in range(len(names))]
            cells = [list(row) for row in zip(*columns, strict=True)]
            return cls(names, cells, data.index)._for(model)
        rows = list(data)
        if rows and all(isinstance(row, Mapping) for row in rows):
            names = tuple(dict.fromkeys(str(name) for row in rows for name in row))
            cells = [[_cell(row.get(name)) for name in names] for row in rows]
            return cls(names, cells)._for(model)
        return cls._in_order(rows, wanted, model)

    @classmethod
    def _in_order(
        cls, rows: Sequence[Sequence[Cell]], wanted: tuple[str, ...], model: ModelFacts
    ) -> Self:
        """Take rows of the model's columns, in their order."""
        for i, row in enumerate(rows):
            if len(row) != len(wanted):
                raise FileError(
                    f"row {i} has {len(row)} cells, where {model.name} has {len(wanted)} columns: "
                    f"{', '.join(wanted)}"
                )
        return cls(wanted, [[_cell(cell) for cell in row] for row in rows])

    def _for(self, model: ModelFacts) -> Self:
        """Add the model's columns that are not there, as gaps; others stay beside them.

        Raises:
            FileError: columns are lacking and there are others, which may be the same misspelt.
        """
        wanted = [column.name for column in model.table or ()]
        missing = [name for name in wanted if name not in self.names]
        others = [name for name in self.names if name not in wanted]
        if missing and others:
            raise FileError(
                f"the columns {', '.join(missing)} of {model.name} are missing, and it does not "
                f"know {', '.join(others)}: rename them; other columns may be there only beside "
                f"all of {', '.join(wanted)}"
            )
        gaps = [None] * len(missing)
        return replace(self, names=(*self.names, *missing), cells=[[*c, *gaps] for c in self.cells])

    def places(self, columns: Sequence[Column]) -> list[int]:
        """Return where the model's columns are among these."""
        return [self.names.index(column.name) for column in columns]

    def objects(self, rows: Sequence[int], columns: Sequence[Column]) -> list[dict[str, Cell]]:
        """Return rows as objects of the model's columns, without their gaps."""
        at = list(zip((column.name for column in columns), self.places(columns), strict=True))
        return [
            {name: self.cells[i][j] for name, j in at if self.cells[i][j] is not None} for i in rows
        ]


@final
@dataclass(frozen=True)
class Imputed:
    """m completions of a table; what was given is unchanged.

    Attributes:
        table: what was given.
        columns: of the model.
        rows: the rows that were drawn, [n]: those with a gap.
        open: which of their cells were drawn, bool [n, J].
        values: the draws, float64 [n, m, J]; a category as its place among the labels.
        model, seed, method: of the answers.
        warnings: what may be wrong with a row's draws, by its place in the table.
        calibration: how such draws fare on held-out data, if that was measured.
    """

    table: Table
    columns: tuple[Column, ...]
    rows: list[int]
    open: Array
    values: Array
    model: str
    seed: int
    method: str | None
    warnings: Mapping[int, str]
    calibration: str | None

    def __len__(self) -> int:
        """The number of draws, m."""
        return int(self.values.shape[1])

    def __repr__(self) -> str:
        gaps = int(self.open.sum())
        return f"Imputed({len(self.table.cells)} rows, {gaps} gaps, {len(self)} draws)"

    def _repr_html_(self) -> str:
        """Return what was drawn for each gap, for a notebook."""
        gaps = display.number(int(self.open.sum()), "gap")
        rows = display.number(len(self.table.cells), "row")
        by = f"{self.model}, method {self.method}, seed {self.seed}"
        about = f"{gaps} of {rows}, {len(self)} draws by {by}"
        warned = [f"row {i}: {warning}" for i, warning in self.warnings.items()]
        return display.table(*self.gaps(), [about, *filter(None, [self.calibration]), *warned])

    def cells(self, draw: int) -> list[list[Cell]]:
        """Return the whole table with the gaps of one draw, [N][J]."""
        return self._filled(self.values[:, draw])

    def median(self) -> list[list[Cell]]:
        """Return the table with each gap's median, or its most probable category."""
        found = np.empty((len(self.rows), len(self.columns)))
        for j, column in enumerate(self.columns):
            drawn = self.values[:, :, j]
            if column.labels is None:
                found[:, j] = np.quantile(drawn, 0.5, axis=1, method="inverted_cdf")
            else:
                found[:, j] = self._shares(j).argmax(1)
        return self._filled(found)

    def mean(self) -> list[list[Cell]]:
        """Return the table with each gap's mean, or its most probable category."""
        found = self.values.mean(1)
        for j, column in enumerate(self.columns):
            if column.labels is not None:
                found[:, j] = self._shares(j).argmax(1)
        return self._filled(found, exact=False)

    def gaps(self, quantiles: Sequence[float] = (0.05, 0.5, 0.95)) -> tuple[list[str], list[Any]]:
        """Return a line for each gap: row, column, its mean and quantiles, or probabilities.

        Returns:
            The names of the lines' fields, and the lines. What a column has not is None.
        """
        names = ["row", "column", "mean", "std", *(f"q{q:g}" for q in quantiles), "probabilities"]
        lines = []
        for place, j in np.argwhere(self.open).tolist():
            column, drawn = self.columns[j], self.values[place, :, j]
            line: list[Any] = [self.rows[place], column.name]
            if column.labels is None:
                std = float(drawn.std(ddof=1)) if len(self) > 1 else None
                found = np.quantile(drawn, quantiles, method="inverted_cdf").tolist()
                line += [float(drawn.mean()), std, *found, None]
            else:
                shares = dict(zip(column.labels, self._shares(j)[place].tolist(), strict=True))
                line += [None] * (2 + len(quantiles)) + [shares]
            lines.append(line)
        return names, lines

    @cached_property
    def draws(self) -> "list[pandas.DataFrame]":
        """The completed tables as DataFrames, one for each draw, with the index that was given."""
        return [frame(self.table.names, self.cells(i), self.table.index) for i in range(len(self))]

    def frame(self) -> "pandas.DataFrame":
        """Return the table as a DataFrame, with the medians of `median`."""
        return frame(self.table.names, self.median(), self.table.index)

    @cached_property
    def pooled(self) -> "dict[str, Estimate]":
        """Means of numbers and shares of categories, each pooled by Rubin's rules.

        By a column's name; a category's as "column=label".
        """
        found = {}
        whole = self._whole()
        n = whole.shape[1]
        for j, column in enumerate(self.columns):
            drawn = whole[:, :, j]
            if column.labels is None:
                var = drawn.var(1, ddof=1)
                found[column.name] = Estimate(
                    *pool(drawn.mean(1), var / n, n - 1), float(var.mean())
                )
                continue
            for k, label in enumerate(column.labels):
                share = (drawn == k).mean(1)
                var = share * (1 - share)
                estimate = pool(share, var / n, n - 1)
                found[f"{column.name}={label}"] = Estimate(*estimate, float(var.mean()))
        return found

    def _whole(self) -> Array:
        """Return every draw of the whole table as numbers, float64 [m, N, J]."""
        at = self.table.places(self.columns)
        given = np.array(
            [
                [_number(row[j], column) for j, column in zip(at, self.columns, strict=True)]
                for row in self.table.cells
            ]
        ).reshape(len(self.table.cells), len(self.columns))
        found = np.repeat(given[None], len(self), 0)
        found[:, self.rows] = self.values.transpose(1, 0, 2)
        return found

    def _shares(self, j: int) -> Array:
        """Return the share of each label of a column among the draws, [n, labels]."""
        labels = self.columns[j].labels or ()
        return np.stack([(self.values[:, :, j] == k).mean(1) for k in range(len(labels))], 1)

    def _filled(self, values: Array, *, exact: bool = True) -> list[list[Cell]]:
        """Return the table with the open cells of its drawn rows as these numbers, [n, J]."""
        cells, at = [list(row) for row in self.table.cells], self.table.places(self.columns)
        for place, j in np.argwhere(self.open).tolist():
            column = self.columns[j]
            cells[self.rows[place]][at[j]] = shown(float(values[place, j]), column, exact=exact)
        return cells


class Estimate(NamedTuple):
    """A column's mean, or a category's share, pooled by Rubin's rules (`Pooled`).

    Attributes:
        variance: of the column itself, the mean over the draws.
    """

    estimate: float
    standard_error: float
    low: float
    high: float
    degrees_of_freedom: float
    within: float
    between: float
    missing: float
    variance: float


@final
@dataclass(frozen=True)
class Scores:
    """How typical the rows of a table are, and because of which columns.

    Attributes:
        table: what was given.
        columns: of the model.
        bound: a lower bound on the row's log-density, nats, [N]; gaps are left out.
        standard_error: of the bound, [N].
        rarer_than: the share of held-out rows with a larger bound, [N]; NaN if not known.
        typicality: p-values, [N]; near 0 a row is unlike held-out ones. NaN if not known.
        parts: each column's part of the bound, nats, [N, J]; NaN for a gap.
        rarer: the share of held-out rows in which that part is larger, [N, J]; NaN if not known.
        model, seed: of the answers.
        uncompared: why `rarer_than` or `typicality` is not known, if so.
    """

    table: Table
    columns: tuple[Column, ...]
    bound: Array
    standard_error: Array
    rarer_than: Array
    typicality: Array
    parts: Array
    rarer: Array
    model: str
    seed: int
    uncompared: str | None

    def _repr_html_(self) -> str:
        """Return the lines for a notebook."""
        about = f"bounds on log p of rows of {self.model}, nats, seed {self.seed}"
        return display.table(*self.lines(), [about, *filter(None, [self.uncompared])])

    @property
    def worst(self) -> list[str | None]:
        """The column of each row that is rarest; None for a row without values.

        Of columns that are rarer than in any held-out row, the one with the least part.
        """
        names = [column.name for column in self.columns]
        rank = np.zeros_like(self.parts) if bool(np.isnan(self.rarer).all()) else self.rarer
        found = []
        for parts, ranks in zip(self.parts, rank, strict=True):
            there = np.flatnonzero(~np.isnan(parts) & ~np.isnan(ranks))
            worst = max(there, key=lambda j: (ranks[j], -parts[j]), default=None)
            found.append(None if worst is None else names[worst])
        return found

    def lines(self) -> tuple[list[str], list[list[Any]]]:
        """Return a line for each row: its scores, its rarest column, and each column's part."""
        names = ["bound", "standard_error", "rarer_than", "typicality", "rarest"]
        parts = [f"nats of {column.name}" for column in self.columns]
        columns = [getattr(self, name).tolist() for name in names[:-1]] + [self.worst]
        rows = [[*one, *part] for *one, part in zip(*columns, self.parts.tolist(), strict=True)]
        return [*names, *parts], rows

    def frame(self) -> "pandas.DataFrame":
        """Return the lines as a DataFrame, with the index that was given."""
        return frame(*self.lines(), self.table.index)


def frame(
    names: Sequence[str],
    rows: Sequence[Sequence[Any]],
    index: Any = None,  # noqa: ANN401
) -> "pandas.DataFrame":
    """Make a DataFrame.

    Raises:
        MissingExtra: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise MissingExtra("DataFrames need pandas: pip install 'noneq[pandas]'") from None
    return pandas.DataFrame(list(rows), columns=list(names), index=index)


def shown(value: float, column: Column, *, exact: bool = True) -> Cell:
    """Return a number as a cell: a label, an integer, a float, or None for NaN.

    Args:
        value: a number, or a label's place.
        column: its column.
        exact: whether a number of a column of integers is one.
    """
    if math.isnan(value):
        return None
    if column.labels is not None:
        return column.labels[round(value)]
    whole = column.step is not None and column.step % 1 == 0 and (column.low or 0) % 1 == 0
    return round(value) if whole and exact else value


def to_csv(names: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Write rows as CSV; a gap, None or NaN, is an empty cell."""
    out = StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(names)
    table.writerows(["" if cell is None or cell != cell else cell for cell in row] for row in rows)
    return out.getvalue()


def is_limit(cell: Cell) -> bool:
    """Whether a cell limits a number instead of giving it: "<0.01", {"below": 0.01}."""
    return isinstance(cell, Mapping) or (isinstance(cell, str) and cell.strip()[:1] in ("<", ">"))


def _text(data: str | Path) -> str:
    """Return the text of a CSV file, or the text itself: text has several lines."""
    if isinstance(data, str) and "\n" in data:
        return data
    try:
        return Path(data).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{data} cannot be read as CSV in UTF-8 ({error})") from error


def _cell(cell: Cell) -> Cell:
    """Return a cell as JSON can hold it; a gap is None."""
    value = cell.item() if isinstance(cell, np.generic) else cell
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str) and value.strip().lower() in GAPS:
        return None
    return value if isinstance(value, str | int | float | Mapping) else str(value)


def _plain(series: "pandas.Series[Any]") -> list[Cell]:
    """Return a DataFrame's column as cells."""
    return [None if gap else _cell(x) for x, gap in zip(series, series.isna(), strict=True)]


def _number(cell: Cell, column: Column) -> float:
    """Return a given cell as a number, or a label's place; NaN for a gap."""
    if cell is None or is_limit(cell):
        return math.nan
    if column.labels is None:
        return float(cell)
    texts = [str(cell).strip(), str(cell).strip().lower()]
    if isinstance(cell, bool | float) and float(cell).is_integer():
        texts.append(str(int(cell)))
    return float(next((column.labels.index(text) for text in texts if text in column.labels), -1))
