"""Tables: rows of named columns, numbers or categories, as model and data know them.

    data units   [61.5, 3, 1]              a number each: a real, an integer, a category's place
    model units  [.42, -1.1 | 0 1 0]       numbers through a monotone map, categories one-hot

Numbers come first in model units. A number with a `step` is one of a lattice of values: what is
observed of it is a cell of that width, and its likelihood a probability; another is a density.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self, final

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator
from torch import Tensor

from diffusion.categorical import Blocks

_FLOAT = torch.float64


class Column(BaseModel):
    """A named column."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: str = Field(min_length=1, max_length=200)


@final
class Number(Column):
    """A column of numbers, real or on a lattice.

    Attributes:
        knots, scores: the map from data to model units, linear between points (knot, score) and
            beyond them; two points scale, more follow the data's quantiles.
        step: the distance of neighbouring values; None for a real number.
        low, high: the least and greatest value; None for no limit. Of a lattice the first and last
            cells are open.
    """

    kind: Literal["number"] = "number"
    knots: tuple[float, ...] = Field(min_length=2, max_length=1024)
    scores: tuple[float, ...] = Field(min_length=2, max_length=1024)
    step: PositiveFloat | None = None
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        same = len(self.knots) == len(self.scores)
        if not same or any(a >= b for part in (self.knots, self.scores) for a, b in pairwise(part)):
            raise ValueError(
                f"column {self.name!r}: `knots` and `scores` ascend side by side, came "
                f"{list(self.knots)} and {list(self.scores)}"
            )
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"column {self.name!r}: `low` is below `high`, came {self.low}")
        return self

    def to_model(self, x: Tensor) -> Tensor:
        """Map data to model units, float64; NaN stays NaN."""
        return _along(x.double(), self.knots, self.scores)[0]

    def to_data(self, z: Tensor) -> Tensor:
        """Map model to data units, float64, on the lattice and within the limits."""
        x = _along(z.double(), self.scores, self.knots)[0]
        if self.step is not None:
            x = self.origin + ((x - self.origin) / self.step).round() * self.step
        return x.clamp(self.low, self.high) if (self.low, self.high) != (None, None) else x

    @property
    def origin(self) -> float:
        """A value of the lattice."""
        return next((end for end in (self.low, self.high) if end is not None), 0.0)

    def log_slope(self, x: Tensor) -> Tensor:
        """Return log dz / dx at data x, float64."""
        return _along(x.double(), self.knots, self.scores)[1].log()

    def cell(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ends of the cells of values x in model units, float64, maybe infinite."""
        assert self.step is not None  # reals have no cells
        x, half = x.double(), self.step / 2
        below, above = self.to_model(x - half), self.to_model(x + half)
        if self.low is not None:
            below = torch.where(x <= self.low + half, -torch.inf, below)
        if self.high is not None:
            above = torch.where(x >= self.high - half, torch.inf, above)
        return below, above

    def wrong(self, x: Tensor) -> Tensor:
        """Which values are none of this column's, bool; NaN is none."""
        bad = ~x.isfinite()
        for end, sign in ((self.low, 1), (self.high, -1)):
            if end is not None:
                bad = bad | ((x - end) * sign < -1e-9 * max(1.0, abs(end)))
        if self.step is not None:
            off = (x - self.origin) / self.step
            bad = bad | ((off - off.round()).abs() > 1e-3)
        return bad

    @property
    def words(self) -> str:
        """What its values are, in words."""
        ends = [f"{end:g}" if end is not None else "" for end in (self.low, self.high)]
        limits = f" from {ends[0]}" * bool(ends[0]) + f" to {ends[1]}" * bool(ends[1])
        return ("numbers" if self.step is None else f"steps of {self.step:g}") + limits


@final
class Category(Column):
    """A column of categories, by their labels; a value in data units is a label's place."""

    kind: Literal["category"] = "category"
    labels: tuple[str, ...] = Field(min_length=2, max_length=1000)

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"column {self.name!r}: a label comes twice in {list(self.labels)}")
        return self

    def wrong(self, x: Tensor) -> Tensor:
        """Which values are no label's place, bool; NaN is none."""
        return ~x.isfinite() | (x != x.round()) | (x < 0) | (x > len(self.labels) - 1)

    @property
    def words(self) -> str:
        """What its values are, in words."""
        return "one of " + ", ".join(self.labels)


