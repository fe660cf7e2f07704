"""Files in: pictures, folders of them, .npy and .csv, as blocks of data of one model.

A block is read when its turn comes and let go when it was answered, so that a folder of any size
fits. What was not seen is a picture's transparent pixel, a NaN, or an empty cell.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from noneq import pictures
from noneq.models import Model
from noneq.wire import Array

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
TABLES = (".npy", ".csv")
ROWS = 256  # of a table in one block


class FileError(ValueError):
    """A file that cannot be read as data of the model; the message names it."""


@dataclass(frozen=True, eq=False)
class Block:
    """Some data of one file.

    Attributes:
        file: as it was named.
        start: the place of its first datum in the file.
        values: [n, *shape], data units; anything where not known.
        known: bool [n, *shape].
    """

    file: str
    start: int
    values: Array
    known: Array


def expand(names: Iterable[str]) -> Iterator[Path]:
    """The files that the words of a command line mean: a folder stands for what it holds.

    Raises:
        FileError: there is no such file, or nothing in the folder.
    """
    for name in names:
        path = Path(name)
        if not path.is_dir():
            if not path.is_file():
                raise FileError(f"{name}: there is no such file or folder")
            yield path
            continue
        there = sorted(path.iterdir())
        # Beside pictures a table is more likely to be about them than of the same kind.
        inside = [p for p in there if p.suffix.lower() in PICTURES]
        inside = inside or [p for p in there if p.suffix.lower() in TABLES]
        if not inside:
            known = ", ".join(PICTURES + TABLES)
            raise FileError(f"{name}: the folder holds no data ({known})")
        yield from inside


def read(path: Path, model: Model, rows: int = ROWS) -> Iterator[Block]:
    """The data of a file, `rows` at a time.

    Raises:
        FileError: it cannot be read, or holds something else than this model's data.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in PICTURES:
            yield _picture(path, model)
        elif suffix == ".npy":
            yield from _array(path, model, rows)
        elif suffix == ".csv":
            yield from _table(path, model, rows)
        else:
            known = ", ".join(PICTURES + TABLES)
            raise FileError(f"{path}: data come as {known}, or as folders of these")
    except (OSError, ValueError) as error:
        said = str(error)
        raise FileError(said if isinstance(error, FileError) else f"{path}: {said}") from error


def read_all(names: Sequence[str], model: Model) -> tuple[Array, Array]:
    """All the data of some files, and where they are known; [N, *shape] each."""
    found = [block for path in expand(names) for block in read(path, model)]
    return np.concatenate([b.values for b in found]), np.concatenate([b.known for b in found])


def read_mask(name: str, model: Model) -> Array:
    """A mask from a picture (white is known) or an array of 0 and 1: [H, W], or [N, *shape]."""
    path = Path(name)
    if path.suffix.lower() not in PICTURES:
        return np.concatenate([block.values for block in read(path, model)])
    try:
        return np.asarray(pictures.from_file(path.read_bytes()).convert("L")) >= 128
    except (OSError, ValueError) as error:
        raise FileError(f"{name}: {error}") from error


def read_table(name: str) -> Array:
    """A kernel or a matrix: the numbers of a .npy or .csv, [rows, columns]."""
    path = Path(name)
    try:
        if path.suffix.lower() == ".npy":
            found: Array = np.load(path, allow_pickle=False)
        else:
            found = np.loadtxt(path, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise FileError(f"{name}: {error}") from error
    return np.atleast_2d(found)


def _picture(path: Path, model: Model) -> Block:
    if len(model.shape) != 3 or model.shape[0] not in (1, 3):
        raise FileError(
            f"{path}: {model.name} takes numbers of shape {list(model.shape)}, which no picture "
            "holds: give a .npy or .csv"
        )
    channels, height, width = model.shape
    picture = pictures.from_file(path.read_bytes())
    if picture.mode.startswith(("I", "F")):
        raise FileError(f"{path}: more than 8 bits a pixel (mode {picture.mode}); save it in 8")
    if picture.size != (width, height):
        raise FileError(
            f"{path}: {picture.size[0]} x {picture.size[1]} pixels, where {model.name} takes "
            f"{width} x {height}: crop or scale it first"
        )
    alpha = np.asarray(picture.convert("RGBA"))[None, :, :, 3]
    levels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    values = levels[None] if channels == 1 else np.moveaxis(levels, -1, 0)
    if model.kind == "bits":
        values = (values >= 128).astype(np.uint8)
    return Block(str(path), 0, values[None], np.broadcast_to(alpha > 0, values.shape)[None])


def _array(path: Path, model: Model, rows: int) -> Iterator[Block]:
    array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    shape = model.shape
    if array.shape in (shape, shape[1:] if shape[0] == 1 else shape):
        array = array[None]
    for start in range(0, len(array), rows):
        yield _block(path, start, np.asarray(array[start : start + rows]), model)


def _table(path: Path, model: Model, rows: int) -> Iterator[Block]:
    with path.open(newline="", encoding="utf-8") as file:
        lines = (line for line in csv.reader(file) if line)
        first = next(lines, None)
        if first is None:
            raise FileError(f"{path}: the table is empty")
        waiting = [] if _is_heading(first) else [first]
        start = 0
        while True:
            waiting += islice(lines, rows - len(waiting))
            if not waiting:
                return
            yield _block(path, start, _numbers(path, start, waiting), model)
            start, waiting = start + len(waiting), []


def _is_heading(line: Sequence[str]) -> bool:
    try:
        [float(cell) for cell in line if cell.strip()]
    except ValueError:
        return True
    return False


def _numbers(path: Path, start: int, lines: Sequence[Sequence[str]]) -> Array:
    width = len(lines[0])
    out = np.empty((len(lines), width))
    for i, line in enumerate(lines):
        if len(line) != width:
            raise FileError(f"{path}: row {start + i} has {len(line)} cells, others {width}")
        try:
            out[i] = [float(cell) if cell.strip() else np.nan for cell in line]
        except ValueError as error:
            raise FileError(f"{path}: row {start + i}: {error}") from error
    return out


def _block(path: Path, start: int, array: Array, model: Model) -> Block:
    if array.dtype.kind not in "biuf":
        raise FileError(f"{path}: holds {array.dtype}, expected numbers")
    if array[0].size != int(np.prod(model.shape)):
        raise FileError(
            f"{path}: a datum of shape {list(array.shape[1:])}, where {model.name} takes "
            f"{list(model.shape)}"
        )
    values = array.reshape(len(array), *model.shape)
    known = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    return Block(str(path), start, values, known)
