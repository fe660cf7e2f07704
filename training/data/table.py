"""The user's own table: each row is an example.

It is binary if all values are 0 or 1. With a heading, gaps, categories or integers it is a table of
typed columns (`training.data.columns`). Else, or if asked for, it is a vector [D],

    z = (x - mean) / deviation,    per column, over the training rows

where a column with limits is standardised as its probit (`diffusion.space`).

The rows are shuffled by the seed, then split into test, valid and train; of a series
(`training.data.series`) stretches of rows are.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor
from typing_extensions import override

from diffusion.space import DataSpace
from noneq.errors import FileError
from noneq.reading import tables
from training.data import series
from training.data.columns import Kind, Maps, gap_to_blank, infer, without_errors
from training.data.dataset import DataError, Dataset, Shares, checksum, generator

LEAST = 50  # rows
BLOCK = 4096  # rows read at once
REPEATS = 10  # a column counts as discrete if its values occur at least this often on average
ENDINGS = tables.SUFFIXES

Names = tuple[str, ...] | None
Limits = tuple[tuple[float, float] | None, ...] | None


class TableConfig(Shares):
    """The rows of `file`: .csv or .tsv, with or without a header, or .npy or .npz [rows, D].

    Attributes:
        file: its path.
        columns: what a column holds, by name, where that is not to be inferred.
        maps: which numbers of a table of typed columns go along their quantiles.
        reals: take all columns as real numbers: a vector.
        limits: the least and greatest value of columns that have any; all are then real numbers.
        seed: of the split.

    Columns are called by their names, or by their numbers where the table has none.
    """

    kind: Literal["table"] = "table"
    file: str
    columns: dict[str, Kind] = Field(default_factory=dict)
    maps: Maps = "skewed"
    reals: bool = False
    limits: dict[str, tuple[float, float]] = Field(default_factory=dict)
    seed: int = Field(default=0, ge=0)

    @override
    def load(self) -> Dataset:
        """Read and split the rows, in the data units of their space.

        Raises:
            DataError: the file cannot be read, or its rows cannot be modelled.
        """
        path = Path(self.file)
        if not (self.reals or self.limits):
            found = self._typed(path)
            if found is not None:
                return found
        return self._numbers(path)

    def _typed(self, path: Path) -> Dataset | None:
        """Load a table of typed columns; None if it is one of bits, or of reals without gaps."""
        names, rows, note = read_cells(path)
        if path.suffix.lower() not in tables.TEXT and not self.columns and _full(rows):
            return None
        if len(rows) < LEAST:
            raise DataError(
                f"{path} has {len(rows)} rows; a model needs at least {LEAST}, better thousands"
            )
        every = names or tuple(map(str, range(len(rows[0]))))
        unknown = [name for name in self.columns if name not in every]
        if unknown:
            raise DataError(
                f"--columns {', '.join(unknown)}: {path} has columns {', '.join(every)}"
            )
        if not self.columns and _all_bits(rows):
            return None
        order = torch.randperm(len(rows), generator=generator(self.seed, "train"))
        found = series.find(every, rows)
        test, valid, train = self._split(order, found)
        try:
            of = infer(every, rows, train, self.columns, self.maps)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
        space = of.space
        if not self.columns and of.plain and names is None:
            return None
        x = of.encode(rows)
        digest, full = checksum(x.nan_to_num(-1e300)), ~x.isnan().all(1)
        test, valid, train = (part[full[part]] for part in (test, valid, train))
        known, errors = without_errors(space, x[torch.cat((train, valid))], len(train))
        return Dataset(
            name=self.kind,
            space=space,
            train=known[: len(train)],
            valid=known[len(train) :],
            test=x[test],
            checksum=digest,
            notes=(
                *(() if note is None else (note,)),
                *of.notes,
                *errors,
                *(() if found is None else (found.words,)),
                *(_copies(x[full]) if space.numbers else ()),
            ),
            groups=None if found is None else found.groups[torch.cat((train, valid))],
        )

    def _split(self, order: Tensor, found: series.Series | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the numbers of the rows of test, valid and train, in a random order."""
        if found is None:
            test, held_out = self._parts(len(order))
            return order[:test], order[test:held_out], order[held_out:]
        names = found.groups.unique()
        names = names[torch.randperm(len(names), generator=generator(self.seed, "test"))]
        test, held_out = self._parts(len(names))
        of = found.groups[order]
        parts = names[:test], names[test:held_out], names[held_out:]
        tested, watched, fitted = (order[torch.isin(of, part)] for part in parts)
        return tested, watched, fitted

    def _parts(self, rows: int) -> tuple[int, int]:
        """Return how many rows are `test`, and how many `test` or `valid`."""
        test = max(1, round(self.test * rows))
        return test, test + max(1, round(self.valid * rows))

    def _numbers(self, path: Path) -> Dataset:
        """Load a table of numbers [rows, D], float64 if float32 cannot resolve their spread."""
        exact, names, notes = read(path)
        order = torch.randperm(len(exact), generator=generator(self.seed, "train"))
        test, held_out = self._parts(len(exact))
        rows, limits = exact, self._limits(names, exact.shape[1])
        space = _space(rows, order[held_out:], path, names, limits)
        if space.dtype == torch.float32:
            rows = exact.float()
            space = _space(rows, order[held_out:], path, names, limits)
        digest = checksum(rows)
        rows = rows[order]
        return Dataset(
            name=self.kind,
            space=space,
            train=rows[held_out:],
            valid=rows[test:held_out],
            test=rows[:test],
            checksum=digest,
            notes=(*notes, *(_doubts(exact, names) if space.greatest is None else ())),
        )

    def _limits(self, names: Names, count: int) -> Limits:
        """Put the limits in the columns' order.

        Raises:
            DataError: of a column that is not there.
        """
        every = names or tuple(map(str, range(count)))
        unknown = [name for name in self.limits if name not in every]
        if unknown:
            raise DataError(
                f"limits of {', '.join(unknown)}: {self.file} has columns {', '.join(every)}"
            )
        return tuple(self.limits.get(name) for name in every) if self.limits else None