AnyColumn = Annotated[Number | Category, Field(discriminator="kind")]


@final
class Layout:
    """Where the columns of a table are in model units: numbers first, then one-hot blocks."""

    def __init__(self, columns: Sequence[Number | Category]) -> None:
        self.numbers = [i for i, each in enumerate(columns) if isinstance(each, Number)]
        self.categories = [i for i, each in enumerate(columns) if isinstance(each, Category)]
        sizes = (len(each.labels) for each in columns if isinstance(each, Category))
        self.blocks = Blocks(tuple(sizes))
        self._columns = columns

    @property
    def width(self) -> int:
        """The elements of a row in model units."""
        return len(self.numbers) + self.blocks.width

    def to_model(self, x: Tensor) -> Tensor:
        """Rows in data units [N, J] in model units, float32 [N, width]; a gap's elements are 0."""
        parts = [column.to_model(x[:, i])[:, None] for i, column in self._of(Number)]
        if self.categories:
            codes = x[:, self.categories]
            hot = self.blocks.one_hot(codes.nan_to_num().long())
            parts.append(hot * self.blocks.each((~codes.isnan()).to(hot)))
        return torch.cat([part.nan_to_num().float() for part in parts], 1)

    def to_data(self, z: Tensor) -> Tensor:
        """Rows in model units [N, width] in data units, float64 [N, J]."""
        found = torch.empty(len(z), len(self._columns), dtype=_FLOAT, device=z.device)
        for place, (i, column) in enumerate(self._of(Number)):
            found[:, i] = column.to_data(z[:, place])
        if self.categories:
            found[:, self.categories] = self.blocks.codes(z[:, len(self.numbers) :]).double()
        return found

    def spread(self, of_columns: Tensor) -> Tensor:
        """Give every element in model units its column's entry: [N, J] to [N, width]."""
        numbers = of_columns[:, self.numbers]
        if not self.categories:
            return numbers
        return torch.cat((numbers, self.blocks.each(of_columns[:, self.categories])), 1)

    def _of(self, kind: type[Number]) -> list[tuple[int, Number]]:
        return [(i, each) for i, each in enumerate(self._columns) if isinstance(each, kind)]


def fitted_number(
    name: str,
    x: Tensor,
    *,
    knots: int = 2,
    step: float | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Number:
    """Fit a column's map to its values: to unit variance, or through their quantiles.

    Args:
        name: of the column.
        x: values without gaps, [N].
        knots: points of the map. Beyond two the quantiles of x go to those of a standard normal,
            as many as differ.
        step: of the column.
        low: likewise.
        high: likewise.
    """
    x = x.double()
    mean, std = float(x.mean()), float(x.std(correction=0)) or 1.0
    if knots > 2 and len(x) > 2:
        # The mid-ranks of n values, from which ties are averaged.
        share = torch.linspace(0.5 / len(x), 1 - 0.5 / len(x), knots, dtype=_FLOAT)
        at = torch.quantile(x, share)
        places, inverse = at.unique(return_inverse=True)
        scores = torch.special.ndtri(share)
        mean_score = torch.zeros_like(places).scatter_reduce(
            0, inverse, scores, "mean", include_self=False
        )
        wide = places.diff() > 1e-9 * max(1.0, float(places.abs().max()))
        keep = torch.cat((torch.ones(1, dtype=torch.bool), wide))
        if int(keep.sum()) > 2:
            found = places[keep].tolist(), mean_score[keep].tolist()
            return Number(name=name, knots=found[0], scores=found[1], step=step, low=low, high=high)
    ends = (mean - std, mean + std)
    return Number(name=name, knots=ends, scores=(-1.0, 1.0), step=step, low=low, high=high)


def _along(x: Tensor, at: Sequence[float], to: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Interpolate linearly through points (at, to), and beyond; returns values and slopes."""
    place, value = (torch.tensor(part, dtype=_FLOAT, device=x.device) for part in (at, to))
    slope = value.diff() / place.diff()
    i = torch.searchsorted(place, x.contiguous(), right=True).sub(1).clamp(0, len(slope) - 1)
    return value[i] + (x - place[i]) * slope[i], torch.where(x.isnan(), torch.nan, slope[i])
