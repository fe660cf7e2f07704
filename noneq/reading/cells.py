"""Reads the text of a table (CSV) as cells: names, and rows of text in which gaps are None."""

import csv
import re

from noneq.errors import FileError
from noneq.reading.tables import GAPS, numeric

_QUOTED = re.compile(r'"[^"]*"?')

Cells = list[list[str | None]]


def read_cells(text: str) -> tuple[tuple[str, ...] | None, Cells]:
    """Read the names in the first line, None if it holds numbers, and the rows below it.

    Cells are separated by commas, semicolons or tabs; an empty one, NA, N/A, NaN, null, None or ?
    is a gap.

    Raises:
        FileError: no lines, columns without names of their own, rows of another length.
    """
    text = text.removeprefix("\ufeff")
    first = _QUOTED.sub("", next((line for line in text.splitlines() if line.strip()), ""))
    mark = next((mark for mark in "\t;" if mark in first), ",")
    try:
        reader = csv.reader(text.splitlines(keepends=True), delimiter=mark, strict=True)
        lines = [(reader.line_num, row) for row in reader if len(row) > 1 or "".join(row).strip()]
    except csv.Error as error:
        raise FileError(f"the text is no CSV ({error}, line {reader.line_num})") from None
    if not lines:
        raise FileError("the CSV is empty: the first line names the columns, the others are rows")
    names = None if any(map(numeric, lines[0][1])) else _names(lines[0][1])
    rows = lines if names is None else lines[1:]
    for i, (line, row) in enumerate(rows):
        if len(row) != len(lines[0][1]):
            raise FileError(
                f"row {i} (line {line}) of the CSV has {len(row)} cells, its first line has "
                f"{len(lines[0][1])}"
            )
    return names, [[_cell(cell) for cell in row] for _, row in rows]


def _names(cells: list[str]) -> tuple[str, ...]:
    """Return the names of columns; raise FileError unless each has one of its own."""
    names = tuple(cell.strip() for cell in cells)
    if "" not in names and len(set(names)) == len(names):
        return names
    twice = next((name for name in names if name and names.count(name) > 1), None)
    what = f"two columns are called {twice!r}" if twice else "a column has no name"
    raise FileError(f"{what} in the first line of the CSV: {', '.join(names)[:200]}")


def _cell(text: str) -> str | None:
    found = text.strip()
    return None if found.lower() in GAPS else found
