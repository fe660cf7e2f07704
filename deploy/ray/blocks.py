"""A data set in blocks of rows: each can be read alone, whatever the size of the whole.

A block is rows of a Parquet or CSV file, or a number of pictures of a folder. Blocks and their rows
are numbered through all files, in the order of their names, so a second run finds the same ones.
"""

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow.parquet as pq
from typing_extensions import override

from noneq.errors import FileError
from noneq.models import ModelFacts
from noneq.reading import folders, read

Cells = str | list[dict[str, Any]]  # CSV, or rows by column name


@dataclass(frozen=True)
class Block(ABC):
    """Rows first..first + count - 1 of the data set.

    Attributes:
        number: of the block.
        first: number of its first row.
        count: how many.
        file: where they are.
    """

    number: int
    first: int
    count: int
    file: str

    @abstractmethod
    def cells(self) -> Cells:
        """Read the rows of a table."""

    def to_json(self) -> str:
        """Where it is, for another process."""
        return json.dumps({"kind": type(self).__name__, **asdict(self)})

    @staticmethod
    def from_json(text: str) -> "Block":
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        kinds = {kind.__name__: kind for kind in (ParquetRows, CsvRows, Pictures)}
        return kinds[fields.pop("kind")](**fields)

    def files(self) -> list[str]:
        """The file of each row."""
        return [self.file] * self.count


@final
@dataclass(frozen=True)
class ParquetRows(Block):
    """Rows of a Parquet file, from its row `start` on."""

    start: int

    @override
    def cells(self) -> Cells:
        file, at, parts = pq.ParquetFile(self.file), 0, []
        end = self.start + self.count
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if at < end and at + size > self.start:
                low, high = max(0, self.start - at), min(size, end - at)
                parts += file.read_row_group(group).slice(low, high - low).to_pylist()
            at += size
        return parts


@final
@dataclass(frozen=True)
class CsvRows(Block):
    """Rows of a CSV file: its bytes from `start` to `end`, below its first line."""

    start: int
    end: int

    @override
    def cells(self) -> Cells:
        with Path(self.file).open("rb") as file:
            heading = file.readline()
            file.seek(self.start)
            return (heading + file.read(self.end - self.start)).decode("utf-8-sig")


@final
@dataclass(frozen=True)
class Pictures(Block):
    """Pictures of a folder, in the order of their names."""

    names: Sequence[str]

    @override
    def cells(self) -> Cells:
        raise FileError(f"{self.file}: pictures, where the model is of a table")

    @override
    def files(self) -> list[str]:
        return list(self.names)

    def values(self, model: ModelFacts) -> tuple[np.ndarray, np.ndarray]:
        """Read the pictures [n, *shape] in data units, and which of their values are known."""
        found = [block for name in self.names for block in read(Path(name), model)]
        values, known = ([getattr(one, what) for one in found] for what in ("values", "known"))
        return np.concatenate(values), np.concatenate(known)


def plan(paths: Sequence[Path], rows: int) -> Iterator[Block]:
    """Divide files and folders into blocks of up to `rows` rows, without reading them whole.

    Raises:
        FileError: a file is missing, or is neither Parquet, CSV nor a folder of these or pictures.
    """
    number = first = 0
    for path in paths:
        if not path.exists():
            raise FileError(f"{path}: there is no such file or folder")
        for block in _plan(path, rows, number, first):
            number, first = block.number + 1, block.first + block.count
            yield block


def _plan(path: Path, rows: int, number: int, first: int) -> Iterator[Block]:
    if path.suffix.lower() == ".parquet" and path.is_file():
        whole = pq.ParquetFile(path).metadata.num_rows
        for i, start in enumerate(range(0, whole, rows)):
            count = min(rows, whole - start)
            yield ParquetRows(number + i, first + start, count, str(path), start)
    elif path.suffix.lower() == ".csv":
        begun = 0
        for i, (start, end, count) in enumerate(_records(path, rows)):
            yield CsvRows(number + i, first + begun, count, str(path), start, end)
            begun += count
    elif path.is_dir():
        tables = sorted(x for x in path.iterdir() if x.suffix.lower() in (".parquet", ".csv"))
        if tables:
            for table in tables:
                for block in _plan(table, rows, number, first):
                    number, first = block.number + 1, block.first + block.count
                    yield block
            return
        names = sorted(map(str, folders.scan(path).pictures))
        if not names:
            raise FileError(f"{path}: the folder holds no Parquet or CSV file and no picture")
        for i, start in enumerate(range(0, len(names), rows)):
            some = names[start : start + rows]
            yield Pictures(number + i, first + start, len(some), str(path), some)
    else:
        raise FileError(f"{path}: expected .parquet, .csv, or a folder of these or of pictures")


def _records(path: Path, rows: int) -> Iterator[tuple[int, int, int]]:
    """The bytes from, to and the number of records of each block; a quoted cell may have lines."""
    at = 0

    def lines() -> Iterator[str]:
        nonlocal at
        with path.open("rb") as file:
            for line in file:
                at += len(line)
                yield line.decode("utf-8-sig")

    records = csv.reader(lines())
    next(records, None)  # the heading
    start, count = at, 0
    for record in records:
        count += bool(record)  # not an empty line
        if count == rows:
            yield start, at, count
            start, count = at, 0
    if count:
        yield start, at, count
