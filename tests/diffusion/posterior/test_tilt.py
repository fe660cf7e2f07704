"""Quadratic factors against quadrature and enumeration; tilted proposals against matrices."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.distributions import Bernoulli, Normal, Tilt
from diffusion.noise import counter_noise
from diffusion.observation import Conditioned
from diffusion.posterior.proposal import Independent, join, steer
from diffusion.process import BinomialProcess, GaussianProcess, Process
from diffusion.schedule import InverseTimeSchedule, LogSnrSchedule

GRID = torch.linspace(-30, 30, 60_001, dtype=torch.float64)


def tilt(constant: float, linear: float, curvature: float) -> Tilt:
    one = torch.ones(1, 1, dtype=torch.float64)
    return Tilt(torch.tensor([constant]).double(), linear * one, curvature * one)


def normal(mean: float, var: float) -> Normal:
    return Normal(torch.tensor([[mean]]).double(), torch.tensor([[var]]).double())


@pytest.mark.parametrize("curvature", [2.0, 0.0, -0.7])
def test_a_normal_times_a_factor_by_quadrature(curvature: float) -> None:
    factor, base = tilt(0.3, -0.8, curvature), normal(0.5, 1.0)
    product, log_z, missing = base.tilted(factor)
    x = GRID[:, None]
    log_f = torch.cat([factor.log(part) for part in x.split(1)])
    log_q = base.log_prob(x)
    wanted = torch.trapezoid((log_f + log_q).exp(), GRID).log()
    assert_close(log_z[0], wanted, rtol=1e-6, atol=1e-6)
    assert_close(product.log_prob(x), log_f + log_q - log_z, rtol=1e-6, atol=1e-6)
    assert not bool(missing.any())


def test_where_there_is_no_product_what_is_missing_says_so() -> None:
    """1 + k var = -1: p f = Z p' exp(e (x - mean)^2 / 2), p' four times as wide as p."""
    factor, base = tilt(0.3, -0.8, -2.0), normal(0.5, 1.0)
    product, log_z, missing = base.tilted(factor)
    assert isinstance(product, Normal)
    assert float(product.var) == 4
    assert float(missing) == pytest.approx(1.25)
    x = torch.linspace(-5, 5, 11, dtype=torch.float64)[:, None]
    log_f = torch.cat([factor.log(part) for part in x.split(1)])
    rest = missing[0, 0] * (x[:, 0] - 0.5).square() / 2
    assert_close(product.log_prob(x) + log_z + rest, base.log_prob(x) + log_f)


def test_what_is_known_exactly_stays() -> None:
    known = Normal(torch.tensor([[0.7]]), torch.zeros(1, 1))
    product, log_z, _ = known.tilted(tilt(0.3, -0.8, 2.0))
    assert isinstance(product, Normal)
    assert torch.equal(product.mean, known.mean)
    assert float(product.var) == 0
    assert float(log_z) == pytest.approx(0.3 - 0.8 * 0.7 - 0.49)


def test_bits_times_a_factor_by_enumeration() -> None:
    factor, base = tilt(0.3, -0.8, 0.0), Bernoulli(torch.tensor([[0.4]]).double())
    product, log_z, _ = base.tilted(factor)
    x = torch.tensor([[0.0], [1.0]]).double()
    joint = torch.cat([factor.log(part) for part in x]) + base.log_prob(x)
    assert_close(log_z[0], joint.logsumexp(0))
    assert_close(product.log_prob(x), joint - log_z)


@pytest.mark.parametrize(
    "process",
    [
        GaussianProcess(LogSnrSchedule(first=8.0, last=-12.0).beta(20)),
        BinomialProcess(InverseTimeSchedule().beta(20), 0.3),
    ],
)
def test_factors_of_a_process(process: Process) -> None:
    """q(x_t | x_s) as a function of x_s, densities, and their powers."""
    t, s = torch.tensor([20, 13, 1]), torch.tensor([12, 12, 0])
    x_s, x_t = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)).round().unbind()
    likelihood = process.likelihood(x_t, t, s)
    forward = process.forward_kernel(x_s, t, s)
    assert_close(likelihood.log(x_s), forward.log_prob(x_t).double(), rtol=1e-5, atol=1e-5)
    prior = process.prior((4,), 3)
    power = torch.tensor([0.5, -1.0, 2.0]).double()
    both = likelihood.times(prior.tilt(), power)
    wanted = likelihood.log(x_s) + power * prior.log_prob(x_s).double()
    assert_close(both.log(x_s), wanted, rtol=1e-5, atol=1e-5)


def conditioned() -> tuple[Conditioned, Tensor, Tensor]:
    """Three elements given two numbers that go with them; the mean and covariance by matrices."""
    base = Normal(
        torch.tensor([[0.2, -0.4, 1.0]]).double(), torch.tensor([[0.5, 1.0, 2.0]]).double()
    )
    slope = torch.tensor([[[1.0, 0.5, 0.0], [0.0, -1.0, 0.3]]]).double()
    off, noise = torch.tensor([[0.7, -0.2]]).double(), torch.tensor([0.3, 0.6]).double()
    var = base.var[0].diag()
    total = slope[0] @ var @ slope[0].T + noise.diag()
    gain = torch.linalg.solve(total, slope[0] @ var).T
    found = Conditioned.on(base, slope, off, total[None])
    return found, base.mean[0] + gain @ off[0], var - gain @ slope[0] @ var


def test_a_conditioned_normal_tilted_as_matrices_have_it() -> None:
    """Mean moves by the covariance times the slope, and log Z is the cumulant."""
    q, mean, covariance = conditioned()
    slope = torch.tensor([[0.4, -1.0, 0.3]]).double()
    assert_close(q.mean[0], mean)
    moved, log_z, _ = q.tilted(
        Tilt(torch.zeros(len(slope)).double(), slope, torch.zeros_like(slope))
    )
    assert_close(log_z[0], slope[0] @ mean + 0.5 * slope[0] @ covariance @ slope[0])
    row = torch.arange(40_000)
    many = moved.rows(torch.zeros_like(row))
    x = many.sample(counter_noise(0, row, 1))
    wanted = mean + covariance @ slope[0]
    errors = (covariance.diagonal() / len(row)).sqrt()
    assert float(((x.mean(0) - wanted) / errors).abs().max()) < 4
    spread = torch.cov(x.T)
    assert float((spread - covariance).abs().max()) < 0.05


def test_ratios_of_tilted_proposals_are_those_of_densities() -> None:
    """log q'/p of steered ones; log q'/(p f) of joined ones."""
    kernel = Normal(torch.tensor([[0.2, -0.4]]).double(), torch.tensor([[0.5, 1.0]]).double())
    other = Normal(kernel.mean + 0.3, 0.7 * kernel.var)
    q, x = Independent(kernel, other), torch.tensor([[0.9, 0.1]]).double()
    slope = torch.tensor([[0.5, -0.2]]).double()
    steered = steer(q, slope)
    moved = Normal(other.mean + other.var * slope, other.var)
    assert_close(steered.log_ratio(x), moved.log_prob(x) - kernel.log_prob(x))
    factor = Tilt(torch.tensor([0.1]).double(), slope, torch.tensor([[1.5, -0.4]]).double())
    joined = join(steered, factor)
    wanted = joined.drawn.log_prob(x) - kernel.log_prob(x) - factor.log(x)
    assert_close(joined.log_ratio(x), wanted)
    assert joined.base is kernel
    same = joined.rows(torch.zeros(2, dtype=torch.long)).log_ratio(x.expand(2, -1))
    assert_close(same, wanted.expand(2))
    given, _, _ = conditioned()
    elsewhere = steer(given, torch.tensor([[0.4, -1.0, 0.3]]).double())
    assert math.isfinite(float(elsewhere.log_ratio(torch.zeros(1, 3).double())))
    with pytest.raises(ValueError, match="ties them together"):
        join(given, factor)
