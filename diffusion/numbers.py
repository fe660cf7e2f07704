"""Columns of numbers of a table, all at once: their maps to model units, and their lattices.

    z = score_i + (x - knot_i) (score_i+1 - score_i) / (knot_i+1 - knot_i),  knot_i <= x < knot_i+1

with the first and last segment going on beyond the knots. Maps of different numbers of knots are
made as long as the longest by points on the last segment's line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_FLOAT = torch.float64
#: Steps from the nearest value of a lattice to those that are weighed.
_NEAR = torch.arange(-4, 5, dtype=_FLOAT)
#: The least standard deviation of a number on a lattice, in cells.
_SURE = 1e-3


@dataclass(frozen=True)
class Numbers:
    """R columns of numbers, as `diffusion.table.Number` has them.

    Attributes:
        knots, scores: of each column's map, any number of points.
        step: of each lattice; 0 for a real column.
        low, high: infinite for no limit.
        origin: a value of the lattice.
    """

    knots: Sequence[Sequence[float]]
    scores: Sequence[Sequence[float]]
    step: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    origin: Sequence[float]

    def to_model(self, x: Tensor) -> Tensor:
        """Map data [N, R] to model units, float64; NaN stays NaN."""
        return self._mapped(x, self._at, self._to)[0]

    def to_data_units(self, z: Tensor) -> Tensor:
        """Map model to data units, float64 [N, R]."""
        return self._mapped(z, self._to, self._at)[0]

    def to_data(self, z: Tensor) -> Tensor:
        """Likewise, on the lattices and within the limits."""
        x = self.nearest(self.to_data_units(z))
        return x.clamp(self._row(self.low, x), self._row(self.high, x))

    def nearest(self, x: Tensor) -> Tensor:
        """Return the values of the lattices in whose cells x [N, R] lies; x of real columns."""
        step, origin = self._row(self.step, x), self._row(self.origin, x)
        size = torch.where(step > 0, step, 1.0)
        return torch.where(step > 0, origin + ((x - origin) / size).round() * size, x)

    def log_slope(self, x: Tensor) -> Tensor:
        """Return log dz / dx at data x, float64 [N, R]."""
        return self._mapped(x, self._at, self._to)[1].log()

    def cell(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ends of the cells of values x [N, R] of lattices in model units.

        They may be infinite; those of real columns are x itself.
        """
        x = x.double()
        step, low, high = (self._row(of, x) for of in (self.step, self.low, self.high))
        half, lattice = step / 2, step > 0
        below, above = self.to_model(x - half), self.to_model(x + half)
        below = below.masked_fill(lattice & (x <= low + half), -torch.inf)
        return below, above.masked_fill(lattice & (x >= high - half), torch.inf)

    def width(self, x: Tensor) -> Tensor:
        """Return how far the ends of a cell of x [N, R] are apart, model units; 0 for reals."""
        half = self._row(self.step, x) / 2
        return self.to_model(x + half) - self.to_model(x - half)

    def settle(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Return the moments of Normal numbers that are known to be on their lattices.

            P(x = v) is proportional to N(v; mean, var),    v on the lattice

        A Normal wider than a cell stays as it is.

        Args:
            mean: model units, float64 [N, R].
            var: likewise.
        """
        with torch.no_grad():
            x = self.to_data(mean)
            width = self.width(x)
            narrow = var < width.square()
            if mean.is_cuda:  # to ask where they are would wait for the device
                each = torch.arange(mean.numel(), device=mean.device)
                row, column = each // mean.shape[1], each % mean.shape[1]
            else:
                row, column = narrow.nonzero().unbind(1)
            limits = (self._row(of, x).expand_as(x) for of in (self.step, self.low, self.high))
            step, low, high = (of[row, column, None] for of in limits)
            values = x[row, column, None] + step * _NEAR.to(x.device)
            at, to = (of.to(x.device)[column] for of in (self._at, self._to))
            z = _along(values, at, to)[0]
            outside = (values < low - step / 2) | (values > high + step / 2)
            least, narrow = (_SURE * width[row, column]).square(), narrow[row, column]
        was, wide = mean[row, column], var[row, column]
        log_p = -0.5 * (z - was[:, None]).square() / wide[:, None]
        p = log_p.masked_fill(outside, -torch.inf).softmax(1)
        settled = (p * z).sum(1)
        spread = (p * (z - settled[:, None]).square()).sum(1) + least
        settled, spread = torch.where(narrow, settled, was), torch.where(narrow, spread, wide)
        return mean.index_put((row, column), settled), var.index_put((row, column), spread)

    @cached_property
    def _at(self) -> Tensor:
        """The knots, all as many, float64 [R, M]."""
        return _even(self.knots)

    @cached_property
    def _to(self) -> Tensor:
        """The scores, likewise."""
        return _even(self.scores)

    def _mapped(self, x: Tensor, at: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
        """Map x [N, R] by columns; returns values and slopes."""
        found = _along(x.double().mT, at.to(x.device), to.to(x.device))
        return found[0].mT, found[1].mT

    def _row(self, values: Sequence[float], like: Tensor) -> Tensor:
        """A number for each column, [1, R]."""
        return torch.tensor([values], dtype=_FLOAT, device=like.device)


def _even(points: Sequence[Sequence[float]]) -> Tensor:
    """Ascending points of each column, gone on with the last step to as many, float64 [R, M]."""
    most = max(map(len, points), default=2)
    rows = []
    for own in points:
        each = torch.tensor(own, dtype=_FLOAT)
        more = torch.arange(1, most - len(own) + 1) * (each[-1] - each[-2])
        rows.append(torch.cat((each, each[-1] + more)))
    return torch.stack(rows) if rows else torch.zeros(0, 2, dtype=_FLOAT)


def _along(x: Tensor, at: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
    """Interpolate each row of x [N, V] through points [N, M], and beyond: values and slopes."""
    i = torch.searchsorted(at, x.contiguous(), right=True).sub(1).clamp(0, at.shape[1] - 2)
    slope = (to.diff() / at.diff()).gather(1, i)
    value = to.gather(1, i) + (x - at.gather(1, i)) * slope
    return value, torch.where(x.isnan(), torch.nan, slope)
