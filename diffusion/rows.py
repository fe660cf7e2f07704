"""Rows: what everything with a batch axis shares; a row is an example, a chain or a particle."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, Self

import torch
from torch import Tensor


class Rows:
    """A frozen dataclass of B rows.

    Its tensors are [B, ...]; fields that are `Rows` have the same rows; all others are shared.
    """

    def rows(self, index: slice | Tensor) -> Self:
        """Some of the rows, or one several times; int64 [b]."""
        return self._changed(lambda part: part[index], lambda part: part.rows(index))

    def each(self, act: Callable[[Tensor], Tensor]) -> Self:
        """The same with its tensors changed: moved to a device, say."""
        return self._changed(act, lambda part: part.each(act))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Their rows in turn; what the rows share is the first one's."""
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
    """Values [B] shaped to broadcast over the rows of `like` [B, *event], in its type."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def blend(a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """a x + b y in two operations; a and b `per_row` of x, or with no axes for all rows."""
    return torch.addcmul(b * y, a, x)


def row_sum(x: Tensor) -> Tensor:
    """The sum over everything but the rows, [B]."""
    return x.flatten(1).sum(1)
