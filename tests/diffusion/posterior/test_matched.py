"""The matched start: where the answer is known it is that."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.distributions import Normal
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.noise import counter_noise
from diffusion.posterior.methods import matched_start
from diffusion.process import GaussianProcess
from diffusion.samplers import sample
from diffusion.schedule import InverseTimeSchedule
from diffusion.space import DataSpace
from tests.diffusion.models import binomial, gaussian, given_noisy


def fair_bits() -> BitPatterns:
    """Five bits under base rate 1/2."""
    patterns = torch.tensor([[0, 0, 1, 1, 0], [1, 0, 1, 0, 1], [1, 1, 0, 0, 0]])
    return BitPatterns.from_values(torch.tensor([0.5, 0.3, 0.2]), patterns, 0.5)


def reals(rows: int, width: int = 2) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


def test_matched_start_has_the_exact_posterior(mixture: GaussianMixture) -> None:
    """E and Cov of x_0 given y = x_0 + noise, within 5 standard errors of 1,500 chains."""
    rows, model = 1500, gaussian(mixture, 200)
    for y, noise in ((torch.tensor([[0.2, 0.1]]), 0.6), (torch.tensor([[0.9, -1.0]]), 0.25)):
        start = matched_start(model, y.expand(rows, 2), noise)
        x = sample(model, rows, seed=2, start=(start.t, start.x_t)).double()
        mean, covariance = given_noisy(mixture, y.double(), start.noise)
        assert bool(((x.mean(0) - mean[0]).abs() < 5 * (covariance[0].diag() / rows).sqrt()).all())
        off = x - mean[0]
        products = off[:, :, None] * off[:, None, :]
        error = products.std(0) / rows**0.5
        assert bool(((products.mean(0) - covariance[0]).abs() < 5 * error).all())


def test_matched_start_of_bits_has_the_exact_posterior() -> None:
    """P(pattern | y) by Bayes, y an example with flipped bits, 5 standard errors of 1,500."""
    rows, network = 1500, fair_bits()
    model = binomial(network, 100)
    y = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0]])
    start = matched_start(model, y.expand(rows, 5), 0.2)
    assert start.t == 40
    assert start.noise == pytest.approx(0.2)
    x = sample(model, rows, seed=2, start=(start.t, start.x_t)).double()
    flips = (network.patterns != y).sum(1)
    joint = network.weights * 0.2**flips * 0.8 ** (5 - flips)
    wanted = joint / joint.sum()
    counts = (x[:, None] == network.patterns).all(2).double().mean(0)
    assert bool(((counts - wanted).abs() < 5 * (wanted * (1 - wanted) / rows).sqrt()).all())


@pytest.mark.parametrize("noise", [1e-3, 0.1, 1.0, 30.0])
def test_matched_start_takes_the_nearest_step(noise: float, mixture: GaussianMixture) -> None:
    model, y = gaussian(mixture, 100), reals(3)
    start = matched_start(model, y, noise)
    t = torch.arange(1, 101)
    noises = (-model.process.log_snr(t) / 2).exp()
    distance = (noises.log() - math.log(noise)).abs()
    assert start.t == int(distance.argmin()) + 1
    assert start.noise == pytest.approx(float(noises[start.t - 1]))
    assert_close(start.x_t, float(model.process.alpha_bar[start.t].sqrt()) * y)


def test_matched_start_is_a_draw_from_the_marginal(line: GaussianMixture) -> None:
    """y = x_0 + noise n becomes sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) n, to rounding."""
    model = gaussian(line, 50)
    row = torch.arange(5)
    x_0, n = line.sample(counter_noise(0, row, 0)).double(), reals(5, 3).double()
    noise = matched_start(model, x_0, 0.7).noise
    start = matched_start(model, x_0 + noise * n, noise)
    marginal = model.process.marginal(x_0, torch.full((5,), start.t))
    assert isinstance(marginal, Normal)
    assert_close(start.x_t, marginal.mean + marginal.var.sqrt() * n)


def test_a_schedule_that_ends_without_signal_has_a_start_too(mixture: GaussianMixture) -> None:
    process = GaussianProcess(InverseTimeSchedule().beta(50))
    space = DataSpace(kind="vector", shape=(2,))
    model = DiffusionModel(process, mixture, space, "x_0", "moment")
    start = matched_start(model, reals(3), 1e4)
    assert start.t == 49
    assert bool(torch.isfinite(start.x_t).all())
    assert start.noise == pytest.approx(7.0)


def test_uneven_flips_have_no_matched_start(heartbeat: BitPatterns) -> None:
    with pytest.raises(
        ValueError, match=r"base rate 1/2, this process has 0\.2 .*use method 'product'"
    ):
        matched_start(binomial(heartbeat), torch.zeros(1, 20), 0.1)


@pytest.mark.parametrize("noise", [0.0, -0.5, math.nan])
def test_a_matched_start_needs_noise(noise: float, mixture: GaussianMixture) -> None:
    with pytest.raises(ValueError, match="above 0"):
        matched_start(gaussian(mixture), reals(1), noise)


@pytest.mark.parametrize(("noise", "says"), [(0.0, "above 0"), (0.5, "1/2"), (0.7, "1/2")])
def test_a_matched_start_of_bits_needs_flips_below_one_half(noise: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        matched_start(binomial(fair_bits()), torch.zeros(1, 5), noise)
