"""Reads numbers from .csv and .tsv, one row per example, and from .npy and .npz.

In a text table cells are separated by commas, semicolons or tabs, numbers have a decimal point,
True is 1 and False is 0, and a gap (an empty cell, NA, N/A, NaN, null, None or ?) is NaN. The first
line may be a heading, in which no cell is or resembles a number (1,5 or 5%). Rows are counted from
0, without blank lines and the heading. Arrays are never unpickled.
"""

import csv
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from noneq.errors import FileError

TEXT = (".csv", ".tsv")
SUFFIXES = (*TEXT, ".npy", ".npz")
GAPS = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
TRUTH = {"true": 1.0, "false": 0.0}
LARGEST = float(np.finfo(np.float32).max)

_QUOTED = re.compile(r'"[^"]*"?')
_EXPONENT = re.compile(r"(?<=[\d.])e(?=[+-]?\d)", re.IGNORECASE)
_SPELLED = re.compile(r"[+-]?(inf(inity)?|0x[\da-f]+)", re.IGNORECASE)
_LONGEST = 200  # characters of a list of names
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

Array = NDArray[Any]
Numbers = NDArray[np.float64]
Line = tuple[int, list[str]]


@final
class Table:
    """A .csv or .tsv file, opened by reading only its first line.

    Args:
        path: the file's path.

    Attributes:
        names: the columns' names; None if the first line holds numbers.
        width: the number of columns.
        note: a warning if the first line might be a heading; else None.

    Raises:
        FileError: the file is empty, not in UTF-8, or its heading does not name every column once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._delimiter = _delimiter(path)
        with self._lines() as lines:
            first = next(lines, None)
        if first is None:
            raise FileError(f"{path} is empty: a table has a row of numbers for each example")
        _, cells = first
        self.width = len(cells)
        self.names = _heading(cells, path)
        self.note = None if self.names is not None else _doubt(cells)

    def blocks(self, rows: int) -> Iterator[Numbers]:
        """Read the numbers in blocks, float64 [up to `rows`, width]; a gap is NaN.

        Raises:
            FileError: a row has another length, or a cell is not a number.
        """
        with self._lines() as lines:
            if self.names is not None:
                next(lines)
            start = 0
            while waiting := list(islice(lines, rows)):
                yield self._numbers(start, waiting)
                start += len(waiting)
        if start == 0:
            raise FileError(f"{self.path} has a heading ({_listed(self.names or ())}), and no rows")

    def rows(self) -> Iterator[list[str]]:
        """Read the text of the cells, a row at a time.

        Raises:
            FileError: a row has another length.
        """
        with self._lines() as lines:
            if self.names is not None:
                next(lines)
            for row, (line, cells) in enumerate(lines):
                self._check_width(row, line, cells)
                yield cells

    def order(self, wanted: Sequence[str] | None) -> list[int] | None:
        """Find the indices of a model's columns in this table; None if they are in order.

        Raises:
            FileError: the heading lacks columns, or has more.
        """
        if wanted is None or self.names is None:
            return None
        places = {name: place for place, name in enumerate(self.names)}
        missing = [name for name in wanted if name not in places]
        other = sorted(places.keys() - set(wanted), key=places.__getitem__)
        if missing or other:
            lacks = f"lacks {_listed(missing)}" if missing else ""
            more = f"has {_listed(other)}, which the model does not know" if other else ""
            raise FileError(
                f"{self.path} {' and '.join(filter(None, (lacks, more)))}: the columns are "
                f"{_listed(wanted)}, in any order"
            )
        return [places[name] for name in wanted]

    def place(self, row: int, column: int) -> str:
        """Describe a cell's position, for messages."""
        name = f" ({self.names[column]})" if self.names is not None else ""
        return f"row {row}, column {column}{name}"

    def _numbers(self, start: int, lines: Sequence[Line]) -> Numbers:
        out = np.empty((len(lines), self.width))
        for i, (line, cells) in enumerate(lines):
            self._check_width(start + i, line, cells)
            found = list(map(number, cells))
            if None in found:
                column = found.index(None)
                raise FileError(
                    f"{self.path}: {self.place(start + i, column)}, line {line}: "
                    f"{_no_number(cells[column])}"
                )
            out[i] = found
        return out

    def _check_width(self, row: int, line: int, cells: Sequence[str]) -> None:
        if len(cells) != self.width:
            raise FileError(
                f"{self.path}: row {row} (line {line}) has {len(cells)} cells, the first line has "
                f"{self.width}"
            )

    @contextmanager
    def _lines(self) -> Iterator[Iterator[Line]]:
        """Open the file; yield its lines that are not blank, with their numbers."""
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(
                    file, delimiter=self._delimiter, skipinitialspace=True, strict=True
                )
                yield (
                    (reader.line_num, cells)
                    for cells in reader
                    if len(cells) > 1 or "".join(cells).strip()
                )
        except UnicodeDecodeError as error:
            raise FileError(
                f"{self.path} is no text in UTF-8 (byte {error.object[error.start]:#x}): save it "
                "as CSV UTF-8"
            ) from None
        except csv.Error as error:
            raise FileError(f"{self.path} is no table that can be read ({error})") from error
        except OSError as error:
            raise FileError(f"{self.path} cannot be read ({error.strerror})") from error


