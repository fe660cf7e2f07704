"""Operations on batches of rows; a row is an example, a chain or a particle."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, Self

import torch
from torch import Tensor


class Rows:
    """The base of frozen dataclasses that hold B rows.

    Tensor fields are [B, ...], `Rows` fields have the same rows, and all other fields are shared.
    """

    def rows(self, index: slice | Tensor) -> Self:
        """Select rows by a slice or by indices int64 [b], which may repeat."""
        return self._changed(lambda part: part[index], lambda part: part.rows(index))

    def each(self, act: Callable[[Tensor], Tensor]) -> Self:
        """Apply a function to every tensor, such as a move to another device."""
        return self._changed(act, lambda part: part.each(act))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the rows of several parts; shared fields are taken from the first."""
        return cls(*map(_join, zip(*(part._fields() for part in parts), strict=True)))

    def _changed(
        self, tensor: Callable[[Tensor], Tensor], rows: Callable[["Rows"], "Rows"]
    ) -> Self:
        def change(part: object) -> object:
            if isinstance(part, Tensor):
                return tensor(part)
            return rows(part) if isinstance(part, Rows) else part

        return type(self)(*map(change, self._fields()))

    def _fields(self) -> Iterator[Any]:
        return (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]


def _join(parts: Sequence[object]) -> object:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)  # type: ignore[arg-type]
    return first.joined(parts) if isinstance(first, Rows) else first  # type: ignore[arg-type]


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Reshape values [B] to broadcast over the rows of `like` [B, *event], in its dtype."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def blend(a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """Compute a x + b y in two operations; a and b come from `per_row` or are scalar tensors."""
    return torch.addcmul(b * y, a, x)


def row_sum(x: Tensor) -> Tensor:
    """Sum over all axes except the rows, [B]."""
    return x.flatten(1).sum(1)
