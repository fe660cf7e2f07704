"""The bound: against exact answers and enumeration."""

import itertools
import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.likelihood.bound import (
    bound,
    evaluate,
    prior_part,
)
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.schedule import (
    CosineSchedule,
    InverseTimeSchedule,
    LinearSchedule,
    LogSnrSchedule,
    Schedule,
)
from diffusion.space import Convention
from tests.diffusion.bounds import (
    EVERY_LEVEL,
    LEVELS,
    binomial,
    drawn,
    expected,
    few_bits,
    gaussian,
    sized,
    whole_by_terms,
)


@pytest.mark.parametrize(
    "schedule",
    [LinearSchedule(first=0.01, last=0.3), CosineSchedule(), LogSnrSchedule(first=9.0, last=-3.0)],
    ids=lambda s: s.kind,
)
@pytest.mark.parametrize("T", [1, 2, 13])
def test_the_bound_is_tight_where_the_kernel_is_exact(
    T: int, schedule: Schedule, line: GaussianMixture
) -> None:
    """K = log p(x_0) - E_q(x_T | x_0) log q(x_T) / pi(x_T), at any number of steps."""
    model, x_0 = gaussian(line, T, schedule), drawn(line, 7)
    at, end = model.process.alpha_bar[T], torch.full((7,), T)
    prior = model.process.prior(model.event, 7)
    mismatch = torch.zeros(7, dtype=torch.float64)
    for sign in (1, -1):
        x_T = at.sqrt() * x_0 + sign * (1 - at).sqrt()
        log_q = line.marginal_log_prob(x_T, model.process.log_snr(end))
        mismatch += (log_q - prior.log_prob(x_T)) / 2
    K = expected(model, x_0, "density")
    assert_close(K, line.log_prob(x_0) - mismatch, rtol=1e-6, atol=1e-6)


def test_the_papers_bound_of_the_prior_itself_is_its_entropy() -> None:
    """Data from pi: every step is reversible, so K is -H on average. x_0 by quadrature, too."""
    network = sized(2, 1.0)
    x_0 = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2)), dtype=torch.float64)
    for T in (1, 2, 30):
        K = expected(gaussian(network, T), x_0, "paper").mean()
        assert float(K) == pytest.approx(-math.log(2 * math.pi * math.e), abs=1e-6)


def test_the_papers_bound_has_a_ceiling() -> None:
    """Data ever narrower: the fixed last step keeps K below -1/2 log(2 pi e beta_1) a dimension."""
    ceilings = []
    for var in (1e-2, 1e-4, 1e-8):
        network = sized(3, var)
        model = gaussian(network, 60)
        ceiling = -1.5 * math.log(2 * math.pi * math.e * float(model.process.beta[1]))
        x_0 = drawn(network, 20)
        K = expected(model, x_0, "paper")
        assert float(K.max()) <= ceiling
        ceilings.append(ceiling - float(K.mean()))
        density = expected(model, x_0, "density")
        assert_close(density, network.log_prob(x_0), rtol=0, atol=1e-3)
    assert ceilings[0] > ceilings[1] > ceilings[2]
    assert float(density.mean()) > ceiling + 10


def test_the_bound_of_a_mixture_lies_below_and_closes_in(mixture: GaussianMixture) -> None:
    """E K < E log p by more than 2 standard errors of the mean over 4,000 data, and closer by more
    than 4 as the steps grow."""
    x_0 = drawn(mixture, 4000)
    exact = mixture.log_prob(x_0)
    gaps, errors = [], []
    for T in (2, 8, 30):
        K = bound(gaussian(mixture, T), x_0, seed=0, convention="density", batch=8192).bound
        gaps.append(float((exact - K).mean()))
        errors.append(float((exact - K).std()) / 4000**0.5)
    for i in range(3):
        assert gaps[i] > 2 * errors[i]
    for i in range(2):
        assert gaps[i] - gaps[i + 1] > 4 * math.hypot(errors[i], errors[i + 1])


