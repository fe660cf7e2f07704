"""Entropies of reverse steps lie between their bounds, as far as they are known exactly."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.likelihood.entropy import excess_entropy, step_bounds
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.noise import counter_noise
from diffusion.schedule import (
    CosineSchedule,
    InverseTimeSchedule,
    LinearSchedule,
    LogSnrSchedule,
    Schedule,
)
from tests.diffusion.bounds import binomial, drawn, few_bits, gaussian, sized

T = 12
SCHEDULES: list[Schedule] = [
    LinearSchedule(first=0.01, last=0.4),
    CosineSchedule(),
    InverseTimeSchedule(),
    LogSnrSchedule(first=6.0, last=-4.0),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
EVERY_T = torch.arange(1, T + 1)


@every_schedule
@pytest.mark.parametrize(("var", "mean"), [(1.0, 0.0), (0.04, 0.3), (0.5, -1.2), (9.0, 0.0)])
def test_a_gaussians_entropies_lie_between_the_bounds(
    schedule: Schedule, var: float, mean: float
) -> None:
    """H_q(x_{t-1} | x_t) = 1/2 log(2 pi e V_{t-1} beta_t / V_t) an element; the kernel has it."""
    model = gaussian(sized(2, var, mean), T, schedule)
    at, beta = model.process.alpha_bar, model.process.beta
    variance = at * var + 1 - at
    exact = 0.5 * (2 * math.pi * math.e * variance[:-1] * beta[1:] / variance[1:]).log()
    lower, upper = step_bounds(model.process, var + mean**2, EVERY_T)
    assert lower[0] == -torch.inf
    assert bool((lower <= exact + 1e-12).all())
    assert bool((exact <= upper + 1e-12).all())
    x_0, t = drawn(sized(2, var, mean), T - 1), EVERY_T[1:]
    excess = excess_entropy(model, x_0, t, counter_noise(0, t, 0))
    assert_close(lower[1:] + excess, exact[1:], rtol=0, atol=1e-6)
    if (var, mean) == (1.0, 0.0):
        forward = 0.5 * (2 * math.pi * math.e * beta[1:]).log()
        assert_close(upper, forward)
        assert_close(exact, forward)
    if var > 1:  # the paper's upper bound is none here, which is why ours has two more terms
        assert bool((exact > 0.5 * (2 * math.pi * math.e * beta[1:]).log() + 1e-3).any())


@every_schedule
def test_a_gaussians_lower_bound_is_its_posteriors_entropy(schedule: Schedule) -> None:
    process = gaussian(sized(1, 1.0), T, schedule).process
    x, t = torch.zeros(T - 1, 1, dtype=torch.float64), EVERY_T[1:]
    lower, _ = step_bounds(process, 0.7, t)
    assert_close(lower, process.posterior(x, x, t, t - 1).entropy())


def test_a_mixtures_entropies_by_quadrature() -> None:
    """H_q(x_{t-1} | x_t) = H_q(x_t | x_{t-1}) + H(x_{t-1}) - H(x_t), and the moment-matched kernel
    has no less, for no density of its variance has more."""
    network = GaussianMixture.from_values(
        torch.tensor([0.4, 0.6]),
        torch.tensor([[-1.3], [0.9]], dtype=torch.float64),
        torch.tensor([[[0.04]], [[0.1]]], dtype=torch.float64),
    )
    model = gaussian(network, T, LogSnrSchedule(first=4.0, last=-4.0))
    grid = torch.linspace(-7, 7, 2801, dtype=torch.float64)
    width = 14 / 2800
    p = torch.stack(
        [
            network.marginal_log_prob(grid[:, None], model.process.log_snr(grid.long() * 0 + t))
            for t in range(T + 1)
        ]
    ).exp()
    assert_close(width * p.sum(1), torch.ones(T + 1, dtype=torch.float64))
    H = -width * torch.special.xlogy(p, p).sum(1)
    exact = 0.5 * (2 * math.pi * math.e * model.process.beta[1:]).log() + H[:-1] - H[1:]
    lower, upper = step_bounds(model.process, float(width * p[0] @ grid.square()), EVERY_T)
    own = torch.empty_like(exact)
    for t in range(1, T + 1):
        at = torch.full((len(grid),), t)
        own[t - 1] = width * p[t] @ model.reverse_kernel(grid[:, None], at, at - 1).entropy()
    assert bool((lower < exact).all())
    assert bool((exact <= own + 1e-9).all())
    assert bool((own < upper).all())


def by_enumeration(model: DiffusionModel, network: BitPatterns) -> tuple[Tensor, Tensor]:
    """H_q(x_{t-1} | x_t) and E H of the model's kernel, nats an element, for t = 1..T."""
    D = model.space.dims
    bits = itertools.product((0.0, 1.0), repeat=D)
    states = torch.tensor(list(bits), dtype=torch.float64)
    n = len(states)
    exact, own = [], []
    before = network.log_prob(states).exp()
    for step in range(1, model.T + 1):
        t = torch.full((n,), step)
        p = network.marginal_log_prob(states, model.process.log_snr(t)).exp()
        forward = before @ model.process.forward_kernel(states, t).entropy()
        mutual = torch.special.xlogy(p, p).sum() - torch.special.xlogy(before, before).sum()
        exact.append((forward + mutual) / D)
        own.append(p @ model.reverse_kernel(states, t, t - 1).entropy() / D)
        before = p
    return torch.stack(exact), torch.stack(own)