def number(cell: str) -> float | None:
    """Parse a cell: a finite float32, NaN for a gap, None for anything else."""
    try:
        found = float(cell)
    except ValueError:
        text = cell.strip().lower()
        return np.nan if text in GAPS else TRUTH.get(text)
    if np.isnan(found):
        return found
    # Python reads 1_000 as a thousand, and "inf".
    return None if "_" in cell or not abs(found) <= LARGEST else found


def check_finite(array: NDArray[np.floating], path: Path, start: int = 0) -> None:
    """Raise FileError if an array has a number that float32 cannot hold; NaN is allowed.

    Args:
        array: some rows of a file.
        path: the file's path.
        start: the index of the first row in the file.
    """
    wrong = np.abs(array) > np.float64(LARGEST)
    if wrong.any():
        row, *place = np.argwhere(wrong)[0].tolist()
        found = array[(row, *place)]
        raise FileError(f"{path}: row {start + row}, place {place}: {found:g} is no finite float32")


def _heading(cells: Sequence[str], path: Path) -> tuple[str, ...] | None:
    """Return the column names, if no cell is or resembles a number and not all are gaps."""
    found = list(map(number, cells))
    if None not in found or any(map(numeric, cells)):
        return None
    names = [cell.strip() for cell in cells]
    names[0] = names[0].lstrip("#").strip()  # as numpy.savetxt writes it
    known = set()
    for column, name in enumerate(names):
        if not name:
            raise FileError(
                f"{path}: column {column} has no name in the heading ({_listed(names)}): name it, "
                "or leave it out (an index of pandas, say, or a comma at the lines' ends)"
            )
        if name in known:
            raise FileError(f"{path}: two columns are called {name}: rename one of them")
        known.add(name)
    return tuple(names)


def _doubt(cells: Sequence[str]) -> str | None:
    """Return a warning if the first line is probably a heading of numbers, such as years."""
    if len(cells) < 3 or not all(cell.strip().isdecimal() for cell in cells):
        return None
    counted = list(map(int, cells))
    if counted != list(range(counted[0], counted[0] + len(cells))):
        return None
    first = ", ".join(map(str, counted[:3]))
    return f"the first line ({first}, ...) was read as numbers; a heading has none in it"


def numeric(cell: str) -> bool:
    """Whether a cell is a number, or resembles one in another notation."""
    found = number(cell)
    if found is not None:
        return not np.isnan(found)
    text = _EXPONENT.sub("", cell.strip())
    digits, letters = any(c.isdigit() for c in text), any(c.isalpha() for c in text)
    return (digits and not letters) or bool(_SPELLED.fullmatch(text))


