"""A table of one's own: numbers, an example a row; vectors [D], or bits where all are 0 or 1.

    z = (x - mean) / deviation,    of each column, over the rows that are fitted

The order of the rows is shuffled by the seed, then parted into test, valid and train.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from diffusion.space import DataSpace
from noneq.errors import FileError
from noneq.reading import arrays, tables
from training.data.dataset import DataError, Dataset, checksum, generator
from training.data.shares import Shares

LEAST = 50  # rows
BLOCK = 4096  # rows that are read at once
ENDINGS = tables.SUFFIXES


class TableConfig(Shares):
    """The rows of `file`: .csv or .tsv, with or without a line of names, .npy or .npz [rows, D].

    `valid` and `test` are shares of them.
    """

    kind: Literal["table"] = "table"
    file: str
    seed: int = Field(default=0, ge=0)

    @override
    def load(self) -> Dataset:
        """Read the rows and part them; float32 [rows, D].

        Raises:
            DataError: as `read`, or a column that is the same in every row.
        """
        path = Path(self.file)
        rows, names, notes = read(path)
        digest = checksum(rows)
        order = torch.randperm(len(rows), generator=generator(self.seed, "train"))
        rows = rows[order]
        test = max(1, round(self.test * len(rows)))
        held_out = test + max(1, round(self.valid * len(rows)))
        train = rows[held_out:]
        return Dataset(
            name=self.kind,
            space=_space(rows, train, path, names),
            train=train,
            valid=rows[test:held_out],
            test=rows[:test],
            checksum=digest,
            notes=notes,
        )


def read(path: Path) -> tuple[Tensor, tuple[str, ...] | None, tuple[str, ...]]:
    """The numbers of a table, float32 [rows, D], its columns' names if it has any, and notes.

    Raises:
        DataError: the file is missing, is no table of finite numbers, or has too few of them.
    """
    names = note = None
    try:
        if path.suffix.lower() in tables.TEXT:
            table = tables.Table(path)
            names, note = table.names, table.note
            array = np.concatenate(list(table.blocks(BLOCK)))
        else:
            array = np.asarray(arrays.load(path), np.float64)
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
        name = "" if names is None else f" ({names[column]})"
        raise DataError(
            f"{path}: row {row}, column {column}{name} is a gap ({len(gaps)} in all): fill it, or "
            "remove the row"
        )
    return torch.from_numpy(array.astype(np.float32)), names, () if note is None else (note,)


def _space(rows: Tensor, train: Tensor, path: Path, names: tuple[str, ...] | None) -> DataSpace:
    if bool(((rows == 0) | (rows == 1)).all()):
        return DataSpace(kind="bits", shape=(rows.shape[1],), columns=names)
    mean, deviation = train.double().mean(0), train.double().std(0)
    flat = (deviation == 0).nonzero().flatten().tolist()
    if flat:
        name = "" if names is None else f" ({names[flat[0]]})"
        raise DataError(
            f"{path}: column {flat[0]}{name} is the same in every row, which has no density: leave "
            "it out"
        )
    shift, scale = tuple(mean.tolist()), tuple(deviation.tolist())
    return DataSpace(kind="vector", shape=(rows.shape[1],), shift=shift, scale=scale, columns=names)