def test_the_heartbeats_figures(heartbeat: BitPatterns) -> None:
    """An ideal factorised kernel at T = 2000: K = -2.371 bits in the paper's convention, -2.327
    with its own last step, each known to .003 from sampling. By enumeration -2.3683 and -2.3244.

    A term depends on how many ones each phase has, and the four wrong phases are alike: 350 kinds
    of x_t stand for all 2^20. Between the steps evaluated, terms are smooth: linear interpolation
    costs less than .0005 bits.
    """
    model, kinds, ways = binomial(heartbeat, 2000), [], []
    for right in range(5):
        for wrong in itertools.combinations_with_replacement(range(5), 4):
            kinds.append((right, *wrong))
            orders = len(set(itertools.permutations(wrong)))
            ways.append(orders * math.prod(math.comb(4, ones) for ones in kinds[-1]))
    place = torch.arange(20)
    x_t = (place // 5 < torch.tensor(kinds)[:, place % 5]).double()
    x_0 = heartbeat.patterns[0].expand_as(x_t)

    def term(step: int, convention: Convention) -> float:
        t = torch.full((len(x_t),), step)
        weights = torch.tensor(ways) * model.process.marginal(x_0, t).log_prob(x_t).exp()
        assert float(weights.sum()) == pytest.approx(1)
        return float(weights @ evaluate(model, model.predict(x_t, t), x_0, x_t, t, convention))

    grid = [*range(2, 40), *range(40, 2000, 20), 2000]
    steps = float(np.interp(range(2, 2001), grid, [term(t, "paper") for t in grid]).sum())
    figures: list[tuple[Convention, float, float]] = [
        ("paper", -2.371, -2.3683),
        ("discretised", -2.327, -2.3244),
    ]
    for convention, sampled, enumerated in figures:
        K = float(prior_part(model, x_0[:1], convention)) + steps + term(1, convention)
        assert abs(K / math.log(2) - sampled) < 0.004
        assert abs(K / math.log(2) - enumerated) < 0.0005
        found = bound(model, x_0[:60].float(), seed=0, convention=convention, batch=4096)
        error = float(found.standard_error.square().sum().sqrt()) / 60
        assert error < 0.02
        assert abs(float(found.bound.mean()) - K) < 4 * error


def whole_by_enumeration(
    model: DiffusionModel, x_0: Tensor, last: Literal["own", "paper"]
) -> Tensor:
    """E_q log p(x_0..T) / q(x_1..T | x_0) over every path, from single forward steps alone."""
    D, T = model.space.dims, model.T
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=D)), dtype=torch.float64)
    S = len(states)
    left, right = states.repeat_interleave(S, 0), states.repeat(S, 1)

    def of(t: int) -> Tensor:
        return torch.full((S * S,), t)

    at = (states == x_0).all(1).double()  # q(x_{t-1} | x_0)
    total = torch.zeros((), dtype=torch.float64)
    for t in range(1, T + 1):
        log_q = model.process.forward_kernel(left, of(t)).log_prob(right).view(S, S)
        if t == 1 and last == "paper":
            log_p = model.process.forward_kernel(right, of(1)).log_prob(left).view(S, S)
        else:
            log_p = model.reverse_kernel(right, of(t), of(t - 1)).log_prob(left).view(S, S)
        joint = at[:, None] * log_q.exp()
        total = total + torch.where(joint > 0, joint * (log_p - log_q), 0.0).sum()
        at = joint.sum(0)
    prior = model.process.prior(model.event, S)
    return total + at @ prior.log_prob(states).double()


@pytest.mark.parametrize(
    "schedule", [InverseTimeSchedule(), CosineSchedule(), LinearSchedule(first=0.1, last=0.6)]
)
@pytest.mark.parametrize("base_rate", [0.5, 0.2])
def test_the_whole_bound_by_enumeration(schedule: Schedule, base_rate: float) -> None:
    """Each example, whatever the base rate and whatever signal is left at T."""
    network = few_bits(base_rate)
    model = binomial(network, 4, schedule)
    for x_0, exact in zip(network.patterns, network.log_prob(network.patterns), strict=True):
        K = whole_by_terms(model, x_0, "discretised")
        assert_close(K, whole_by_enumeration(model, x_0, "own"), rtol=1e-6, atol=1e-6)
        if schedule.kind == "inverse-time":
            assert float(exact - K) > 0


def test_the_papers_bound_by_enumeration(one_hot: BitPatterns) -> None:
    """Equation 14 holds for each example where pi is uniform, and else on average over data whose
    mean is pi's: it takes the cross entropy to pi for a constant."""
    network = few_bits(0.5)
    model = binomial(network, 4)
    for x_0 in network.patterns:
        K = whole_by_terms(model, x_0, "paper")
        assert_close(K, whole_by_enumeration(model, x_0, "paper"), rtol=1e-6, atol=1e-6)
    model = binomial(one_hot, 4)
    found = [whole_by_terms(model, x_0, "paper") for x_0 in one_hot.patterns]
    wanted = [whole_by_enumeration(model, x_0, "paper") for x_0 in one_hot.patterns]
    assert_close(torch.stack(found).mean(), torch.stack(wanted).mean(), rtol=1e-6, atol=1e-6)


def test_no_more_probability_than_one() -> None:
    """K is a bound on a log-probability: exp K sums to at most 1 over all data."""
    network = few_bits(0.3)
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)
    model = binomial(network, 30)
    K = torch.stack([whole_by_terms(model, x_0, "discretised") for x_0 in states])
    assert 0.9 < float(K.exp().sum()) < 1
    model = gaussian(sized(1, 0.04, 0.3), 20, space=LEVELS)
    K = expected(model, EVERY_LEVEL[:, None], "discretised", nodes=30)
    assert 0.9 < float(K.exp().sum()) < 1
