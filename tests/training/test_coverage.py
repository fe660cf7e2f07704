"""Stated errors cover: every estimator, on vectors, levels and bits, held against simulation."""

import math
from functools import cache

import pytest
import torch
from scipy import stats
from torch import Tensor

from diffusion.likelihood.estimator import Choice, StrataKind
from diffusion.likelihood.uncertainty import quantile
from diffusion.model import DiffusionModel
from tests.training import coverage

T = 60
# Estimates of one example differ by their noise alone; this allows 3 binomial standard errors.
SLACK = 3 * math.sqrt(0.05 * 0.95 / (coverage.EXAMPLES * coverage.REPEATED))


@cache
def known(kind: str, steps: int) -> tuple[DiffusionModel, Tensor, Tensor]:
    model, x_0 = coverage.oracle(kind, steps)
    convention = model.space.default_convention
    return model, x_0, coverage.expectation(model, x_0, convention)


@pytest.mark.parametrize("kind", coverage.KINDS)
@pytest.mark.parametrize(
    ("terms", "strata"),
    [
        (None, "even"),
        (5, "even"),
        (20, "even"),
        (40, "even"),
        (5, "importance"),
        (20, "importance"),
    ],
)
def test_intervals_hold_the_bound(kind: str, terms: int | None, strata: StrataKind) -> None:
    """19 of 20 do; those of few terms, and of few large terms of bits, somewhat more."""
    model, x_0, truth = known(kind, T)
    choice = Choice(terms=terms, strata=strata)
    found = coverage.of_terms(model, x_0, model.space.default_convention, choice, truth)
    few = terms == 5 or kind == "bits"
    assert 0.93 - SLACK < found.interval <= (1.0 if few else 0.97 + SLACK)
    if not few:
        assert 0.93 - SLACK < found.normal < 0.97 + SLACK
    assert found.stated == pytest.approx(found.error, rel=0.25)


@pytest.mark.parametrize("kind", ["vectors", "levels"])
def test_one_step_has_an_error_that_covers(kind: str) -> None:
    model, x_0, truth = known(kind, 1)
    found = coverage.of_terms(model, x_0, model.space.default_convention, Choice(), truth)
    assert 0.93 - SLACK < found.normal < 0.97 + SLACK
    assert found.stated == pytest.approx(found.error, rel=0.1)


@pytest.mark.parametrize("kind", coverage.KINDS)
@pytest.mark.parametrize(("each", "repeated"), [(2, 40), (8, 20)])
def test_intervals_of_trajectories_hold_their_bound(kind: str, each: int, repeated: int) -> None:
    """Two tell little of how they differ, and say so: one degree of freedom.

    Log-weights are skewed, which costs a few in a hundred.
    """
    model, x_0 = coverage.oracle(kind, 12)
    found = coverage.of_trajectories(model, x_0[:20], each, repeated)
    assert 0.88 < found.interval < 0.99


def test_far_out_the_profile_counts_for_less() -> None:
    """An example unlike those of the profile: the error is its own, a little on the large side, for
    its terms' trend is its own too."""
    model, _, _ = known("vectors", T)
    x_0 = torch.tensor([[4.0, 4.0, -4.0]]).double()
    truth = coverage.expectation(model, x_0, "density")
    found = coverage.of_terms(model, x_0.expand(20, 3), "density", Choice(), truth.expand(20))
    assert 0.9 * found.error < found.stated < 1.6 * found.error


def test_the_quantile_is_students() -> None:
    freedom = torch.tensor([1.0, 2.0, 3.0, 4.5, 8.0, 30.0, 1e6])
    exact = torch.from_numpy(stats.t.ppf(0.975, freedom.double().numpy()))
    assert bool(((quantile(freedom) / exact - 1).abs() < 2e-3).all())
    between = torch.linspace(1, 3, 50)
    wide = quantile(between) / torch.from_numpy(stats.t.ppf(0.975, between.double().numpy()))
    assert bool((wide > 0.998).all())
    assert bool((wide < 1.25).all())