def _listed(names: Sequence[str]) -> str:
    text = ", ".join(names)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _no_number(cell: str) -> str:
    start = f"{cell.strip()[:40]!r} is no number"
    if re.fullmatch(r"[+-]?[\d.]+,[\d,.]*\d", cell.strip()):
        return f"{start}: write 1234.5, with a decimal point and nothing between thousands"
    if re.fullmatch(r"[+-]?(inf(inity)?|[\d.]+(e[+-]?\d+)?)", cell.strip(), re.IGNORECASE):
        return f"{start} that is finite in float32"
    return (
        f"{start}: numbers are separated by commas, semicolons or tabs; a heading is the first "
        "line and has no number in it; a gap is an empty cell, NA or ?"
    )


def _delimiter(path: Path) -> str:
    """Choose the delimiter: the first of tab, semicolon, comma in line one outside quotes."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    try:
        with path.open("rb") as file:
            if file.read(2) in _UTF16:
                raise FileError(f"{path} is text in UTF-16: save it as CSV UTF-8")
            file.seek(0)
            line = next((line for line in file if line.strip()), b"")
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror})") from error
    text = _QUOTED.sub("", line.decode("utf-8-sig", "replace"))
    return next((mark for mark in "\t;" if mark in text), ",")


def load_array(path: Path) -> Array:
    """Load the array of a .npy (memory-mapped) or a .npz.

    Raises:
        FileError: the file is not an array, is cut short, or does not hold real numbers.
    """
    try:
        found = _open(path)
    except FileError:
        raise
    except (OSError, ValueError, EOFError, MemoryError) as error:
        if re.search("pickled|Object arrays|Python objects", str(error)):
            raise FileError(
                f"{path} is no .npy, or holds Python objects, which are never unpickled: save an "
                "array of numbers"
            ) from None
        text = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise FileError(f"{path} is no array that can be read ({text})") from error
    except (zipfile.BadZipFile, zlib.error, SyntaxError, TypeError) as error:
        raise FileError(f"{path} is no array that can be read ({error})") from error
    if found.dtype.kind not in "biuf":
        raise FileError(f"{path} holds {found.dtype}, expected real numbers")
    if found.dtype.kind == "f" and found.dtype.itemsize > 8:
        raise FileError(f"{path} holds {found.dtype}, expected at most float64")
    if not found.ndim or not found.size:
        raise FileError(f"{path} holds an array of shape {list(found.shape)}, expected rows")
    return found


def _open(path: Path) -> Array:
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return _only(arrays, path)


def _only(file: "np.lib.npyio.NpzFile", path: Path) -> Array:
    if len(file.files) != 1:
        raise FileError(
            f"{path} holds {len(file.files)} arrays ({', '.join(file.files)[:100]}): save the one "
            "that is meant as .npy"
        )
    found: Array = file[file.files[0]]
    return found


def to_shape(array: Array, shape: tuple[int, ...], model: str) -> Array:
    """Reshape an array of N examples, or of one, to [N, *shape].

    Rows [N, D] are reshaped, and a single channel's axis may be missing; no other shapes change.

    Args:
        array: the array from a file.
        shape: the shape of an example.
        model: the model's name, for the message.

    Raises:
        FileError: the array has another shape.
    """
    found = array.shape
    grey = len(shape) == 3 and shape[0] == 1
    if found == shape or (grey and found == shape[1:]):
        return array.reshape(1, *shape)
    if found[1:] == shape or (grey and found[1:] == shape[1:]):
        return array.reshape(-1, *shape)
    if array.ndim == 2 and found[1] == math.prod(shape):
        return array.reshape(-1, *shape)
    raise FileError(
        f"it has shape {list(found)}, where {model} takes {list(shape)}, or N of them: "
        f"{advice(found, shape)}"
    )


def advice(found: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Advise how to fix an array whose shape is not [N, *shape]."""
    if len(shape) == 3 and found[-3:] == (*shape[1:], shape[0]):
        return "its channels are last: move them first, numpy.moveaxis(x, -1, -3)"
    return "cut or reshape it"
