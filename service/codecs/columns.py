"""A list of objects that is held as columns until it is written."""

from collections.abc import Mapping
from typing import Any, final

from numpy.typing import NDArray


@final
class Columns:
    """A list of objects with the same fields, held as an array [n] for each of them.

    As objects half a million of them hold hundreds of megabytes. No dataclass, for pydantic would
    dump that as a dictionary.

    Args:
        fields: the arrays, by name.
    """

    def __init__(self, fields: Mapping[str, NDArray[Any]]) -> None:
        self.fields = fields

    def __len__(self) -> int:
        return min(len(column) for column in self.fields.values())

    def objects(self, start: int, end: int) -> list[dict[str, Any]]:
        """Those of a part."""
        parts = [column[start:end].tolist() for column in self.fields.values()]
        return [dict(zip(self.fields, row, strict=True)) for row in zip(*parts, strict=True)]
