"""The data space: what an example is, and the map from data units to model units.

    z = (x - shift) / scale,    log p(x) = log p(z) - sum over elements of log scale

for images, vectors and bits (`DataSpace`); tables have a map of their own (`diffusion.table`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from typing_extensions import override

Convention = Literal["discretised", "density", "paper"]

#: Largest offset / spread for float32, whose 24 bits then round to 6e-6 of the spread.
_FLOAT32_OFFSET = 100.0
#: Largest offset / spread for float64, whose 53 bits then round to 1e-6 of the spread.
_MOST_OFFSET = 1e10
#: The least distance of a value from its limits that is told apart, as a share of their distance.
_NEAREST = 1e-7


class Space(BaseModel, ABC):
    """What an example is, in the units of its user and in the model's."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    if TYPE_CHECKING:  # fields of some spaces, and facts about others

        @property
        def kind(self) -> str:
            """The kind of an example."""

        @property
        def shape(self) -> tuple[int, ...]:
            """The shape of one example in data units."""

        @property
        def levels(self) -> int | None:
            """For integer data 0..levels - 1, the number of values; else None."""

        @property
        def limits(self) -> tuple[tuple[float, float] | None, ...] | None:
            """The least and greatest value of each element of a vector; None without any."""

    @property
    @abstractmethod
    def event(self) -> tuple[int, ...]:
        """The shape of one example in model units."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...] | None:
        """The names of the elements in data units, if they have any."""

    @abstractmethod
    def agrees(self, other: "Space") -> bool:
        """Whether two spaces are equal, ignoring column names that only one of them has."""

    @property
    def dims(self) -> int:
        """The number of elements of an example, in data units."""
        return math.prod(self.shape)

    @property
    @abstractmethod
    def greatest(self) -> int | None:
        """The greatest value of an element of integer data; None for reals."""

    @property
    def in_pngs(self) -> bool:
        """Whether a PNG can hold an example."""
        return False

    @property
    def flips(self) -> bool:
        """Whether noise flips elements instead of adding to them, so noisy data are valid data."""
        return False

    @property
    def drawn_as(self) -> Literal["image", "rows", "points"]:
        """How to draw several examples: each as an image or a row, or all as points."""
        return "points"

    @property
    def noise_name(self) -> Literal["noise_std", "flip_probability"]:
        """How an observation gives its noise: as a standard deviation or a flip probability."""
        return "flip_probability" if self.flips else "noise_std"

    @property
    def unit(self) -> Literal["bits/dim", "bits"]:
        """The unit in which to report the bound."""
        return "bits"

    @property
    @abstractmethod
    def default_convention(self) -> Convention:
        """The convention for the bound that suits these data."""

    @property
    @abstractmethod
    def affine(self) -> tuple[Tensor, Tensor]:
        """A middle and a scale of the elements, float64, shaped to broadcast over [*shape]."""

    @property
    @abstractmethod
    def extent(self) -> tuple[Tensor, Tensor]:
        """A middle of the data and their spread, data units, float64, shaped as `affine`."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The type for values in data units."""

    @property
    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """The least and greatest value in model units; None for data without levels."""
        return None

    @abstractmethod
    def to_model(self, x: Tensor) -> Tensor:
        """Convert data units [N, *shape] to model units, float32 [N, *event]."""

    def standard(self, x: Tensor) -> Tensor:
        """Scale rows x [N, *shape] in data units to comparable elements, float64; gaps are 0."""
        return self.to_model(x).double()

    def columns_of(self, chosen: Tensor) -> Tensor:
        """Choose elements of data units by those of model units, bool [N, *event], [N, *shape]."""
        return chosen

    def gaps(self, x: Tensor) -> Tensor | None:
        """Return the elements that rows x [N, *shape] lack, bool [N, *event]; None if none does."""
        del x
        return None

    @abstractmethod
    def to_data(self, z: Tensor) -> Tensor:
        """Convert model units [N, *event] to data, [N, *shape]."""

    @abstractmethod
    def to_data_units(self, z: Tensor) -> Tensor:
        """Convert model units [N, *event] to data units without rounding to what data can be."""

    @abstractmethod
    def log_jacobian(self) -> float:
        """Return log |dz / dx|, which turns a log-density from model to data units, nats.

        Raises:
            ValueError: it depends on x.
        """

    def log_jacobian_of(self, z: Tensor, among: Tensor | None = None) -> Tensor:
        """Return log |dz / dx| at z [B, *event], model units; nats, float64 [B].

        `among` selects elements, bool [B, *event].
        """
        each = self.log_slopes(z)
        return (each if among is None else torch.where(among, each, 0.0)).flatten(1).sum(1)

    @abstractmethod
    def log_slopes(self, z: Tensor) -> Tensor:
        """Return log dz / dx of each element at z, model units; float64 [B, *event].

        0 for elements that have no density.
        """

    @abstractmethod
    def cells(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the ends of the cells that z [B, *event] stands for, float64, maybe infinite.

        None where values are cells themselves, or none has a cell.
        """

    @property
    def lattice(self) -> Tensor | None:
        """Which elements have a mass by convention "density" too, bool [*event]; None for none."""
        return None

    @abstractmethod
    def check(self, x: Tensor) -> None:
        """Raise ValueError unless `x` [N, *shape] is data."""

    def spread(self, of_data: Tensor) -> Tensor:
        """Give every element in model units what its element in data units has, [N, *event]."""
        return of_data

    @property
    def parts(self) -> int:
        """Into how many parts a bound is divided: a table's columns, or 1."""
        return 1

    def by_part(self, each: Tensor) -> Tensor:
        """Sum what elements in model units have by part: [B, *event] to [B, parts]."""
        return each.flatten(1).sum(1, keepdim=True)

    @property
    def table(self) -> list[dict[str, Any]] | None:
        """What a user has to know of each column of a table; None for other data."""
        return None

    def encode(self, rows: Sequence[Any]) -> Tensor | None:
        """Read rows as their user writes them, [N, *shape], gaps NaN; None if data are arrays.

        Raises:
            ValueError: a row is none of a table; says where.
        """
        del rows
        return None

    def decode(self, x: Tensor) -> list[list[Any]] | None:
        """Write rows [N, *shape] for their user, gaps None; None if data are arrays."""
        del x
        return None


class DataSpace(Space):
    """The kind, shape and units of an example that is an array.

    Attributes:
        kind: "image" ([channels, height, width]), "vector" ([D]) or "bits" ([D] or an image of
            bits).
        shape: the shape of one example.
        shift: subtracted from data; one number, or one per element of the first axis.
        scale: divides the shifted data; above 0, shaped like `shift`.
        levels: for integer data 0..levels - 1, the number of values (256 for 8-bit images).
        columns: names of the D elements, for vectors read from a table with a header.
        limits: of a vector, each element's least and greatest value, None for one without; None if
            none has any. `shift` and `scale` are then of probits.
    """

    kind: Literal["image", "vector", "bits"]
    shape: tuple[int, ...] = Field(min_length=1, max_length=3)
    shift: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0
    levels: int | None = Field(None, ge=2, le=65536)
    columns: tuple[str, ...] | None = None
    limits: tuple[tuple[float, float] | None, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(n < 1 for n in self.shape):
            raise ValueError(f"every side of `shape` is at least 1, came {list(self.shape)}")
        if self.kind == "image" and len(self.shape) != 3:
            raise ValueError(
                f"an image's `shape` is [channels, height, width], came {list(self.shape)}"
            )
        for name in ("shift", "scale"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != self.shape[0]:
                raise ValueError(
                    f"`{name}` is one number or {self.shape[0]} of them (the first axis of "
                    f"`shape`), came {len(value)}"
                )
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        if min(scales) <= 0:
            raise ValueError(f"`scale` is above 0, came {self.scale}")
        if self._offset > _MOST_OFFSET:
            raise ValueError(
                f"the data lie {self._offset:g} times their spread from 0, which float64 does not "
                "resolve: subtract an offset from them before fitting"
            )
        if self.kind == "bits" and (self.shift, self.scale, self.levels) != (0.0, 1.0, None):
            raise ValueError("bits are 0 and 1 in every unit: leave `shift`, `scale`, `levels` out")
        for each in self.limits or ():
            if each is not None and each[0] >= each[1]:
                raise ValueError(f"limits are a lesser and a greater number, came {list(each)}")
        if self.limits is not None and (self.kind, self.shape) != ("vector", (len(self.limits),)):
            raise ValueError(
                f"`limits` are of a vector, a pair or null for each of its D elements: came "
                f"{len(self.limits)} for {self.kind} of shape {list(self.shape)}"
            )
        names = self.columns
        if names is not None and (self.shape != (len(names),) or len(set(names)) != len(names)):
            raise ValueError(
                f"`columns` are D different names for a `shape` of [D], came "
                f"{list(names)} for {list(self.shape)}"
            )
        return self

    @property
    @override
    def event(self) -> tuple[int, ...]:
        return self.shape

    @property
    @override
    def names(self) -> tuple[str, ...] | None:
        return self.columns

    @override
    def agrees(self, other: Space) -> bool:
        if not isinstance(other, DataSpace):
            return False
        named = None not in (self.columns, other.columns)
        if named and self.columns != other.columns:
            return False
        bare = {"columns": None}
        return self.model_copy(update=bare) == other.model_copy(update=bare)

    @property
    @override
    def greatest(self) -> int | None:
        """The greatest value of an element of integer data; None for reals."""
        if self.kind == "bits":
            return 1
        return None if self.levels is None else self.levels - 1

    @property
    @override
    def in_pngs(self) -> bool:
        """Whether a PNG can hold an example."""
        return self.kind != "vector" and len(self.shape) == 3 and self.shape[0] in (1, 3)

    @property
    @override
    def flips(self) -> bool:
        """Whether noise flips elements instead of adding to them, so noisy data are valid data."""
        return self.kind == "bits"

    @property
    @override
    def drawn_as(self) -> Literal["image", "rows", "points"]:
        """How to draw several examples: each as an image or a row, or all as points."""
        if self.kind == "vector":
            return "points"
        return "image" if len(self.shape) == 3 else "rows"

    @property
    @override
    def unit(self) -> Literal["bits/dim", "bits"]:
        """The unit in which to report the bound."""
        return "bits/dim" if self.kind == "image" else "bits"

    @property
    @override
    def default_convention(self) -> Convention:
        """The convention for the bound that suits these data."""
        return "density" if self.greatest is None else "discretised"

    @property
    @override
    def affine(self) -> tuple[Tensor, Tensor]:
        """The shift and the scale, float64, shaped to broadcast over [*shape]; `limits` aside."""
        return self._shift(), self._scale()

    @property
    @override
    def extent(self) -> tuple[Tensor, Tensor]:
        """A middle of the data and their spread, data units, float64, shaped as `affine`."""
        shift, scale = self.affine
        if self.limits is None:
            return shift, scale
        limited, low, high = self._limits(shift)
        shift, scale = (part.broadcast_to(self.shape) for part in (shift, scale))
        return (
            torch.where(limited, (low + high) / 2, shift),
            torch.where(limited, (high - low) / 2, scale),
        )

    @property
    @override
    def dtype(self) -> torch.dtype:
        """The type for values in data units: float64 where float32 would round off their spread."""
        scales = self._scale()
        ordinary = float(scales.min()) > 1e-30 and float(scales.max()) < 1e30
        return torch.float32 if ordinary and self._offset <= _FLOAT32_OFFSET else torch.float64

    @property
    def _offset(self) -> float:
        """The largest offset of any column, in units of its spread."""
        return float((self._shift() / self._scale()).abs().max())

    @property
    @override
    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """The least and greatest value in model units; None for data without levels."""
        if self.levels is None:
            return None
        ends = torch.tensor([0.0, self.levels - 1.0], dtype=torch.float64)
        low, high = ((ends[:, *[None] * len(self.shape)] - self._shift()) / self._scale()).unbind(0)
        return low, high

    @override
    def to_model(self, x: Tensor) -> Tensor:
        """Convert data units [N, *shape] to model units, float32."""
        return ((self.unlimited(x) - self._shift(x)) / self._scale(x)).float()

    @override
    def to_data(self, z: Tensor) -> Tensor:
        """Convert model units [N, *shape] to data units, rounded and clamped to any levels."""
        x = self._rescaled(z)
        if self.levels is not None:
            x = x.round().clamp(0, self.levels - 1)
        return x.to(self.dtype)

    @override
    def to_data_units(self, z: Tensor) -> Tensor:
        """Convert model units [N, *shape] to data units without rounding to levels."""
        return self._rescaled(z).to(self.dtype)

    def unlimited(self, x: Tensor) -> Tensor:
        """Replace elements with limits by their probits, float64; x [N, *shape] in data units."""
        x = x.double()
        if self.limits is None:
            return x
        limited, low, high = self._limits(x)
        share = ((x - low) / (high - low)).clamp(_NEAREST, 1 - _NEAREST)
        return torch.where(limited, torch.special.ndtri(share), x)

    @override
    def log_jacobian(self) -> float:
        """Return log |dz / dx|, which turns a log-density from model to data units, nats.

        Raises:
            ValueError: elements have limits, so that it depends on x.
        """
        if self.limits is not None:
            raise ValueError("with limits the Jacobian depends on x: use `log_jacobian_of`")
        per_element = torch.broadcast_to(self._scale(), self.shape).log().sum()
        return -float(per_element)

    @override
    def log_slopes(self, z: Tensor) -> Tensor:
        each = torch.broadcast_to(self._scale(z), z.shape).log()
        if self.limits is not None:
            limited, low, high = self._limits(z)
            u = z.double() * self._scale(z) + self._shift(z)
            slope = (high - low).log() - 0.5 * (u.square() + math.log(2 * math.pi))
            each = each + torch.where(limited, slope, 0.0)
        return -each

    @override
    def cells(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the ends of the bins of the levels z [B, *shape]; those at the ends are open."""
        if self.levels is None or self.bounds is None:
            return None
        z = z.double()
        low, high = (bound.to(z.device) for bound in self.bounds)
        half = (high - low) / (2 * (self.levels - 1))
        below = torch.where(z <= low + half, -torch.inf, z - half)
        return below, torch.where(z >= high - half, torch.inf, z + half)

    @override
    def check(self, x: Tensor) -> None:
        """Raise ValueError unless `x` [N, *shape] is data: finite, in range, of the right shape."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"an example has shape {list(self.shape)}, came {list(x.shape[1:])}: "
                f"send arrays of shape {list(self.shape)}"
            )
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                "data are finite numbers, came NaN or infinity: remove or replace them"
            )
        if self.limits is not None:
            limited, low, high = self._limits(x)
            wrong = limited & ((x < low) | (x > high))
            if bool(wrong.any()):
                at = int(wrong.any(0).nonzero()[0])
                name = at if self.columns is None else self.columns[at]
                raise ValueError(
                    f"element {name} is from {low[at]:g} to {high[at]:g}, came "
                    f"{_odd(x[:, at], wrong[:, at])}: check its units"
                )
        if self.kind == "bits" and not bool(((x == 0) | (x == 1)).all()):
            raise ValueError(f"bits are 0 or 1, came {_odd(x, (x != 0) & (x != 1))}")
        if self.levels is not None:
            wrong = (x < 0) | (x > self.levels - 1) | (x != x.round())
            if bool(wrong.any()):
                raise ValueError(
                    f"values are integers from 0 to {self.levels - 1}, came {_odd(x, wrong)}: "
                    f"scale to 0..{self.levels - 1} and round"
                )

    def _rescaled(self, z: Tensor) -> Tensor:
        x = z.double() * self._scale(z) + self._shift(z)
        if self.limits is None:
            return x
        limited, low, high = self._limits(z)
        return torch.where(limited, low + (high - low) * torch.special.ndtr(x), x)

    def _limits(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return which elements have limits, bool [D], and these, float64 [D]; 0 and 1 if none."""
        assert self.limits is not None
        limited = torch.tensor([each is not None for each in self.limits])
        ends = torch.tensor([each or (0.0, 1.0) for each in self.limits], dtype=torch.float64)
        low, high = ends.to(like.device).unbind(1)
        return limited.to(like.device), low, high

    def _shift(self, like: Tensor | None = None) -> Tensor:
        return self._column(self.shift, like)

    def _scale(self, like: Tensor | None = None) -> Tensor:
        return self._column(self.scale, like)

    def _column(self, value: float | tuple[float, ...], like: Tensor | None) -> Tensor:
        """Return a setting as float64, shaped to broadcast over [*shape]."""
        column = torch.tensor(value, dtype=torch.float64).reshape(-1, *[1] * (len(self.shape) - 1))
        return column if like is None else column.to(like.device)


def _odd(x: Tensor, wrong: Tensor) -> str:
    """List the first few offending values, in words."""
    values = x[wrong][:3].tolist()
    more = int(wrong.sum()) - len(values)
    return ", ".join(f"{v:g}" for v in values) + (f" and {more} more" if more > 0 else "")
