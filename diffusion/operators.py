"""Linear operators A: which part of x_0 an observation sees, y = A x_0 + noise.

    <A x, y> = <x, A^T y>

An operator is its own configuration: requests carry it, and its only tensors are computed from it.
"""

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Annotated, Literal, final

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

Event = tuple[int, ...]


class LinearOperator(BaseModel, ABC):
    """A linear map A from events [B, *event] to observed values [B, *seen]."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @abstractmethod
    def seen(self, event: Event) -> Event:
        """Return the shape of A x.

        Raises:
            ValueError: the operator does not take events of this shape.
        """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return A x, [B, *seen]."""

    @abstractmethod
    def adjoint(self, y: Tensor, event: Event) -> Tensor:
        """Return A^T y, [B, *event]."""

    @abstractmethod
    def variance(self, var: Tensor) -> Tensor:
        """Return the variances of A x for independent x, diag(A diag(var) A^T), [B, *seen]."""

    def matrix(self, event: Event, device: torch.device) -> Tensor:
        """Return A as a matrix, float64 [numbers seen, elements of the event]; cached."""
        key = "matrix", event, device
        if key not in self._worked_out:
            shape = self.seen(event)
            count = math.prod(shape)
            one_each = torch.eye(count, dtype=torch.float64, device=device).reshape(count, *shape)
            self._worked_out[key] = self.adjoint(one_each, event).flatten(1)
        return self._worked_out[key]

    def inverse(self, event: Event, device: torch.device) -> Tensor:
        """Return the pseudo-inverse, float64 [elements of the event, numbers seen]; cached."""
        key = "inverse", event, device
        if key not in self._worked_out:
            self._worked_out[key] = torch.linalg.pinv(self.matrix(event, device))
        return self._worked_out[key]

    @cached_property
    def _worked_out(self) -> dict[tuple[str, Event, torch.device], Tensor]:
        return {}


@final
class Mask(LinearOperator):
    """The identity: elements are seen one by one, with infinite noise where they are unknown."""

    kind: Literal["mask"] = "mask"

    @override
    def seen(self, event: Event) -> Event:
        return event

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x

    @override
    def adjoint(self, y: Tensor, event: Event) -> Tensor:
        return y

    @override
    def variance(self, var: Tensor) -> Tensor:
        return var


@final
class AveragePooling(LinearOperator):
    """Means of blocks that tile an example, as a coarser camera would see it (super-resolution).

    Attributes:
        size: the block's side: `size` elements of a vector, `size` x `size` pixels of an image.
    """

    kind: Literal["average-pooling"] = "average-pooling"
    size: int = Field(ge=1)

    @override
    def seen(self, event: Event) -> Event:
        axes = _spatial(event)
        if any(n % self.size for n in event[axes:]):
            raise ValueError(
                f"blocks of {self.size} do not tile sides of {list(event[axes:])}: "
                "`size` divides each side"
            )
        return (*event[:axes], *(n // self.size for n in event[axes:]))

    @override
    def forward(self, x: Tensor) -> Tensor:
        first = 1 + _spatial(x.shape[1:])
        for axis in range(first, x.ndim):
            x = x.unflatten(axis, (-1, self.size)).mean(axis + 1)
        return x

    @override
    def adjoint(self, y: Tensor, event: Event) -> Tensor:
        first = 1 + _spatial(event)
        for axis in range(first, y.ndim):
            y = y.repeat_interleave(self.size, axis) / self.size
        return y

    @override
    def variance(self, var: Tensor) -> Tensor:
        elements: int = self.size ** (len(var.shape[1:]) - _spatial(var.shape[1:]))
        return self.forward(var) / elements


@final
class Blur(LinearOperator):
    """Correlation of each channel with a kernel, zero-padded so that the size stays the same.

    (A x)_i = sum_j kernel_j x_{i + j - (size - 1) / 2}

    Attributes:
        kernel: [height, width], both odd; [1, width] for a vector.
    """

    kind: Literal["blur"] = "blur"
    kernel: tuple[tuple[float, ...], ...] = Field(min_length=1)

    @field_validator("kernel")
    @classmethod
    def _check(cls, kernel: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        _check_table(kernel, "kernel")
        sides = len(kernel), len(kernel[0])
        if any(n % 2 == 0 for n in sides):
            raise ValueError(f"a kernel has odd sides, came {list(sides)}")
        return kernel

    @override
    def seen(self, event: Event) -> Event:
        _spatial(event)
        if len(event) == 1 and len(self.kernel) > 1:
            raise ValueError("a vector needs a kernel of one row of numbers: write [[...]]")
        return event

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self._correlate(x, self._weights)

    @override
    def adjoint(self, y: Tensor, event: Event) -> Tensor:
        return self._correlate(y, self._weights.flip(0, 1))

    @override
    def variance(self, var: Tensor) -> Tensor:
        return self._correlate(var, self._weights.square())

    @cached_property
    def _weights(self) -> Tensor:
        return torch.tensor(self.kernel, dtype=torch.float64)

    @staticmethod
    def _correlate(x: Tensor, weights: Tensor) -> Tensor:
        height, width = weights.shape
        planes = x.reshape(-1, 1, *((1, *x.shape[1:]) if x.ndim == 2 else x.shape[-2:]))
        found = F.conv2d(planes, weights.to(x)[None, None], padding=(height // 2, width // 2))
        return found.reshape(x.shape)


@final
class Dense(LinearOperator):
    """A matrix that acts on the flattened example, with one row of weights per number seen.

    Attributes:
        rows: [numbers seen, elements of an example].
    """

    kind: Literal["dense"] = "dense"
    rows: tuple[tuple[float, ...], ...] = Field(min_length=1)

    @field_validator("rows")
    @classmethod
    def _check(cls, rows: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        _check_table(rows, "rows")
        return rows

    @override
    def seen(self, event: Event) -> Event:
        if len(self.rows[0]) != math.prod(event):
            raise ValueError(
                f"an example has {math.prod(event)} elements, came rows of {len(self.rows[0])}: "
                "write one weight per element"
            )
        return (len(self.rows),)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self._weights.to(x).mT

    @override
    def adjoint(self, y: Tensor, event: Event) -> Tensor:
        return (y @ self._weights.to(y)).reshape(-1, *event)

    @override
    def variance(self, var: Tensor) -> Tensor:
        return var.flatten(1) @ self._weights.square().to(var).mT

    @cached_property
    def _weights(self) -> Tensor:
        return torch.tensor(self.rows, dtype=torch.float64)


#: Any operator, discriminated by `kind`.
Operator = Annotated[Mask | AveragePooling | Blur | Dense, Field(discriminator="kind")]


def _spatial(event: Event) -> int:
    """Return the first spatial axis of an event: 0 for a vector, 1 for [channels, ...]."""
    if len(event) not in (1, 3):
        raise ValueError(
            "this operator takes vectors [D] and images [channels, height, width], came data of "
            f"shape {list(event)}: use 'dense'"
        )
    return 0 if len(event) == 1 else 1


def _check_table(table: tuple[tuple[float, ...], ...], name: str) -> None:
    """Raise ValueError unless all rows have the same length of at least 1."""
    lengths = {len(row) for row in table}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(f"`{name}` has rows of one length, came {sorted(lengths)}")
