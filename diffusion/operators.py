"""Linear operators A, by their kind: what of x_0 an observation sees, y = A x_0 + noise.

    <A x, y> = <x, A^T y>

A configuration is all there is of one: it comes in requests, and holds no tensors but what it works
out of its own numbers.
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
    """A, from events [B, *event] to what is seen of them [B, *seen]."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @abstractmethod
    def seen(self, event: Event) -> Event:
        """The shape of A x.

        Raises:
            ValueError: events of this shape are not what the operator takes.
        """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x, [B, *seen]."""

    @abstractmethod
    def adjoint(self, y: Tensor, event: Event) -> Tensor:
        """A^T y, [B, *event]."""

    @abstractmethod
    def variance(self, var: Tensor) -> Tensor:
        """The diagonal of A diag(var) A^T, [B, *seen]: the variances of A x for independent x."""

    def matrix(self, event: Event, device: torch.device) -> Tensor:
        """A itself, float64 [numbers seen, elements of the event]; worked out once."""
        key = "matrix", event, device
        if key not in self._worked_out:
            shape = self.seen(event)
            count = math.prod(shape)
            one_each = torch.eye(count, dtype=torch.float64, device=device).reshape(count, *shape)
            self._worked_out[key] = self.adjoint(one_each, event).flatten(1)
        return self._worked_out[key]

    def inverse(self, event: Event, device: torch.device) -> Tensor:
        """Its pseudo-inverse, float64 [elements of the event, numbers seen]; worked out once."""
        key = "inverse", event, device
        if key not in self._worked_out:
            self._worked_out[key] = torch.linalg.pinv(self.matrix(event, device))
        return self._worked_out[key]

    @cached_property
    def _worked_out(self) -> dict[tuple[str, Event, torch.device], Tensor]:
        return {}


@final
class Mask(LinearOperator):
    """A = 1: elements as they are; which are known is said by the noise, infinite where not."""

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
    """Means of blocks that tile an example, as a coarser camera sees it (super-resolution).

    Attributes:
        size: of a block: `size` elements of a vector, `size` x `size` pixels of an image.
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
    """Each channel's correlation with a kernel, of the same size; beyond the edges lie zeros.

    (A x)_i = sum_j kernel_j x_{i + j - (size - 1) / 2}

    Attributes:
        kernel: [height, width], odd both; of a vector [1, width].
    """

    kind: Literal["blur"] = "blur"
    kernel: tuple[tuple[float, ...], ...] = Field(min_length=1)

    @field_validator("kernel")
    @classmethod
    def _check(cls, kernel: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        _check_table(kernel, "kernel")
        sides = len(kernel), len(kernel[0])
        if any(n % 2 == 0 for n in sides):
            raise ValueError(f"a kernel has a middle: odd sides, came {list(sides)}")
        return kernel

    @override
    def seen(self, event: Event) -> Event:
        _spatial(event)
        if len(event) == 1 and len(self.kernel) > 1:
            raise ValueError("a vector is blurred by one row of numbers: write [[...]]")
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
    """A matrix, a row of weights for each number seen, over the flattened example.

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
                "write one weight for each element"
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


#: An operator's configuration, told apart by `kind`.
Operator = Annotated[Mask | AveragePooling | Blur | Dense, Field(discriminator="kind")]


def _spatial(event: Event) -> int:
    """Which axis of an event is its first in space: 0 of a vector, 1 of [channels, ...]."""
    if len(event) not in (1, 3):
        raise ValueError(
            "space is that of vectors [D] and images [channels, height, width], came data of shape "
            f"{list(event)}: use 'dense'"
        )
    return 0 if len(event) == 1 else 1


def _check_table(table: tuple[tuple[float, ...], ...], name: str) -> None:
    """Raise ValueError unless all rows have the same length, at least 1."""
    lengths = {len(row) for row in table}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(f"`{name}` has rows of one length, came {sorted(lengths)}")
