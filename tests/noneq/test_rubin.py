"""Rubin's rules: a published example, the t distribution, and coverage on data with gaps."""

import math

import numpy as np
import pytest
from scipy import stats

from noneq import pool

# SAS/STAT 13.2, The MIANALYZE Procedure, Output 64.1.1: mean oxygen uptake of 31 men, five draws.
MEANS = [47.0120, 47.2407, 47.4995, 47.1485, 47.0042]
ERRORS = [0.95984, 0.93540, 1.00766, 0.95439, 0.96528]


def test_a_published_example() -> None:
    """Its formulas by hand, with scipy's t, and 30 degrees of freedom of the complete data."""
    found = pool(MEANS, np.square(ERRORS).tolist(), 30)
    within, between = np.mean(np.square(ERRORS)), np.var(MEANS, ddof=1)
    total = within + 1.2 * between
    r = 1.2 * between / within
    old = 4 * (1 + 1 / r) ** 2
    seen = 30 * 31 / 33 * (1 - 1.2 * between / total)
    freedom = 1 / (1 / old + 1 / seen)
    assert found.estimate == pytest.approx(47.18098)
    assert found.within == pytest.approx(0.930854, abs=1e-6)
    assert found.between == pytest.approx(0.041470, abs=1e-6)
    assert found.standard_error == pytest.approx(math.sqrt(total))
    assert found.degrees_of_freedom == pytest.approx(freedom) == pytest.approx(26.2987, abs=1e-4)
    assert found.missing == pytest.approx((r + 2 / (old + 3)) / (r + 1))
    low, high = stats.t.interval(0.95, freedom, found.estimate, found.standard_error)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize("m", [2, 3, 20, 400])
def test_intervals_are_students(m: int) -> None:
    draws = np.random.default_rng(m).normal(size=m)
    found = pool(draws.tolist(), [1.0] * m)
    half = stats.t.ppf(0.975, found.degrees_of_freedom) * found.standard_error
    assert found.high - found.estimate == pytest.approx(half, rel=3e-4)


def test_the_ends() -> None:
    certain = pool([2.0, 2.0], [1.0, 1.0])
    assert certain.standard_error == 1
    assert math.isinf(certain.degrees_of_freedom)
    assert certain.high == pytest.approx(2 + 1.96, abs=1e-3)
    assert certain.missing == 0
    same = pool([2.0, 2.0], [0.0, 0.0])
    assert (same.low, same.high) == (2, 2)
    unknown = pool([1.0, 2.0], [0.0, 0.0], 30)
    assert (unknown.missing, unknown.degrees_of_freedom) == (pytest.approx(1), 0)
    assert math.isinf(unknown.high)
    with pytest.raises(ValueError, match="ask for more draws"):
        pool([1.0], [1.0])


def test_intervals_cover_the_mean_of_data_with_gaps() -> None:
    """Of 600 tables of 40 numbers, 12 of them drawn anew 5 times from what the others say."""
    dice, covered, tables = np.random.default_rng(3), 0, 600
    for _ in range(tables):
        seen, means, variances = dice.normal(size=28), [], []
        for _ in range(5):  # proper draws: the mean and variance are drawn too (Rubin 1987)
            var = 27 * seen.var(ddof=1) / dice.chisquare(27)
            mean = dice.normal(seen.mean(), math.sqrt(var / 28))
            whole = np.concatenate((seen, dice.normal(mean, math.sqrt(var), 12)))
            means.append(float(whole.mean()))
            variances.append(float(whole.var(ddof=1) / 40))
        found = pool(means, variances, 39)
        covered += found.low < 0 < found.high
    error = math.sqrt(0.95 * 0.05 / tables)
    assert abs(covered / tables - 0.95) < 3 * error
