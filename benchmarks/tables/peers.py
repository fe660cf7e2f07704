r"""Methods that fill gaps, each fitted to rows once and asked for draws of any others' gaps.

    pip install --no-deps miceforest==6.0.5 'lightgbm<4.7' 'pandas<3' pyarrow
    pip install --no-deps ForestDiffusion==1.0.6 xgboost-cpu catboost
    pip install --no-deps hyperimpute==0.1.17 optuna loguru==0.6.0 redis cloudpickle geomloss \
        miracle-imputation alembic sqlalchemy colorlog
    pip install --no-deps pyod numba llvmlite

Each gets categories as its library takes them; where it takes none they are one-hot, and the
largest element of a draw is the category drawn. Settings are the library's defaults but for `CAPS`
and what is said at each. With pandas 3 hyperimpute returns noise, without an error.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from benchmarks.tables.data import Bools, Ints, Rows, Table

#: From rows with gaps [M, J], draws and a seed to completed rows [M, draws, J].
Fill = Callable[[Rows, int, int], Rows]
Fit = Callable[[Table, Rows, int], Fill]

#: The most rows that a method is fitted to, drawn at random: more take hours of a core.
CAPS = {"miceforest": 4000, "ForestDiffusion": 1000, "hyperimpute": 1000}
DONORS = 10
CHAINS, BURNT = 3, 3  # of miceforest; iterations left out


class Coding:
    """Numbers in deviations from their mean, categories one-hot: [N, J] to [N, width] and back."""

    def __init__(self, table: Table, rows: Rows) -> None:
        self.table = table
        self.mean, self.scale = np.nanmean(rows, 0), np.nanstd(rows, 0)
        self.scale[self.scale == 0] = 1.0
        sizes = [len(column.labels) or 1 for column in table.columns]
        ends = np.cumsum(sizes)
        self.places = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        self.width = int(ends[-1])

    def code(self, rows: Rows) -> Rows:
        """Gaps stay NaN."""
        found = np.empty((len(rows), self.width))
        for j, column in enumerate(self.table.columns):
            x = rows[:, j : j + 1]
            found[:, self.places[j]] = (
                np.where(np.isnan(x), np.nan, x == np.arange(len(column.labels)))
                if column.labels
                else (x - self.mean[j]) / self.scale[j]
            )
        return found

    def decode(self, coded: Rows) -> Rows:
        """The largest element of a block is its category."""
        found = np.empty((len(coded), len(self.table.columns)))
        for j, column in enumerate(self.table.columns):
            x = coded[:, self.places[j]]
            found[:, j] = x.argmax(1) if column.labels else x[:, 0] * self.scale[j] + self.mean[j]
        return found


def marginal(table: Table, rows: Rows, seed: int) -> Fill:
    """Draw from the column, whatever the rest of the row says."""
    del table, seed

    def fill(asked: Rows, draws: int, seed: int) -> Rows:
        dice = np.random.default_rng([seed, 3])
        found = np.repeat(asked[:, None], draws, 1)
        for j in range(asked.shape[1]):
            gap = np.isnan(found[:, :, j])
            values = rows[:, j][~np.isnan(rows[:, j])]
            found[gap, j] = dice.choice(values, int(gap.sum()))
        return found

    return fill


def hot_deck(table: Table, rows: Rows, seed: int) -> Fill:
    """Copy all gaps of a row from one of the nearest rows that have them.

    The distance is the mean over the columns that both have of the squared difference in
    deviations, and [x != x'] for a category.
    """
    del seed
    coding = Coding(table, rows)
    coded, have = coding.code(rows) * _halves(table, coding), ~np.isnan(rows)
    there = ~np.isnan(coded)
    x, there_too = np.where(there, coded, 0.0), there.astype(np.float64)

    def fill(asked: Rows, draws: int, seed: int) -> Rows:
        dice = np.random.default_rng([seed, 3])
        found = np.repeat(asked[:, None], draws, 1)
        for i, row in enumerate(coding.code(asked) * _halves(table, coding)):
            known = ~np.isnan(row)
            far = (x[:, known] - row[known]) ** 2 * there_too[:, known]
            columns = have[:, ~np.isnan(asked[i])].sum(1)
            distance = np.where(columns > 0, far.sum(1) / np.maximum(columns, 1), np.inf)
            gaps = np.isnan(asked[i])
            lacks = (~have[:, gaps]).sum(1)
            donors = np.lexsort((distance, lacks))[:DONORS]
            who = dice.choice(donors, draws)
            found[i][:, gaps] = np.where(have[who][:, gaps], rows[who][:, gaps], coding.mean[gaps])
        return found

    return fill


def _halves(table: Table, coding: Coding) -> Rows:
    """Factors with which two different categories are at distance 1."""
    found = np.ones(coding.width)
    for j in table.categories:
        found[coding.places[j]] = 0.5**0.5
    return found


@dataclass(frozen=True)
class Normal:
    """A Gaussian of coded rows."""

    mean: Rows
    covariance: Rows

    def given(self, known: Bools) -> tuple[Rows, Rows]:
        """Slopes [unknown, known] and covariance of the unknown elements given the known ones."""
        a, b = self.covariance[np.ix_(~known, known)], self.covariance[np.ix_(known, known)]
        slopes: Rows = np.asarray(np.linalg.solve(b, a.T).T, np.float64) if known.any() else a
        return slopes, self.covariance[np.ix_(~known, ~known)] - slopes @ a.T


def fitted_normal(coded: Rows, rounds: int = 30) -> Normal:
    """Fit a Gaussian to rows with gaps by EM (Dempster et al. 1977), a closed form without any.

    A ridge of 1e-3 variances keeps one-hot blocks, which add up to 1, regular.
    """
    known = ~np.isnan(coded)
    kinds, which = np.unique(known, axis=0, return_inverse=True)
    ridge = 1e-3 * np.diag(np.nanvar(coded, 0) + 1e-6)
    normal = Normal(np.nanmean(coded, 0), np.diag(np.nanvar(coded, 0)) + ridge)
    for _ in range(rounds if not known.all() else 1):
        filled, more = coded.copy(), np.zeros_like(ridge)
        for kind, seen in enumerate(kinds):
            if seen.all():
                continue
            mine = which.reshape(-1) == kind
            slopes, rest = normal.given(seen)
            x = coded[mine]
            x[:, ~seen] = normal.mean[~seen] + (x[:, seen] - normal.mean[seen]) @ slopes.T
            filled[mine] = x
            more[np.ix_(~seen, ~seen)] += mine.sum() * rest
        mean = filled.mean(0)
        centred = filled - mean
        normal = Normal(mean, (centred.T @ centred + more) / len(coded) + ridge)
    return normal


def _drawn(normal: Normal, row: Rows, draws: int, dice: np.random.Generator) -> Rows:
    """Complete a coded row, [draws, width]."""
    known = ~np.isnan(row)
    slopes, rest = normal.given(known)
    values, vectors = np.linalg.eigh(rest)
    factor = vectors * np.sqrt(np.maximum(values, 0.0))
    found = np.tile(row, (draws, 1))
    mean = normal.mean[~known] + slopes @ (row[known] - normal.mean[known])
    found[:, ~known] = mean + dice.normal(size=(draws, len(mean))) @ factor.T
    return found


def gaussian(table: Table, rows: Rows, seed: int) -> Fill:
    """One Gaussian, and its conditional distributions in closed form."""
    del seed
    coding = Coding(table, rows)
    normal = fitted_normal(coding.code(rows))

    def fill(asked: Rows, draws: int, seed: int) -> Rows:
        dice = np.random.default_rng([seed, 3])
        coded = coding.code(asked)
        each = [coding.decode(_drawn(normal, row, draws, dice)) for row in coded]
        return _kept(asked, np.stack(each))

    return fill


def copula(table: Table, rows: Rows, seed: int) -> Fill:
    """One Gaussian of the columns' normal scores; a draw is a quantile, so some row's value."""
    del seed
    order = [np.sort(column[~np.isnan(column)]) for column in rows.T]

    def scores(x: Rows) -> Rows:
        found = x.copy()
        for j in table.numbers:
            low, high = (np.searchsorted(order[j], x[:, j], side) for side in ("left", "right"))
            share = (low + high + 1) / (2 * len(order[j]) + 2)
            found[:, j] = np.where(np.isnan(x[:, j]), np.nan, special.ndtri(share))
        return found

    inner = gaussian(table, scores(rows), 0)

    def fill(asked: Rows, draws: int, seed: int) -> Rows:
        found = inner(scores(asked), draws, seed)
        for j in table.numbers:
            place = (special.ndtr(found[:, :, j]) * len(order[j])).astype(np.int64)
            found[:, :, j] = order[j][place.clip(0, len(order[j]) - 1)]
        return _kept(asked, found)

    return fill


def mice(table: Table, rows: Rows, seed: int) -> Fill:
    """scikit-learn's IterativeImputer with posterior draws: Bayesian ridge by column.

    A category is its place, and a draw the nearest: of a one-hot block each element is a function
    of the others, so its chain would never move.
    """
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    made: Any = IterativeImputer(sample_posterior=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that ten rounds of draws do not converge
        made.fit(rows)

    def fill(asked: Rows, draws: int, seed: int) -> Rows:
        made.random_state_ = np.random.RandomState(seed)
        found = np.stack([made.transform(asked) for _ in range(draws)], 1)
        for j in table.categories:
            most = len(table.columns[j].labels) - 1
            found[:, :, j] = found[:, :, j].round().clip(0, most)
        return _kept(asked, found)

    return fill


def miceforest(table: Table, rows: Rows, seed: int) -> Fill:
    """Chained LightGBM with mean matching; draws are the last iterations of three chains.

    The rows asked about are imputed beside the others, which is its ordinary use: its
    `impute_new_data` (6.0.5) returns the random values that it starts from.
    """
    import miceforest as library
    import pandas

    del seed

    def fill(asked: Rows, draws: int, seed: int) -> Rows:
        names = [f"c{j}" for j in range(len(table.columns))]
        frame = pandas.DataFrame(np.concatenate([rows, asked]), columns=names)
        for j in table.categories:
            kinds = pandas.CategoricalDtype(range(len(table.columns[j].labels)))
            frame[f"c{j}"] = frame[f"c{j}"].astype("Int64").astype(kinds)
        made: Any = library.ImputationKernel(frame, num_datasets=CHAINS, random_state=seed)
        kept = -(-draws // CHAINS)
        made.mice(BURNT + kept, num_threads=1)
        each = [
            np.asarray(made.complete_data(chain, BURNT + 1 + i), np.float64)[len(rows) :]
            for i in range(kept)
            for chain in range(CHAINS)
        ]
        return _kept(asked, np.stack(each[:draws], 1))

    return fill


def forest(table: Table, rows: Rows, seed: int) -> Fill:
    """ForestDiffusion with XGBoost: ten copies of each row in place of a hundred, for time."""
    from ForestDiffusion import diffusion_with_trees_class as library

    made: Any = library.ForestDiffusionModel(
        rows.copy(),
        diffusion_type="vp",
        duplicate_K=10,
        cat_indexes=[j for j in table.categories if len(table.columns[j].labels) > 2],
        bin_indexes=[j for j in table.categories if len(table.columns[j].labels) == 2],
        n_jobs=1,
        seed=seed,
    )

    def fill(asked: Rows, draws: int, seed: int) -> Rows:
        np.random.seed(seed)  # noqa: NPY002 - the library's
        both = np.concatenate([rows, asked])  # so that every category is there
        coded = np.array(made.dummify(both)[0] if made.cat_indexes else both)[len(rows) :]
        found = made.impute(k=draws, X=made.scaler.transform(coded))
        return _kept(asked, np.asarray(found, np.float64).transpose(1, 0, 2))

    return fill


def hyperimpute(table: Table, rows: Rows, seed: int) -> Fill:
    """hyperimpute's own method, which searches a model for each column: one completion."""
    import pandas
    from hyperimpute.plugins.imputers import Imputers

    coding = Coding(table, rows)
    made: Any = Imputers().get("hyperimpute", random_state=seed)

    def fill(asked: Rows, draws: int, seed: int) -> Rows:
        del seed
        # It has no draws and models only the gaps of the rows that it is given: all in one.
        both = pandas.DataFrame(np.concatenate([coding.code(rows), coding.code(asked)]))
        found = coding.decode(np.asarray(made.fit_transform(both), np.float64)[len(rows) :])
        return _kept(asked, np.repeat(found[:, None], draws, 1))

    return fill


def _kept(asked: Rows, drawn: Rows) -> Rows:
    """Draws with what was known put back exactly."""
    found: Rows = np.where(np.isnan(asked)[:, None], drawn, asked[:, None])
    return found


PEERS: dict[str, Fit] = {
    "marginal": marginal,
    "hot deck": hot_deck,
    "Gaussian": gaussian,
    "Gaussian copula": copula,
    "IterativeImputer": mice,
    "miceforest": miceforest,
    "ForestDiffusion": forest,
    "hyperimpute": hyperimpute,
}


def some(method: str, train: Ints, seed: int) -> Ints:
    """The rows that a method is fitted to."""
    most = CAPS.get(method, len(train))
    return (
        train if len(train) <= most else np.random.default_rng([seed, 4]).permutation(train)[:most]
    )
