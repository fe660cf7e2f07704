"""Summaries of samples, with weights and without."""

import math

import pytest
import torch

from diffusion.posterior.diagnostics import Summary


def test_equal_weights_are_the_usual_estimates() -> None:
    x = torch.randn(2, 7, 3, 2, generator=torch.Generator().manual_seed(0))
    found = Summary.of(x, levels=(0.0, 0.5, 1.0))
    torch.testing.assert_close(found.mean, x.mean(1))
    torch.testing.assert_close(found.std, x.std(1))
    wanted = torch.stack((x.amin(1), x.median(1).values, x.amax(1)), 1)
    assert torch.equal(found.quantiles, wanted)


def test_a_weight_is_as_good_as_so_many_copies() -> None:
    """Weights 1/4 and 3/4 stand for one copy and three; the variance knows no copies' count, so
    it is 3/8 over 1 - 10/16."""
    x = torch.tensor([[[1.0], [3.0]]])
    found = Summary.of(x, torch.tensor([[0.25, 0.75]]), (0.2, 0.25, 0.3))
    assert float(found.mean) == 2.5
    assert float(found.std) == pytest.approx(math.sqrt(0.75 / (1 - 10 / 16)))
    assert found.quantiles.flatten().tolist() == [1, 1, 3]


def test_what_all_samples_share_comes_back_bit_for_bit() -> None:
    """Whatever they weigh: sevenths of .1 do not sum to .1."""
    x = torch.full((1, 7, 2), 0.1, dtype=torch.float64)
    found = Summary.of(x, torch.rand(1, 7, generator=torch.Generator().manual_seed(2)).softmax(1))
    assert bool((found.mean == 0.1).all())
    assert bool((found.std == 0).all())


def test_weighted_draws_of_one_normal_tell_another() -> None:
    """N(0, 1) weighed to N(1/2, 1): mean, deviation and quartiles within 4 standard errors."""
    x = torch.randn(1, 20_000, 1, generator=torch.Generator().manual_seed(1)).double()
    weights = (x[:, :, 0] / 2).softmax(1)
    found = Summary.of(x, weights, (0.25, 0.75))
    error = float(weights.square().sum().sqrt())
    assert abs(float(found.mean) - 0.5) < 4 * error
    assert abs(float(found.std) - 1) < 4 * error
    wanted = torch.tensor([0.5 - 0.6745, 0.5 + 0.6745]).double()
    assert float((found.quantiles.flatten() - wanted).abs().max()) < 4 * error * 0.433 / 0.318


def test_one_sample_has_no_spread_to_tell() -> None:
    found = Summary.of(torch.ones(1, 1, 2))
    assert bool(found.std.isnan().all())
    assert found.quantiles.shape == (1, 0, 2)
    with pytest.raises(ValueError, match=r"levels from 0 to 1, came \[50\]"):
        Summary.of(torch.ones(1, 1, 2), levels=(50,))
