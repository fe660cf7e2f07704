"""Tables of numbers: .csv and .tsv, a data point a row, with or without a line of names.

Cells are separated by commas, semicolons or tabs, numbers are written with a decimal point, True is
1 and False is 0, and a gap (an empty cell, NA, N/A, NaN, null, None or ?) is NaN. A heading has no
number in it, nor what looks like one (1,5 or 5%). Rows are counted from 0, blank lines and the
heading left out.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import final

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

Numbers = NDArray[np.float64]
Line = tuple[int, list[str]]


@final
class Table:
    """A .csv or .tsv, whose first line was read.

    Args:
        path: of the file.

    Attributes:
        names: of its columns; None where the first line holds numbers.
        width: how many columns there are.
        note: a doubt whether the first line is a heading; None where there is none.

    Raises:
        FileError: it is empty, no text in UTF-8, or its heading does not name every column once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._delimiter = _delimiter(path)
        with self._lines() as lines:
            first = next(lines, None)
        if first is None:
            raise FileError(f"{path} is empty: a table has a row of numbers for each data point")
        _, cells = first
        self.width = len(cells)
        self.names = _heading(cells, path)
        self.note = None if self.names is not None else _doubt(cells)

    def blocks(self, rows: int) -> Iterator[Numbers]:
        """The numbers, float64 [up to `rows`, width]; NaN where there is a gap.

        Raises:
            FileError: a row of another length, or a cell that is no number, with its place.
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

    def order(self, wanted: Sequence[str] | None) -> list[int] | None:
        """The places of a model's columns in this table; None where they are as they stand.

        Raises:
            FileError: the heading lacks some of them, or has others.
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
        """A cell in words."""
        name = f" ({self.names[column]})" if self.names is not None else ""
        return f"row {row}, column {column}{name}"

    def _numbers(self, start: int, lines: Sequence[Line]) -> Numbers:
        out = np.empty((len(lines), self.width))
        for i, (line, cells) in enumerate(lines):
            if len(cells) != self.width:
                raise FileError(
                    f"{self.path}: row {start + i} (line {line}) has {len(cells)} cells, the first "
                    f"line has {self.width}"
                )
            found = list(map(number, cells))
            if None in found:
                column = found.index(None)
                raise FileError(
                    f"{self.path}: {self.place(start + i, column)}, line {line}: "
                    f"{_no_number(cells[column])}"
                )
            out[i] = found
        return out

    @contextmanager
    def _lines(self) -> Iterator[Iterator[Line]]:
        """The lines that are not blank, each with its number in the file."""
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
    """What a cell holds: a finite float32, NaN for a gap, None for anything else."""
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
    """Raise FileError where an array holds what float32 cannot; NaN may be there.

    Args:
        array: some rows of a file.
        path: of the file.
        start: the first row's place in it.
    """
    wrong = np.abs(array) > np.float64(LARGEST)
    if wrong.any():
        row, *place = np.argwhere(wrong)[0].tolist()
        found = array[(row, *place)]
        raise FileError(f"{path}: row {start + row}, place {place}: {found:g} is no finite float32")


def _heading(cells: Sequence[str], path: Path) -> tuple[str, ...] | None:
    """The names, where no cell is or looks like a number and not all are gaps."""
    found = list(map(number, cells))
    if None not in found or any(map(_numeric, cells)):
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
    """What is said of a first line that counts its columns, or years."""
    if len(cells) < 3 or not all(cell.strip().isdecimal() for cell in cells):
        return None
    counted = list(map(int, cells))
    if counted != list(range(counted[0], counted[0] + len(cells))):
        return None
    first = ", ".join(map(str, counted[:3]))
    return f"the first line ({first}, ...) was read as numbers; a heading has none in it"


def _numeric(cell: str) -> bool:
    """Whether a cell is a number, or looks like one that is written otherwise."""
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
    said = f"{cell.strip()[:40]!r} is no number"
    if re.fullmatch(r"[+-]?[\d.]+,[\d,.]*\d", cell.strip()):
        return f"{said}: write 1234.5, with a decimal point and nothing between thousands"
    if re.fullmatch(r"[+-]?(inf(inity)?|[\d.]+(e[+-]?\d+)?)", cell.strip(), re.IGNORECASE):
        return f"{said} that is finite in float32"
    return (
        f"{said}: numbers are separated by commas, semicolons or tabs; a heading is the first line "
        "and has no number in it; a gap is an empty cell, NA or ?"
    )


def _delimiter(path: Path) -> str:
    """Tab, semicolon or comma: the first of them that the first line has outside of quotes."""
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