@every_schedule
@pytest.mark.parametrize("base_rate", [0.5, 0.2, 0.9])
def test_entropies_of_bits_by_enumeration(schedule: Schedule, base_rate: float) -> None:
    """Whatever the data's share of ones; the factorised kernel has no less, for it leaves out what
    the bits tell of each other."""
    network = few_bits(base_rate)
    model = binomial(network, T, schedule)
    exact, own = by_enumeration(model, network)
    lower, upper = step_bounds(model.process, float(network.mean().mean()), EVERY_T)
    assert float(lower[0]) == pytest.approx(0, abs=1e-12)
    assert bool((lower <= exact + 1e-12).all())
    assert bool((exact <= own + 1e-6).all())
    assert bool((own <= upper + 1e-6).all())
    states = network.patterns
    posterior = torch.zeros(T - 1, dtype=torch.float64)
    for x_0, weight in zip(states, network.weights, strict=True):
        for x_t in itertools.product((0.0, 1.0), repeat=3):
            t = EVERY_T[1:]
            start = x_0.expand(T - 1, 3)
            end = torch.tensor(x_t, dtype=torch.float64).expand(T - 1, 3)
            p = weight * model.process.marginal(start, t).log_prob(end).exp()
            posterior += p * model.process.posterior(start, end, t, t - 1).entropy() / 3
    assert_close(lower[1:], posterior)


def test_draws_tell_the_kernels_entropy() -> None:
    """2,000 of them, within 4 standard errors of enumeration; alone as in a batch."""
    network, rows = few_bits(0.3), torch.arange(2000)
    model = binomial(network, T)
    _, own = by_enumeration(model, network)
    lower, _ = step_bounds(model.process, float(network.mean().mean()), EVERY_T)
    x_0 = network.sample(counter_noise(0, rows, 0))
    for step in (2, 6, T):
        t, noise = torch.full_like(rows, step), counter_noise(1, rows, step)
        excess = excess_entropy(model, x_0, t, noise)
        error = 4 * float(excess.std()) / 2000**0.5 + 1e-6
        assert abs(float(lower[step - 1] + excess.mean() - own[step - 1])) < error
        alone = excess_entropy(model, x_0[5:6], t[5:6], counter_noise(1, rows[5:6], step))
        assert_close(alone, excess[5:6], rtol=1e-5, atol=1e-6)
