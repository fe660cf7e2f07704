"""Reads files as data of one model, in blocks: pictures, folders of them, and tables.

Blocks are read one at a time, so that a folder of any size fits in memory. A value is unknown if
its pixel is not opaque, if it is NaN, or if it is a gap in a table.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from noneq.errors import FileError
from noneq.models import Model
from noneq.reading import folders, pictures, tables
from noneq.reading.folders import PICTURES, TABLES, Skipped
from noneq.reading.tables import Array

Names = str | Path | Iterable[str | Path]
ROWS = 256  # rows of a table in one block


@dataclass(frozen=True, eq=False)
class Block:
    """Some of the examples in a file.

    Attributes:
        file: the file, as named by the user.
        start: the index of the block's first example in the file.
        values: [n, *shape], data units; arbitrary where unknown.
        known: bool [n, *shape].
    """

    file: str
    start: int
    values: Array
    known: Array

    @property
    def missing(self) -> str | None:
        """The error for the first unknown value; None if all are known."""
        if bool(self.known.all()):
            return None
        row, *place = np.argwhere(~self.known)[0].tolist()
        return (
            f"{self.file}: example {self.start + row} has a gap or is transparent at {place}, "
            "and every number is needed: fill it, or let `noneq inpaint` draw it"
        )


@dataclass(frozen=True)
class Found:
    """The files that were found by name, and those that were skipped in folders."""

    files: list[Path]
    skipped: list[Skipped]


def find(names: Iterable[str | Path]) -> Found:
    """Find files by name; a folder stands for all files in it and its subfolders.

    Tables in a folder with pictures are skipped, because they are probably about the pictures.

    Raises:
        FileError: a file does not exist, or a folder has no data.
    """
    found = Found([], [])
    for name in names:
        path = name if isinstance(name, Path) else Path(name)
        if not path.is_dir():
            if not path.is_file():
                raise FileError(f"{name}: there is no such file or folder")
            found.files.append(path)
            continue
        folder = folders.scan(path)
        found.skipped.extend(folder.skipped)
        if folder.pictures:
            beside = "a table beside pictures"
            found.skipped.extend(Skipped(table, beside) for table in folder.tables)
        elif not folder.tables:
            raise FileError(
                f"{name}: the folder holds no data ({', '.join(PICTURES + TABLES)}); "
                f"{folders.describe_skipped(folder.skipped) or 'it is empty'}"
            )
        found.files.extend(folder.pictures or folder.tables)
    return found


def read(path: Path, model: Model, rows: int = ROWS) -> Iterator[Block]:
    """Read a file's data, `rows` at a time.

    Raises:
        FileError: the file cannot be read, or does not fit the model.
    """
    suffix = path.suffix.lower()
    if suffix in PICTURES:
        yield _picture(path, model)
    elif suffix in tables.TEXT:
        yield from _table(path, model, rows)
    elif suffix in TABLES:
        yield from _array(path, model, rows)
    else:
        known = ", ".join(PICTURES + TABLES)
        raise FileError(f"{path}: expected one of {known}, or a folder of these")


def read_all(names: Names, model: Model) -> tuple[Array, Array]:
    """Read all data of files or folders, and which of them are known; [N, *shape] each.

    Raises:
        FileError: a file cannot be read, or does not fit the model.
    """
    found = [block for path in _paths(names) for block in read(path, model)]
    return np.concatenate([b.values for b in found]), np.concatenate([b.known for b in found])


def read_whole(names: Names, model: Model) -> Array:
    """Read all data [N, *shape] as `read_all` does; raise FileError if a value is unknown."""
    found = []
    for path in _paths(names):
        for block in read(path, model):
            if block.missing is not None:
                raise FileError(block.missing)
            found.append(block.values)
    return np.concatenate(found)


def _paths(names: Names) -> list[Path]:
    return find([names] if isinstance(names, str | Path) else names).files


def read_mask(name: str, model: Model) -> Array:
    """Read a mask, bool [1 or N, *shape]; a mask of pixels applies to all channels.

    White, opaque pixels of a picture are known, and so are the ones in a table or array of 0 and 1.

    Raises:
        FileError: the mask has greys or other numbers, or another size or shape.
    """
    path = Path(name)
    if path.suffix.lower() in PICTURES:
        size = (model.shape[-1], model.shape[-2]) if len(model.shape) == 3 else None
        try:
            known = pictures.read(path, size).white("unknown", "observed")
        except FileError as error:
            raise _named(path, error) from error
        return np.broadcast_to(known, (1, *model.shape))
    array = _numbers(path, model.columns)
    if not bool(((array == 0) | (array == 1)).all()):
        raise FileError(f"{path}: a mask holds 1 where a value was observed and 0 elsewhere")
    if len(model.shape) == 3 and array.shape == model.shape[1:]:
        array = np.broadcast_to(array, model.shape)
    elif len(model.shape) == 3 and array.ndim == 3 and array.shape[1:] == model.shape[1:]:
        array = np.repeat(array[:, None], model.shape[0], axis=1)
    return np.asarray(_to_shape(path, array, model) != 0)


def read_table(name: str) -> Array:
    """Read a kernel or a matrix [rows, columns] from a table or an array.

    Raises:
        FileError: the file cannot be read, or has a gap or a number that is not finite.
    """
    path = Path(name)
    found = np.atleast_2d(_numbers(path))
    wrong = np.argwhere(~np.isfinite(found))
    if len(wrong):
        raise FileError(f"{path}: {wrong[0].tolist()} is a gap or not a finite number")
    return found


def _numbers(path: Path, columns: Sequence[str] | None = None) -> Array:
    """Read all numbers of a table or an array."""
    if path.suffix.lower() in tables.TEXT:
        table = tables.Table(path)
        found = np.concatenate(list(table.blocks(ROWS)))
        order = table.order(columns)
        return found if order is None else found[:, order]
    if path.suffix.lower() in TABLES:
        return tables.load_array(path)
    raise FileError(f"{path}: expected one of {', '.join(TABLES)}")


def _picture(path: Path, model: Model) -> Block:
    if len(model.shape) != 3 or model.shape[0] not in (1, 3):
        raise FileError(
            f"{path}: {model.name} takes numbers of shape {list(model.shape)}, which no picture "
            f"holds: give one of {', '.join(TABLES)}"
        )
    channels, height, width = model.shape
    picture = pictures.read(path, (width, height))
    try:
        values = picture.channels(channels)
        if model.kind == "bits":
            values = np.repeat(picture.white("0", "1")[None], channels, axis=0).astype(np.uint8)
    except FileError as error:
        raise _named(path, error) from error
    return Block(str(path), 0, values[None], np.broadcast_to(picture.opaque, values.shape)[None])


def _table(path: Path, model: Model, rows: int) -> Iterator[Block]:
    if model.table is not None:
        raise FileError(
            f"{path}: {model.name} takes rows of typed columns: `noneq impute` fills their gaps, "
            "`noneq score` scores them"
        )
    table = tables.Table(path)
    order = table.order(model.columns)
    start = 0
    for numbers in table.blocks(rows):
        ordered = numbers if order is None else numbers[:, order]
        yield _block(path, start, _to_shape(path, ordered, model))
        start += len(numbers)


def _array(path: Path, model: Model, rows: int) -> Iterator[Block]:
    array = _to_shape(path, tables.load_array(path), model)
    for start in range(0, len(array), rows):
        yield _block(path, start, np.asarray(array[start : start + rows]))


def _block(path: Path, start: int, values: Array) -> Block:
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    if native.dtype.kind != "f":
        return Block(str(path), start, native, np.ones(native.shape, bool))
    tables.check_finite(native, path, start)
    return Block(str(path), start, native, ~np.isnan(native))


def _to_shape(path: Path, array: Array, model: Model) -> Array:
    try:
        return tables.to_shape(array, model.shape, model.name)
    except FileError as error:
        raise _named(path, error) from error


def _named(path: Path, error: FileError) -> FileError:
    """Add the file's name to an error."""
    text = str(error)
    return error if text.startswith(str(path)) else FileError(f"{path}: {text}")
