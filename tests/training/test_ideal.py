"""The ideal kernels against what is known otherwise: oracles, full enumeration, limits."""

import math

import pytest
import torch

from diffusion.likelihood.bound import bound
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns
from diffusion.noise import Stream, counter_noise
from diffusion.process import BinomialProcess, GaussianProcess
from diffusion.schedule import GeometricSchedule, InverseTimeSchedule
from diffusion.space import DataSpace
from training.data.heartbeat import patterns
from training.data.swissroll import FIRST, LAST, SwissRoll
from training.study import ideal

ROLL = SwissRoll(0.05)


def process(T: int) -> GaussianProcess:
    return GaussianProcess(GeometricSchedule(first=1e-3, last=0.5).beta(T))


@pytest.mark.parametrize("added", [0.01, 0.3])
def test_the_posterior_is_that_of_weighted_draws(added: float) -> None:
    """Importance weights N(y; x_0, added^2) on 60,000 prior draws; 5 standard errors."""
    phi = FIRST + (LAST - FIRST) * (torch.arange(60_000, dtype=torch.float64) + 0.5) / 60_000
    noise = counter_noise(0, torch.arange(60_000), 0, Stream.DATA).normal((2,)).double()
    x_0 = ROLL.curve(phi) + ROLL.noise * noise
    y = torch.tensor([[1.5, -0.8]], dtype=torch.float64)
    if added < 0.1:
        y = ROLL.curve(torch.tensor([8.0], dtype=torch.float64)) + 0.04
    weight = (-0.5 * (x_0 - y).square().sum(1) / added**2).softmax(0)
    mean, covariance = ROLL.posterior(y, added)
    rows = 1 / float(weight.square().sum())
    found = weight @ x_0
    error = (covariance[0].diagonal() / rows).sqrt()
    assert bool(((found - mean[0]).abs() < 5 * error).all())
    off = x_0 - found
    second = torch.einsum("b,bi,bj->ij", weight, off, off)
    scale = float(covariance[0].diagonal().max())
    torch.testing.assert_close(second, covariance[0], rtol=0, atol=10 * scale / math.sqrt(rows))


def test_exact_data_have_exact_posteriors() -> None:
    """With little added, x_0 is y; with much, the roll's own mean 0 and variance."""
    y = ROLL.curve(torch.linspace(6.0, 14.0, 7, dtype=torch.float64))
    mean, covariance = ROLL.posterior(y, 1e-5)
    torch.testing.assert_close(mean, y, rtol=0, atol=1e-4)
    unit = torch.eye(2, dtype=torch.float64).expand(7, 2, 2)
    torch.testing.assert_close(covariance, 1e-10 * unit, rtol=1e-2, atol=1e-13)
    mean, covariance = ROLL.posterior(y, 1e3)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
    assert float(covariance[0].trace()) == pytest.approx(2.0, abs=1e-3)


def test_more_steps_and_a_wider_family_come_nearer_to_the_entropy() -> None:
    """K <= -H: the diagonal kernel below the full one, few steps below many."""
    entropy = ROLL.entropy(rows=512)[0]
    few, many = (ideal.swissroll(ROLL, process(T), "density", rows=60) for T in (8, 30))
    full = ideal.swissroll(ROLL, process(30), "density", full=True, rows=60)
    assert few.bound < many.bound < full.bound < -entropy + 4 * full.standard_error
    assert -entropy - full.bound < 0.2


def test_a_roll_so_wide_that_it_is_a_gaussian_costs_nothing() -> None:
    """noise = .9999: x_0 is N(0, 1) to three digits, and K = -H in the convention "density"."""
    roll = SwissRoll(0.9999)
    found = ideal.swissroll(roll, process(10), "density", rows=100)
    assert found.bound == pytest.approx(-math.log(2 * math.pi * math.e), abs=1e-3)


@pytest.mark.parametrize("convention", ["paper", "discretised"])
def test_the_heartbeat_is_what_the_oracle_reaches(convention: str) -> None:
    """BitPatterns predicts P(x_0 | x_t) exactly: its bound is the ideal, within 4 errors."""
    process = BinomialProcess(InverseTimeSchedule().beta(30), 1 / 3)
    table = patterns(6, 3).double()
    oracle = BitPatterns.from_values(torch.full((3,), 1 / 3), table, 1 / 3)
    model = DiffusionModel(process, oracle, DataSpace(kind="bits", shape=(6,)), "x_0", None)
    x_0 = patterns(6, 3).repeat(500, 1)
    found = bound(model, x_0, seed=0, convention=convention, batch=4096).bound  # type: ignore[arg-type]
    wanted = ideal.heartbeat(6, 3, process, convention)  # type: ignore[arg-type]
    error = float(found.std()) / math.sqrt(len(found))
    assert float(found.mean()) == pytest.approx(wanted.bound, abs=4 * error)
    assert error < 0.02
    assert wanted.bound < -math.log(3)


def test_every_state_is_counted_once() -> None:
    """The multiplicities of the states sum to 2^bits."""
    states = [
        (k, *rest) for k in range(3) for rest in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    ]
    assert sum(ideal.ways(state, 2) for state in states) == 2**6


def test_conventions_that_the_data_do_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="no levels"):
        ideal.swissroll(ROLL, process(5), "discretised")
    bits = BinomialProcess(InverseTimeSchedule().beta(5), 0.2)
    with pytest.raises(ValueError, match="no density"):
        ideal.heartbeat(6, 3, bits, "density")
    with pytest.raises(ValueError, match="multiple of the period 4"):
        ideal.heartbeat(6, 4, bits)
