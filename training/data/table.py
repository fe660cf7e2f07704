"""A table of one's own: numbers, a datum a row; vectors [D], or bits where all are 0 or 1.

    z = (x - mean) / deviation,    of each column, over the rows that are fitted

The order of the rows is shuffled by the seed, then parted into test, valid and train.
"""

import csv
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from diffusion.space import DataSpace
from training.data.dataset import DataError, Dataset, checksum, generator
from training.data.shares import Shares

LEAST = 50  # rows
ENDINGS = (".csv", ".npy")


class TableConfig(Shares):
    """The rows of `file` (.csv, with or without a line of names, or .npy [rows, D]).

    `valid` and `test` are shares of them.
    """

    kind: Literal["table"] = "table"
    file: str
    seed: int = Field(default=0, ge=0)


def read(path: Path) -> Tensor:
    """The numbers of a table, float32 [rows, D].

    Raises:
        DataError: the file is missing, is no table of finite numbers, or has too few of them.
    """
    try:
        array = _npy(path) if path.suffix.lower() == ".npy" else _csv(path)
    except (OSError, ValueError) as error:
        raise error if isinstance(error, DataError) else DataError(f"{path}: {error}") from error
    if array.ndim != 2 or len(array) < LEAST:
        raise DataError(
            f"{path} holds numbers of shape {list(array.shape)}; a model needs [rows, columns] of "
            f"at least {LEAST} rows, better thousands"
        )
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        row, column = wrong[0]
        raise DataError(
            f"{path}: row {row}, column {column} is empty or no finite number: fill or remove it"
        )
    return torch.from_numpy(array.astype(np.float32))


def _npy(path: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    array = np.load(path, allow_pickle=False)
    return np.asarray(array, np.float64)


def _csv(path: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.reader(file) if line]
    if lines and any(_number(cell) is None for cell in lines[0]):
        lines = lines[1:]  # names
    width = len(lines[0]) if lines else 0
    out = np.empty((len(lines), width))
    for i, line in enumerate(lines):
        numbers = [_number(cell) for cell in line]
        if len(line) != width or None in numbers:
            raise DataError(f"{path}: row {i} is not {width} numbers: {','.join(line)[:60]}")
        out[i] = numbers
    return out


def _number(cell: str) -> float | None:
    try:
        return float(cell) if cell.strip() else float("nan")
    except ValueError:
        return None


def load(config: TableConfig) -> Dataset:
    """Read the rows and part them; float32 [rows, D].

    Raises:
        DataError: as `read`, or a column that is the same in every row.
    """
    path = Path(config.file)
    rows = read(path)
    digest = checksum(rows)
    order = torch.randperm(len(rows), generator=generator(config.seed, "train"))
    rows = rows[order]
    test = max(1, round(config.test * len(rows)))
    held_out = test + max(1, round(config.valid * len(rows)))
    train = rows[held_out:]
    return Dataset(
        name=config.kind,
        space=_space(rows, train, path),
        train=train,
        valid=rows[test:held_out],
        test=rows[:test],
        checksum=digest,
    )


def _space(rows: Tensor, train: Tensor, path: Path) -> DataSpace:
    if bool(((rows == 0) | (rows == 1)).all()):
        return DataSpace(kind="bits", shape=(rows.shape[1],))
    mean, deviation = train.double().mean(0), train.double().std(0)
    flat = (deviation == 0).nonzero().flatten().tolist()
    if flat:
        raise DataError(
            f"{path}: column {flat[0]} is the same in every row, which has no density: leave it out"
        )
    shift, scale = tuple(mean.tolist()), tuple(deviation.tolist())
    return DataSpace(kind="vector", shape=(rows.shape[1],), shift=shift, scale=scale)