def read_cells(path: Path) -> tuple[Names, list[list[str]], str | None]:
    """Read a table's names if any, the text of its cells, and a note.

    Raises:
        DataError: the file is missing or is no table.
    """
    try:
        if path.suffix.lower() in tables.TEXT:
            table = tables.Table(path)
            return table.names, list(table.rows()), table.note
        array = np.asarray(tables.load_array(path), np.float64)
        tables.check_finite(array, path)
    except FileError as error:
        raise DataError(str(error)) from error
    if array.ndim != 2:
        raise DataError(
            f"{path} holds numbers of shape {list(array.shape)}; a model needs [rows, columns]"
        )
    return None, [[repr(cell) for cell in row] for row in array.tolist()], None


def _full(rows: Sequence[Sequence[str]]) -> bool:
    """Whether no cell is a gap."""
    return not any(gap_to_blank(cell) == "" for row in rows for cell in row)


def _all_bits(rows: Sequence[Sequence[str]]) -> bool:
    """Whether all cells are 0 or 1."""
    return all(tables.number(cell) in (0.0, 1.0) for row in rows for cell in row)


def read(path: Path) -> tuple[Tensor, Names, tuple[str, ...]]:
    """Read a table: its numbers, float64 [rows, D], its columns' names if any, and notes.

    Raises:
        DataError: the file is missing, is not a table of finite numbers, or has too few rows.
    """
    names = note = None
    try:
        if path.suffix.lower() in tables.TEXT:
            table = tables.Table(path)
            names, note = table.names, table.note
            array = np.concatenate(list(table.blocks(BLOCK)))
        else:
            array = np.asarray(tables.load_array(path), np.float64)
            tables.check_finite(array, path)
    except FileError as error:
        raise DataError(str(error)) from error
    if array.ndim != 2 or len(array) < LEAST:
        raise DataError(
            f"{path} holds numbers of shape {list(array.shape)}; a model needs [rows, columns] of "
            f"at least {LEAST} rows, better thousands"
        )
    gaps = np.argwhere(np.isnan(array))
    if len(gaps):
        row, column = gaps[0].tolist()
        raise DataError(
            f"{path}: row {row}, {_column(column, names)} is a gap ({len(gaps)} in all): fill it, "
            "or remove the row"
        )
    return torch.tensor(array), names, () if note is None else (note,)


def _space(
    rows: Tensor, fitted: Tensor, path: Path, names: Names, limits: Limits = None
) -> DataSpace:
    """Binary if all values are 0 or 1, else real, standardised by the rows numbered `fitted`."""
    if limits is None and bool(((rows == 0) | (rows == 1)).all()):
        return DataSpace(kind="bits", shape=(rows.shape[1],), columns=names)
    train = rows[fitted].double()
    flat = (train == train[0]).all(0).nonzero().flatten().tolist()
    if flat:
        others = int((rows[:, flat[0]] != train[0, flat[0]].to(rows.dtype)).sum())
        but = f" but {others}" if others else ""
        raise DataError(
            f"{path}: {_column(flat[0], names)} is the same in every row{but}, which has no "
            "density: leave it out"
        )
    keys: dict[str, Any] = {"kind": "vector", "shape": rows.shape[1:], "columns": names}
    try:
        bare = DataSpace(**keys, limits=limits)
        bare.check(rows)
    except (ValidationError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
    train = bare.unlimited(train)
    mean, deviation = train.mean(0), train.std(0)
    shift, scale = tuple(mean.tolist()), tuple(deviation.tolist())
    try:
        return DataSpace(**keys, limits=limits, shift=shift, scale=scale)
    except ValidationError as error:
        far = mean.abs() / deviation
        worst = int(far.argmax())
        raise DataError(
            f"{path}: {_column(worst, names)} lies {float(far[worst]):.2g} times its spread from "
            "0, which float64 does not resolve: subtract an offset from it, its mean say"
        ) from error


def _doubts(rows: Tensor, names: Names) -> list[str]:
    """Warnings about data that make the held-out results misleading, in sentences."""
    found, different = _copies(rows), rows.unique(dim=0)
    discrete = [
        _column(column, names)
        for column, values in enumerate(different.T)
        if len(values.unique()) * REPEATS <= len(different)
    ]
    if discrete:
        more = f" and {len(discrete) - 6} more" if len(discrete) > 6 else ""
        found.append(
            f"few different values in {', '.join(discrete[:6])}{more}: they are fitted as reals, "
            "so samples lie between the values, and a density is as high as its peaks are narrow"
        )
    return found


def _copies(rows: Tensor) -> list[str]:
    copies = len(rows) - len(rows.nan_to_num(math.pi).unique(dim=0))
    if copies <= len(rows) // 100:
        return []
    return [
        f"{copies} of {len(rows)} rows are copies of others: some held-out rows were fitted to as "
        "well, and the report on them is too good; leave the copies out"
    ]


def _column(column: int, names: Names) -> str:
    return f"column {column}" + ("" if names is None else f" ({names[column]})")
