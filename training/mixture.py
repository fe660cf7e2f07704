"""Fit a mixture to a table with gaps: what a fit of a table starts from, chosen in seconds.

Expectation and maximisation over components and gaps at once: a gap adds the mean and the
covariance that its component gives it. With N_k rows in component k and their scatter S_k,

    C_k = (N_k S_k + nu C) / (N_k + nu),    C = (1 - a) S + a diag(S),    S = sum_k N_k S_k / N

with nu = R + 10 for R numbers; categories and means have priors of a few rows at those of the whole
table. The mean of several such mixtures, each of rows weighed at random, is a mixture again, and
less sure of what few rows tell. The number of components and a are chosen by cross-validation, and
then a factor of all C with which intervals of cells cover 90% of rows that were not fitted to.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.networks import TableMixture
from diffusion.table import TableSpace

COMPONENTS = (2, 3, 4, 5, 8, 12, 20)
SHRINKAGE = (0.0, 0.03, 0.1, 0.3, 0.6, 1.0)
FOLDS = 5
FEW = 1000
"""Rows below which more starts are taken, because a mixture of them is less certain."""
STARTS = (8, 3)
LARGEST = 2000
"""Rows that a choice is made on; more tell it no better and take longer."""
MOST = 20_000
"""Rows that a mixture is fitted to."""
COSTLY = 30_000_000
"""Components times numbers cubed, at most: what a row costs."""
FLOOR = 3e-5
"""Added to variances of columns of unit variance: a direction without any has a density."""
SPREADS = (1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)
"""Factors of covariances: an estimate from few rows is too sure, hardly ever too unsure."""
LEVEL, HIDDEN = 0.9, 0.3  # of intervals; share of columns that are hidden
LARGEST_HIDDEN, PATTERNS = 200, 20  # rows of a fold, and of patterns in them
_ROUNDS, _ENOUGH = 100, 1e-3  # of expectation and maximisation; nats a row that end it
_PRIOR = 2.0  # rows of categories as they are in the whole table, in each component
_OF_MEANS = 0.1  # likewise of means
_LLOYD = 10  # rounds of k-means
_CHUNK = 1 << 22  # numbers of matrices by row that are made at a time

Base = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Choice:
    """Which mixture.

    Attributes:
        components: of each start.
        starts: mixtures whose mean is taken.
        shrinkage: a, by which columns of numbers are taken as independent.
        spread: a factor of all covariances.
    """

    components: int = 1
    starts: int = 1
    shrinkage: float = 0.0
    spread: float = 1.0


@dataclass(frozen=True)
class Cells:
    """The rows that a mixture is fitted to.

    Attributes:
        z: model units, numbers first, float64 [N, D].
        known: which elements are no gaps, bool [N, D].
        base: the probabilities that the process decays to, of each category column.
        floor: the least variance of each number, [R]: of one on a lattice that of a uniform number
            in its cell.
        ends: of the cell that each number is in, twice the number for reals, float64 [2, N, R].
        group: of each row; those of a group are in one fold, int64 [N].
    """

    z: Tensor
    known: Tensor
    base: Base
    floor: Tensor
    ends: Tensor
    group: Tensor

    @classmethod
    def of(
        cls, space: TableSpace, rows: Tensor, base: Base, group: Tensor | None = None
    ) -> "Cells":
        """The cells of rows [N, J] in data units; each is a group without `group` [N]."""
        rows = rows[:MOST]
        gaps, numbers = space.gaps(rows), len(space.numbers)
        z = space.to_model(rows).double()
        known = torch.ones_like(z, dtype=torch.bool) if gaps is None else ~gaps
        widths = torch.where(known[:, :numbers], space.widths(rows), torch.nan)
        floor = FLOOR + widths.nanmedian(0).values.nan_to_num().square() / 12
        ends = [z[:, :numbers]] * 2
        cells = space.cells(z)
        if cells is not None:
            of = space.widths(rows) > 0
            ends = [torch.where(of, end[:, :numbers], ends[0]) for end in cells]
        group = torch.arange(len(z)) if group is None else group[: len(z)]
        return cls(z, known, base, floor, torch.stack(ends), group)

    def rows(self, index: Tensor) -> "Cells":
        """Some of the rows."""
        return replace(
            self,
            z=self.z[index],
            known=self.known[index],
            ends=self.ends[:, index],
            group=self.group[index],
        )

    def folds(self) -> Iterator[tuple["Cells", "Cells"]]:
        """Each fold and the rows that are in none of its groups."""
        fold = self.group.unique(return_inverse=True)[1] % FOLDS
        for one in fold.unique():
            yield self.rows(fold == one), self.rows(fold != one)


def fit(cells: Cells, choice: Choice) -> TableMixture:
    """Fit the mixture of a choice."""
    found = [_climbed(cells, choice, seed) for seed in range(choice.starts)]
    parts = zip(*found, strict=True)
    weights, means, covariances, p = (torch.cat(part) for part in parts)
    return TableMixture.from_values(
        cells.base, weights / choice.starts, means, covariances * choice.spread, p
    )


def choose(cells: Cells) -> Choice:
    """Choose the mixture with the greatest log-density of rows that it was not fitted to.

    Its spread is then the least by which its intervals cover `LEVEL` of them (`covered`), but for
    a standard error.
    """
    cells = cells.rows(torch.arange(min(LARGEST, len(cells.z))))
    numbers = len(cells.floor)
    start = max((Choice(shrinkage=a) for a in SHRINKAGE), key=lambda c: score(cells, c))
    found = [(start, score(cells, start))]
    for components in COMPONENTS:
        if components > len(cells.z) // 10 or components * numbers**3 > COSTLY:
            break
        one = replace(start, components=components)
        found.append((one, score(cells, one)))
        if len(found) > 2 and found[-1][1] < found[-2][1] < found[-3][1]:
            break
    best, its = max(found, key=lambda pair: pair[1])
    many = replace(best, starts=STARTS[0] if len(cells.z) < FEW else STARTS[1])
    if many.starts * best.components * numbers**3 <= COSTLY and score(cells, many) > its:
        best = many
    shares, error = covered(cells, best)
    near = [spread for spread in SPREADS if abs(shares[spread] - LEVEL) <= error]
    closest = min(SPREADS, key=lambda spread: abs(shares[spread] - LEVEL))
    return replace(best, spread=near[0] if near else closest)


def covered(cells: Cells, choice: Choice) -> tuple[dict[float, float], float]:
    """Return the share of hidden numbers that intervals of each of `SPREADS` cover, and an error.

    In rows of each fold a share `HIDDEN` of the columns is hidden, and the number's place in its
    distribution given the others, F(x), is within the middle `LEVEL`; for one of a lattice the part
    of [F(below), F(above)] that is.
    """
    inside, count = dict.fromkeys(SPREADS, 0.0), 0
    if not cells.floor.numel():
        return dict.fromkeys(SPREADS, LEVEL), 0.0
    dice = torch.Generator().manual_seed(0)
    for out, rest in cells.folds():
        out = out.rows(torch.arange(min(LARGEST_HIDDEN, len(out.z))))
        sizes = [1] * len(cells.floor) + [len(column) for column in cells.base]
        # A few patterns, as rows of the same share a matrix.
        shown = (torch.rand(PATTERNS, len(sizes), generator=dice) > HIDDEN)[
            torch.arange(len(out.z)) % PATTERNS
        ]
        seen = out.known & shown.repeat_interleave(torch.tensor(sizes), 1)
        asked = (out.known & ~seen)[:, : len(cells.floor)]
        count += int(asked.sum())
        found = fit(rest, choice)
        for spread in SPREADS:
            low, high = found.spread(spread).places(out.z, seen, out.ends)
            edge = (1 - LEVEL) / 2
            part = high.clamp(edge, 1 - edge) - low.clamp(edge, 1 - edge)
            whole = (low > edge) & (low < 1 - edge)
            each = torch.where(high > low, part / (high - low).clamp_min(1e-12), whole.double())
            inside[spread] += float(each[asked].sum())
    count = max(1, count)
    shares = {spread: share / count for spread, share in inside.items()}
    return shares, math.sqrt(LEVEL * (1 - LEVEL) / count)


def suited(space: TableSpace, rows: Tensor, base: Base, group: Tensor | None = None) -> float:
    """Return the log-density of rows by folds under the mixture chosen, data units, nats a row.

    Maps of the columns can be compared by it.
    """
    cells = Cells.of(space, rows[:LARGEST], base, group)
    return score(cells, choose(cells)) + float(in_data_units(space, rows[:LARGEST]).mean())


def in_data_units(space: TableSpace, rows: Tensor) -> Tensor:
    """Return what log-densities of rows [N, J] in model units lack, nats float64 [N].

    That is log dz / dx of reals, and the log of the width of the others' cells, whose mass it makes
    of a density.
    """
    widths = space.widths(rows)
    slopes = space.log_slopes(space.to_model(rows))[:, : widths.shape[1]]
    each = torch.where(widths > 0, widths.clamp_min(1e-300).log(), slopes)
    return torch.where(rows[:, space.numbers].isnan(), 0.0, each).sum(1)


def score(cells: Cells, choice: Choice) -> float:
    """Return the mean log-density of each of 5 folds by the other four, nats a row."""
    total = 0.0
    for out, rest in cells.folds():
        total += float(fit(rest, choice).log_prob(out.z, out.known).sum())
    return total / len(cells.z)


def _climbed(cells: Cells, choice: Choice, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return weights [K], means [K, R], covariances [K, R, R] and probabilities [K, W]."""
    rows = _Rows(cells, seed if choice.starts > 1 else None)
    share = _start(rows, choice.components, seed)
    filled = rows.filled[:, None].expand(-1, choice.components, -1)
    none = filled.new_zeros(choice.components, *[rows.filled.shape[1]] * 2)
    values = rows.maximised(share * rows.weight, filled, none, choice.shrinkage)
    before = -math.inf
    for _ in range(_ROUNDS):
        now, share, means, spread = rows.expected(*values)
        if now - before < _ENOUGH:
            break
        before = now
        values = rows.maximised(share, means, spread, choice.shrinkage)
    return values


