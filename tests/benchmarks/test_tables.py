"""Scores of draws against closed forms, and the Gaussian that fills gaps against its own."""

import numpy as np
import pytest

pytest.importorskip("scipy")

from benchmarks.tables.data import Column, Rows, Table
from benchmarks.tables.novelty import auroc
from benchmarks.tables.peers import PEERS, fitted_normal
from benchmarks.tables.scores import DRAWS, score

COUNT = 4000


def table(columns: list[Column], rows: Rows) -> Table:
    return Table(tuple(columns), rows, np.arange(len(rows)))


def test_draws_from_the_truth_s_own_distribution_have_its_scores_and_cover_90_percent() -> None:
    dice = np.random.default_rng(0)
    p = np.array([0.2, 0.5, 0.3])
    x = np.column_stack(
        [dice.normal(size=COUNT), dice.integers(0, 3, COUNT), dice.choice(3, COUNT, p=p)]
    )
    drawn = np.stack(
        [
            dice.normal(size=(COUNT, DRAWS)),
            dice.integers(0, 3, (COUNT, DRAWS)),
            dice.choice(3, (COUNT, DRAWS), p=p),
        ],
        2,
    )
    whole = table([Column("a"), Column("b"), Column("c", ("x", "y", "z"))], x)
    found = score(whole, x, np.ones(x.shape, bool), drawn.astype(np.float64), 0)

    def close(name: str, exact: float, column: str = "") -> None:
        mean, error, *_ = found["columns"][column] if column else found[name]  # type: ignore[index]
        assert abs(mean - exact) < 4 * error, (name, mean, exact, error)

    close("", 1 / np.pi**0.5, "a")  # E|X - X'| / 2 of two normals
    scale = x[:, 1].std()
    close("", 4 / 9 / scale, "b")  # E|X - X'| = 8 / 9 of three even numbers
    close("brier", 1 - (p**2).sum())
    close("log", -(p * np.log(p)).sum() + 1 / DRAWS)  # K - 1 over 2 M more, and no bias of prior
    close("coverage", 0.9)  # of a lattice's ties too


def test_a_wrong_spread_or_place_scores_worse_and_does_not_cover() -> None:
    dice = np.random.default_rng(1)
    x, drawn = dice.normal(size=(COUNT, 1)), dice.normal(size=(COUNT, DRAWS, 1))
    whole, all_ = table([Column("a")], x), np.ones((COUNT, 1), bool)
    right, narrow, off = (
        score(whole, x, all_, each, 0) for each in (drawn, 0.5 * drawn, drawn + 0.5)
    )
    for wrong in (narrow, off):
        assert wrong["crps"][0] > right["crps"][0] + 4 * right["crps"][1]  # type: ignore[index]
        assert wrong["coverage"][0] < 0.87  # type: ignore[index]


def test_em_finds_the_gaussian_that_complete_rows_came_from_through_their_gaps() -> None:
    dice = np.random.default_rng(2)
    factor = np.array([[1.0, 0, 0], [0.8, 0.6, 0], [-0.5, 0.5, 0.7]])
    rows = dice.normal(size=(20_000, 3)) @ factor.T + [1, 2, 3]
    # Gaps that depend on what is seen: of these the mean of what is there is wrong.
    rows[rows[:, 0] > 1, 1] = np.nan
    found = fitted_normal(rows)
    assert np.nanmean(rows[:, 1]) < 1.7
    np.testing.assert_allclose(found.mean, [1, 2, 3], atol=0.05)
    np.testing.assert_allclose(found.covariance, factor @ factor.T, atol=0.05)


@pytest.mark.parametrize("name", ["marginal", "hot deck", "Gaussian", "Gaussian copula"])
def test_what_is_known_comes_back_and_a_copy_of_a_column_is_found(name: str) -> None:
    dice = np.random.default_rng(3)
    a = dice.normal(size=600)
    rows = np.column_stack([a, 2 * a + 5 + 0.01 * dice.normal(size=600), a > 0]).astype(np.float64)
    rows[:5, 0] = np.nan
    whole = table([Column("a"), Column("b"), Column("c", ("no", "yes"))], rows)
    asked = rows[500:].copy()
    asked[:, 0], asked[::2, 2] = np.nan, np.nan
    drawn = PEERS[name](whole, rows[:500], 0)(asked, 7, 0)
    known = ~np.isnan(asked)
    assert np.isfinite(drawn).all()
    assert (drawn.swapaxes(1, 2)[known] == asked[known][:, None]).all()
    error = np.abs(drawn[:, :, 0].mean(1) - a[500:]).mean()
    assert error > 0.5 if name == "marginal" else error < 0.15
    right = (drawn[:, :, 2].mean(1).round() == rows[500:, 2]).mean()
    assert right > 0.9 or name == "marginal"


def test_auroc_of_a_score_without_news_is_a_half_and_of_the_truth_one() -> None:
    strange = np.arange(100) < 20
    assert auroc(np.zeros(100), strange)[0] == 0.5
    assert auroc(strange.astype(np.float64), strange)[0] == 1.0
    assert auroc(-strange.astype(np.float64), strange)[0] == 0.0
