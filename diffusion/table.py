"""Tables: rows of named columns, numbers or categories, as model and data know them.

    data units   [61.5, 3, 1]              a number each: a real, an integer, a category's place
    model units  [.42, -1.1 | 0 1 0]       numbers through a monotone map, categories one-hot

Numbers come first in model units. A number with a `step` is one of a lattice of values: what is
observed of it is a cell of that width, and its likelihood a probability; another is a density.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, final

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator
from torch import Tensor
from typing_extensions import override

from diffusion.categorical import Blocks
from diffusion.numbers import Numbers
from diffusion.space import Convention, DataSpace, Space

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

    @cached_property
    def _alone(self) -> Numbers:
        return of_columns([self])

    def to_model(self, x: Tensor) -> Tensor:
        """Map data [N] to model units, float64; NaN stays NaN."""
        return self._alone.to_model(x[:, None])[:, 0]

    def to_data_units(self, z: Tensor) -> Tensor:
        """Map model to data units, float64 [N]."""
        return self._alone.to_data_units(z[:, None])[:, 0]

    def to_data(self, z: Tensor) -> Tensor:
        """Map model to data units, float64 [N], on the lattice and within the limits."""
        return self._alone.to_data(z[:, None])[:, 0]

    def read(self, cell: "Cell") -> float | None:
        """Read a cell that is no gap; None if it is no number."""
        try:
            return float(cell)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return None

    def shown(self, value: float) -> "Cell":
        """Write a value: one of a lattice of integers as an integer."""
        if self.step is None:
            return value
        whole = self.step % 1 == 0 and self.origin % 1 == 0
        return round(value) if whole else float(f"{value:.12g}")

    @property
    def spread(self) -> tuple[float, float]:
        """A middle in data units and how far it is from there to 1 in model units, about."""
        low, middle, high = self.to_data_units(torch.tensor([-1.0, 0.0, 1.0])).tolist()
        return middle, (high - low) / 2

    @property
    def origin(self) -> float:
        """A value of the lattice."""
        return next((end for end in (self.low, self.high) if end is not None), 0.0)

    def log_slope(self, x: Tensor) -> Tensor:
        """Return log dz / dx at data x [N], float64."""
        return self._alone.log_slope(x[:, None])[:, 0]

    def wrong(self, x: Tensor) -> Tensor:
        """Which values are none of this column's, bool; NaN is none.

        A value between two of a lattice is of the nearer one's cell, unless the lattice has only
        integers.
        """
        bad = ~x.isfinite()
        for end, sign in ((self.low, 1), (self.high, -1)):
            if end is not None:
                bad = bad | ((x - end) * sign < -1e-9 * max(1.0, abs(end)))
        if self.step is not None and self.step % 1 == self.origin % 1 == 0:
            bad = bad | ((x - x.round()).abs() > 1e-6)
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

    def read(self, cell: "Cell") -> float | None:
        """Read a cell that is no gap, a label as text or number; None if there is no such label."""
        texts = [str(cell).strip()]
        if isinstance(cell, bool):
            texts += [texts[0].lower(), str(int(cell))]
        elif isinstance(cell, float) and cell.is_integer():
            texts.append(str(int(cell)))
        found = (self.labels.index(text) for text in texts if text in self.labels)
        return next(found, None)

    def shown(self, value: float) -> "Cell":
        """Write a place as its label."""
        return self.labels[round(value)]

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


Cell = str | float | bool | None
"""What a user writes in a cell; None, NaN and "" are gaps."""


@final
class TableSpace(Space):
    """Rows of named columns, numbers and categories, with gaps.

    In data units a row is float64 [J]: a number, a category's place, or NaN for a gap.

    Attributes:
        columns: in the order of data units. In model units numbers come first, then the one-hot
            blocks of categories.
    """

    kind: Literal["table"] = "table"
    columns: tuple[AnyColumn, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"two columns have the same name: {', '.join(self.names)}")
        return self

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        return (len(self.columns),)

    @property
    @override
    def event(self) -> tuple[int, ...]:
        return (len(self.numbers) + self.blocks.width,)

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @cached_property
    def numbers(self) -> list[int]:
        """The places of the columns of numbers."""
        return [i for i, each in enumerate(self.columns) if isinstance(each, Number)]

    @cached_property
    def categories(self) -> list[int]:
        """The places of the columns of categories."""
        return [i for i, each in enumerate(self.columns) if isinstance(each, Category)]

    @cached_property
    def blocks(self) -> Blocks:
        """The blocks of the categories."""
        sizes = (len(each.labels) for each in self.columns if isinstance(each, Category))
        return Blocks(tuple(sizes))

    @cached_property
    def column_of(self) -> Tensor:
        """The place in data units of each element in model units, int64 [width]."""
        categories = zip(self.categories, self.blocks.sizes, strict=True)
        elements = [place for place, size in categories for _ in range(size)]
        return torch.tensor(self.numbers + elements)

    @property
    def levels(self) -> None:
        """None: a column has a lattice of its own."""
        return None

    @property
    def limits(self) -> None:
        """None: a column has limits of its own."""
        return None

    @override
    def agrees(self, other: Space) -> bool:
        return self == other

    @property
    @override
    def greatest(self) -> None:
        return None

    @property
    @override
    def default_convention(self) -> Convention:
        """A density where a column has one, and masses of the others' cells and categories."""
        return "density"

    @property
    @override
    def affine(self) -> tuple[Tensor, Tensor]:
        """A middle of each number and its spread; 0 and 1 for categories."""
        ends = [each.spread if isinstance(each, Number) else (0.0, 1.0) for each in self.columns]
        middle, scale = torch.tensor(ends, dtype=_FLOAT).unbind(1)
        return middle, scale

    @property
    @override
    def extent(self) -> tuple[Tensor, Tensor]:
        return self.affine

    @property
    @override
    def dtype(self) -> torch.dtype:
        return _FLOAT

    @override
    def to_model(self, x: Tensor) -> Tensor:
        """Rows in data units [N, J] in model units, float32 [N, width]; a gap's elements are 0."""
        numbers = self._maps.nearest(x[:, self.numbers].double())
        parts = [self._maps.to_model(numbers)]
        if self.categories:
            codes = x[:, self.categories]
            hot = self.blocks.one_hot(codes.nan_to_num().long())
            parts.append(hot * self.blocks.each((~codes.isnan()).to(hot)))
        return torch.cat([part.nan_to_num().float() for part in parts], 1)

    @override
    def standard(self, x: Tensor) -> Tensor:
        middle, scale = self.affine
        return ((x.double() - middle) / scale).nan_to_num()

    @override
    def columns_of(self, chosen: Tensor) -> Tensor:
        return self.by_column(chosen.long()) > 0

    @property
    def nominal(self) -> Tensor:
        """Which columns have no order, bool [J]."""
        return torch.tensor([isinstance(each, Category) for each in self.columns])

    @override
    def gaps(self, x: Tensor) -> Tensor | None:
        empty = x.isnan()
        return self.spread(empty) if bool(empty.any()) else None

    @override
    def to_data(self, z: Tensor) -> Tensor:
        """Rows in model units [N, width] in data units, float64 [N, J], without gaps."""
        return self._to_data(z, self._maps.to_data)

    @override
    def to_data_units(self, z: Tensor) -> Tensor:
        """Likewise, but numbers may be between those of their lattice, and beyond their limits."""
        return self._to_data(z, self._maps.to_data_units)

    @override
    def spread(self, of_columns: Tensor) -> Tensor:
        """Give every element in model units its column's entry: [N, J] to [N, width]."""
        return of_columns[:, self.column_of.to(of_columns.device)]

    @property
    @override
    def parts(self) -> int:
        return len(self.columns)

    @override
    def by_part(self, each: Tensor) -> Tensor:
        return self.by_column(each)

    def by_column(self, of_elements: Tensor) -> Tensor:
        """Sum what elements in model units have by column: [N, width] to [N, J]."""
        found = of_elements.new_zeros(len(of_elements), len(self.columns))
        return found.index_add(1, self.column_of.to(of_elements.device), of_elements)

    @override
    def log_jacobian(self) -> float:
        raise ValueError("the Jacobian of a table depends on x: use `log_jacobian_of`")

    @override
    def log_slopes(self, z: Tensor) -> Tensor:
        found = torch.zeros(z.shape, dtype=_FLOAT, device=z.device)
        own = z[:, : len(self.numbers)]
        slopes = self._maps.log_slope(self._maps.to_data_units(own))
        of_lattice = torch.tensor(self._maps.step, device=z.device) > 0
        found[:, : len(self.numbers)] = slopes.masked_fill(of_lattice, 0.0)
        return found

    @cached_property
    def lattice(self) -> Tensor | None:
        """Which elements are numbers of a lattice, bool [width]; None for none."""
        steps = [step > 0 for step in self._maps.step]
        found = torch.tensor(steps + [False] * self.blocks.width)
        return found if bool(found.any()) else None

    @override
    def cells(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the ends of the cells of z [B, width]; the whole line where there are none."""
        if self.lattice is None:
            return None
        below = torch.full(z.shape, -torch.inf, dtype=_FLOAT, device=z.device)
        above, own, R = -below, z[:, : len(self.numbers)], len(self.numbers)
        lattice = self.lattice[:R].to(z.device)
        for ends, whole in zip(
            self._maps.cell(self._maps.to_data(own)), (below, above), strict=True
        ):
            whole[:, :R] = torch.where(lattice, ends, whole[:, :R])
        return below, above

    def widths(self, x: Tensor) -> Tensor:
        """Return how wide cells of numbers are at x [N, J], model units [N, R]; 0 for reals."""
        return self._maps.width(x[:, self.numbers])

    def settle(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Return the moments of Normal numbers that are known to be on their lattices.

        As `Numbers.settle`, of model units, float64 [B, R].
        """
        return self._maps.settle(mean, var)

    @override
    def check(self, x: Tensor) -> None:
        """Raise ValueError unless `x` [N, J] are rows of these columns; NaN is a gap."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"a row has {len(self.columns)} columns ({', '.join(self.names)}), came "
                f"{list(x.shape[1:])}"
            )
        for column, values in zip(self.columns, x.unbind(1), strict=True):
            wrong = column.wrong(values) & ~values.isnan()
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0])
                raise Unfit(row, column, f"{float(values[row]):g}")

    @property
    @override
    def table(self) -> list[dict[str, Any]]:
        return [column.model_dump(exclude={"knots", "scores"}) for column in self.columns]

    @override
    def encode(self, rows: Sequence[Mapping[str, Cell] | Sequence[Cell]]) -> Tensor:
        """Read rows as their user writes them, float64 [N, J] in data units.

        Args:
            rows: objects by column name, in which a column that is left out is a gap, or lists in
                the columns' order. None, NaN and "" are gaps; numbers may be text.

        Raises:
            ValueError: a column is unknown, or a cell is not what its column holds; says where.
        """
        found = [[math.nan] * len(self.columns) for _ in rows]
        for i, row in enumerate(rows):
            for j, cell in self._cells(i, row):
                if not is_gap(cell):
                    value = self.columns[j].read(cell)
                    if value is None:
                        raise Unfit(i, self.columns[j], _written(cell))
                    found[i][j] = math.inf if math.isnan(value) else value  # "nan" is no gap
        x = torch.tensor(found, dtype=_FLOAT).reshape(len(rows), len(self.columns))
        for j, column in enumerate(self.columns):
            wrong = (column.wrong(x[:, j]) & ~x[:, j].isnan()).nonzero().flatten().tolist()
            if wrong:
                cell = dict(self._cells(wrong[0], rows[wrong[0]]))[j]
                raise Unfit(wrong[0], column, _written(cell))
        return x

    @override
    def decode(self, x: Tensor) -> list[list[Cell]]:
        """Write rows [N, J] in data units for their user: numbers, labels, None for gaps."""
        columns = zip(self.columns, x.double().T.tolist(), strict=True)
        shown = [[None if v != v else column.shown(v) for v in own] for column, own in columns]
        return [list(row) for row in zip(*shown, strict=True)]

    def _cells(
        self, i: int, row: Mapping[str, Cell] | Sequence[Cell] | float
    ) -> Iterable[tuple[int, Cell]]:
        if isinstance(row, str) or not isinstance(row, Mapping | Sequence):  # as JSON may hold
            kind = "a string" if isinstance(row, str) else "a number"
            raise ValueError(
                f"row {i} is {kind}, wanted is an object or a list: the columns are "
                f"{', '.join(self.names)}"
            )
        if isinstance(row, Mapping):
            places = {name: j for j, name in enumerate(self.names)}
            unknown = [name for name in row if name not in places]
            if unknown:
                raise ValueError(
                    f"row {i} has a column {unknown[0]!r}: the columns are {', '.join(self.names)}"
                )
            return ((places[name], cell) for name, cell in row.items())
        if len(row) != len(self.columns):
            raise ValueError(
                f"row {i} has {len(row)} cells, wanted are {len(self.columns)}: "
                f"{', '.join(self.names)}"
            )
        return enumerate(row)

    @cached_property
    def _maps(self) -> Numbers:
        return of_columns([each for each in self.columns if isinstance(each, Number)])

    def _to_data(self, z: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        found = torch.empty(len(z), len(self.columns), dtype=_FLOAT, device=z.device)
        found[:, self.numbers] = act(z[:, : len(self.numbers)])
        if self.categories:
            found[:, self.categories] = self.blocks.codes(z[:, len(self.numbers) :]).double()
        return found


AnySpace = Annotated[DataSpace | TableSpace, Field(discriminator="kind")]


def is_gap(cell: Cell) -> bool:
    """Whether a cell is empty: None, NaN, or text that is blank."""
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def _written(cell: Cell) -> str:
    return repr(cell) if isinstance(cell, str) else str(cell)


class Unfit(ValueError):
    """A cell is not what its column holds.

    Attributes:
        row: its row.
        column: the column's name.
        came: the cell.
        expected: what the column holds, in words.
    """

    def __init__(self, row: int, column: Number | Category, came: str) -> None:
        words = column.words
        super().__init__(f"row {row}, column {column.name!r}: came {came}, expected is {words}")
        self.row, self.column, self.came, self.expected = row, column.name, came, words


def of_columns(columns: Sequence[Number]) -> Numbers:
    """The maps and lattices of columns."""
    low = [-math.inf if each.low is None else each.low for each in columns]
    high = [math.inf if each.high is None else each.high for each in columns]
    return Numbers(
        [each.knots for each in columns],
        [each.scores for each in columns],
        [each.step or 0.0 for each in columns],
        low,
        high,
        [each.origin for each in columns],
    )


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
        places, inverse = torch.quantile(x, share).unique(return_inverse=True)
        scores = torch.special.ndtri(share)
        mean_score = torch.zeros_like(places).scatter_reduce(
            0, inverse, scores, "mean", include_self=False
        )
        wide = places.diff() > 1e-9 * max(1.0, float(places.abs().max()))
        keep = torch.cat((torch.ones(1, dtype=torch.bool), wide))
        if int(keep.sum()) > 2:
            at, to = tuple(places[keep].tolist()), tuple(mean_score[keep].tolist())
            return Number(name=name, knots=at, scores=to, step=step, low=low, high=high)
    ends = (mean - std, mean + std)
    return Number(name=name, knots=ends, scores=(-1.0, 1.0), step=step, low=low, high=high)