class _Rows:
    """The rows that a mixture is fitted to, grouped by which numbers are gaps."""

    def __init__(self, cells: Cells, seed: int | None = None) -> None:
        z, known, self.floor = cells.z, cells.known, cells.floor
        # Rows weighed at random (Rubin 1981): what is uncertain of a mixture differs by start.
        self.weight = torch.ones(len(z), 1, dtype=torch.float64)
        if seed is not None:
            dice = torch.Generator().manual_seed(seed)
            self.weight = -torch.rand(len(z), 1, generator=dice).double().clamp_min(1e-9).log()
            self.weight *= len(z) / self.weight.sum()
        self.sizes = [len(column) for column in cells.base]
        R = z.shape[1] - sum(self.sizes)
        self.x, self.c = z[:, :R], z[:, R:]
        self.seen, self.some = known[:, :R], known[:, R:]
        if R:
            self.patterns, self.pattern = self.seen.unique(dim=0, return_inverse=True)
        else:  # of which torch knows no different ones
            self.patterns, self.pattern = self.seen[:1], torch.zeros(len(z), dtype=torch.long)
        count = self.seen.sum(0).clamp_min(1)
        self.mean = torch.where(self.seen, self.x, 0.0).sum(0) / count
        self.filled = torch.where(self.seen, self.x, self.mean)
        hot = self.c * self.some
        self.hot = hot
        self.p = self._shares(hot.sum(0, keepdim=True) + 0.5)[0]

    def expected(
        self, weights: Tensor, means: Tensor, covariances: Tensor, p: Tensor
    ) -> tuple[float, Tensor, Tensor, Tensor]:
        """Return the log-density, p(k | row) [N, K], E[x | row, k] [N, K, R] and what gaps add.

        Gaps add the sums over rows of p(k | row) Cov[x | row, k], [K, R, R].
        """
        (N, R), K = self.x.shape, len(weights)
        log_joint = weights.log() + self.hot @ p.log().T
        filled, spread = self.x.new_empty(N, K, R), self.x.new_zeros(K, R, R)
        within: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for i, seen in enumerate(self.patterns):
            rows = (self.pattern == i).nonzero()[:, 0]
            gap = ~seen
            of = covariances[:, seen][:, :, seen]
            root = torch.linalg.cholesky(of)
            off = self.x[rows][:, None, seen] - means[:, seen]
            white = torch.linalg.solve_triangular(root, off.permute(1, 2, 0), upper=False)
            log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)
            constant = math.log(2 * math.pi) * int(seen.sum())
            log_p = -0.5 * (white.square().sum(1) + log_det[:, None] + constant)
            log_joint[rows] += log_p.T
            filled[rows] = self.x[rows][:, None].expand(-1, K, -1)
            if bool(gap.any()):
                across = covariances[:, gap][:, :, seen]
                gain = torch.cholesky_solve(across.mT, root)  # [K, seen, gaps]
                guess = means[:, None, gap] + off.permute(1, 0, 2) @ gain
                at = filled[rows]
                at[:, :, gap] = guess.permute(1, 0, 2)
                filled[rows] = at
                left = covariances[:, gap][:, :, gap] - across @ gain
                within.append((rows, gap, left, gain))
        share = log_joint.softmax(1) * self.weight
        for rows, gap, left, _ in within:
            place = gap.nonzero()[:, 0]
            spread[:, place[:, None], place] += share[rows].sum(0)[:, None, None] * left
        total = (log_joint.logsumexp(1) * self.weight[:, 0]).mean()
        return float(total), share, filled, spread

    def maximised(
        self, share: Tensor, filled: Tensor, spread: Tensor, shrinkage: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the values that p(k | row) [N, K] and the numbers [N, K, R] make likeliest."""
        N, K, R = filled.shape
        count = share.sum(0)
        weights = (count + 1) / (N + K)
        sums = torch.einsum("nk,nkr->kr", share, filled)
        means = (sums + _OF_MEANS * self.mean) / (count[:, None] + _OF_MEANS)
        scatter = spread.clone()
        for rows in torch.arange(N).split(max(1, _CHUNK // max(1, K * R))):
            off = filled[rows] - means
            scatter += torch.einsum("nk,nkr,nks->krs", share[rows], off, off)
        tied = scatter.sum(0) / N
        tied = (1 - shrinkage) * tied + shrinkage * tied.diagonal().diag()
        freedom = R + 10
        covariances = (scatter + freedom * tied) / (count + freedom)[:, None, None]
        covariances = (covariances + covariances.mT) / 2 + self.floor.diag()
        return weights, means, covariances, self._shares(share.T @ self.hot + _PRIOR * self.p)

    def _shares(self, counts: Tensor) -> Tensor:
        """Return each block's counts [K, W] divided by their sum."""
        if not self.sizes:
            return counts
        parts = counts.split(self.sizes, 1)
        return torch.cat([part / part.sum(1, keepdim=True) for part in parts], 1)


def _start(rows: _Rows, components: int, seed: int) -> Tensor:
    """Return p(k | row) by k-means of the rows, gaps at their means, softened, [N, K]."""
    data = torch.cat((rows.filled, torch.where(rows.some, rows.c, rows.p)), 1)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    centres = data[order[:components]]
    for _ in range(_LLOYD):
        nearest = torch.cdist(data, centres).argmin(1)
        each = torch.nn.functional.one_hot(nearest, components).double()
        count = each.sum(0)[:, None]
        centres = torch.where(count > 0, each.T @ data / count.clamp_min(1), centres)
    return 0.9 * each + 0.1 / components
