"""Reads and writes rows: objects by column name in JSON, and CSV.

A CSV body carries the rows of a request; its other fields are in the query of the address, each as
JSON or plain text: `/inpaint?model=penguins&num_samples=20&quantiles=[0.05,0.95]`.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

import orjson
import torch
from torch import Tensor

from diffusion.space import Space
from noneq.errors import FileError
from noneq.reading.cells import read_cells
from service.errors import InvalidRequest, MalformedBody

CSV = "text/csv"

#: The names of columns, and rows of cells.
Table = tuple[Sequence[str], Sequence[Sequence[object]]]


def decode_csv(raw: bytes, field: str | None, query: Mapping[str, str]) -> dict[str, Any]:
    """Decode a body of rows under a line of column names, and a query with the other fields.

    Args:
        raw: the body.
        field: the request's field that holds rows; None if it has none.
        query: the fields by name.

    Raises:
        InvalidRequest: the request has no rows.
        MalformedBody: the body is no table, or not in UTF-8.
    """
    fields = {name: _field(text) for name, text in query.items()}
    if not raw.strip() or field is None:
        if raw.strip():
            raise InvalidRequest(
                "The body is CSV, but this request has no rows.",
                fix="Leave the body empty, and put the fields into the address, or send JSON.",
            )
        return fields
    try:
        names, cells = read_cells(raw.decode())
    except UnicodeDecodeError:
        raise MalformedBody("The body is no CSV in UTF-8.", expected="text in UTF-8") from None
    except FileError as error:
        raise MalformedBody(
            f"The body is no table: {error}.",
            expected="a line of cells for each row, below a line of column names",
        ) from None
    if names is None:
        return {**fields, field: cells}
    return {**fields, field: [dict(zip(names, row, strict=True)) for row in cells]}


def _field(text: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def to_csv(names: Sequence[str], lines: Iterable[Sequence[object]]) -> bytes:
    """Write CSV; what is None or NaN is an empty cell."""
    out = StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(names)
    table.writerows(["" if x is None or x != x else x for x in line] for line in lines)
    return out.getvalue().encode()


def check_rows_form(space: Space) -> None:
    """Raise InvalidRequest if data are no rows, which CSV could hold."""
    if len(space.shape) != 1:
        raise InvalidRequest(
            f"These data have the shape {list(space.shape)}, which CSV does not hold.",
            expected="data that are rows of numbers or of a table",
            fix="Accept another form of the answer.",
        )


def names_of(space: Space) -> list[str]:
    """Name the elements of a row: the model's columns, or x0, x1, ..."""
    return list(space.names or (f"x{i}" for i in range(space.dims)))


def lines_of(x: Tensor, space: Space) -> list[list[Any]]:
    """Return rows [N, J] in data units as cells."""
    found = space.decode(x)
    return x.tolist() if found is None else found


def objects(x: Tensor, space: Space) -> list[Any] | None:
    """Return rows of a table [..., J] as objects by column name; None for other data."""
    if space.table is None:
        return None
    if x.ndim > 2:
        return [objects(part, space) for part in x]
    return [dict(zip(names_of(space), row, strict=True)) for row in lines_of(x, space)]


def numeric(space: Space) -> Tensor:
    """Return which elements have means and quantiles: all but categories, bool [*shape]."""
    if space.table is None:
        return torch.ones(space.shape, dtype=torch.bool)
    return torch.tensor(["labels" not in column for column in space.table])


def summaries(x: Tensor, space: Space) -> Any:  # noqa: ANN401  (nested lists)
    """Return means or quantiles [..., J] of a table's numbers as objects by column name."""
    if x.ndim > 1:
        return [summaries(part, space) for part in x]
    named = zip(names_of(space), x.tolist(), numeric(space).tolist(), strict=True)
    return {name: value for name, value, is_number in named if is_number}


def probabilities(
    samples: Tensor, weights: Tensor, space: Space
) -> list[dict[str, dict[str, float]]] | None:
    """Return the probability of each label of a table's categories, for N posteriors.

    Args:
        samples: [N, n, J], data units.
        weights: float64 [N, n], sum 1.
        space: the data space.
    """
    if space.table is None:
        return None
    found: list[dict[str, dict[str, float]]] = [{} for _ in samples]
    for j, column in enumerate(space.table):
        for k, label in enumerate(column.get("labels", ())):
            share = (weights * (samples[:, :, j] == k)).sum(1) / weights.sum(1)
            for one, p in zip(found, share.tolist(), strict=True):
                one.setdefault(column["name"], {})[label] = p
    return found
