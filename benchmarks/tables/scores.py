"""Scores of draws for hidden cells, with standard errors over rows.

    of a number     CRPS = E|X - x| - E|X - X'| / 2, in deviations of its column
    of a category   the same of the distance [X != x]: half of Brier's sum_k (p_k - [x = k])^2
    of a cell       either, so that a row of both kinds has one score

X and X' are different draws, so a score of few draws has the mean of one of many. Intervals are by
ranks: where truth and M draws are exchangeable, u = (draws below + U (ties + 1)) / (M + 1) is
uniform, and within [.05, .95] in 90% of cells, ties or not. The width is from the draw of rank
.05 (M + 1) to that of rank .95 (M + 1).
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.tables.data import Bools, Rows, Table

DRAWS = 39  # (M + 1) / 20 is whole
LEVEL = 0.9
WIDE = 20  # columns; of more the scores by column are not kept


@dataclass(frozen=True)
class Score:
    """A mean over hidden cells and its standard error over rows."""

    mean: float
    error: float

    @property
    def pair(self) -> list[float]:
        """For JSON."""
        return [round(self.mean, 5), round(self.error, 5)]


def over(values: Rows, cells: Bools) -> Score:
    """Average the cells' values; rows are independent, the cells of one are not."""
    sums, counts = np.where(cells, values, 0.0).sum(1), cells.sum(1)
    total = counts.sum()
    mean = sums.sum() / total
    return Score(float(mean), float(np.sqrt(((sums - mean * counts) ** 2).sum()) / total))


def score(table: Table, truth: Rows, hidden: Bools, drawn: Rows, seed: int) -> dict[str, object]:
    """Return all scores of draws [M, m, J] for the hidden cells of rows [M, J]."""
    if not np.isfinite(drawn[np.broadcast_to(hidden[:, None], drawn.shape)]).all():
        raise ValueError("a hidden cell's draw is not finite")
    draws, scale = drawn.shape[1], table.scale()
    number = hidden & np.isin(np.arange(hidden.shape[1]), table.numbers)
    category = hidden & ~number
    x, draw = truth / scale, drawn / scale
    ordered = np.sort(draw, 1)
    far = np.abs(draw - x[:, None]).mean(1)
    # Of sorted draws sum_{i<j} (X_j - X_i) = sum_i (2 i - m + 1) X_i.
    weight = (2 * np.arange(draws) - draws + 1)[:, None]
    crps = far - (weight * ordered).sum(1) / (draws * (draws - 1))
    counts = np.stack([(draw == k).sum(1) for k in range(_most(table))], -1)
    hit = (draw == x[:, None]).sum(1)
    pairs = ((counts * (counts - 1)).sum(-1)) / (draws * (draws - 1))
    brier = 1 - 2 * hit / draws + pairs
    size = np.array([len(column.labels) or 1 for column in table.columns])
    log = -np.log((hit + 0.5) / (draws + size / 2))
    cell = np.where(number, crps, brier / 2)
    below = (draw < x[:, None]).sum(1)
    u = np.random.default_rng([seed, 2]).random(x.shape)
    rank = (below + u * (hit + 1)) / (draws + 1)
    inside = (np.abs(rank - 0.5) <= LEVEL / 2).astype(np.float64)
    edge = round((1 - LEVEL) / 2 * (draws + 1)) - 1
    width = ordered[:, draws - 1 - edge] - ordered[:, edge]
    found: dict[str, object] = {
        "cells": int(hidden.sum()),
        "categories": int(category.sum()),
        "draws": draws,
        "score": over(cell, hidden).pair,
    }
    if number.any():
        error = over((draw.mean(1) - x) ** 2, number)
        rmse = Score(error.mean**0.5, error.error / (2 * error.mean**0.5))
        found |= {
            "rmse": rmse.pair,
            "crps": over(crps, number).pair,
            "coverage": over(inside, number).pair,
            "width": over(width, number).pair,
        }
    if category.any():
        found |= {"brier": over(brier, category).pair, "log": over(log, category).pair}
    few = len(table.columns) <= WIDE
    by_column = {
        column.name: [*over(cell, one).pair, *over(inside, one).pair[:1], int(one.sum())]
        for j, column in enumerate(table.columns if few else ())
        if (one := hidden & (np.arange(hidden.shape[1]) == j)).any()
    }
    return found | {"columns": by_column}


def _most(table: Table) -> int:
    """The most labels of a column."""
    return max((len(column.labels) for column in table.columns), default=0) or 1
