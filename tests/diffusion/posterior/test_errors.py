"""Stated errors hold as often as they say, and warnings come with bad answers alone: simulated."""

import math
from dataclasses import replace

import pytest
import torch

from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.observation import Observation
from diffusion.operators import Dense
from diffusion.posterior import Diagnostics
from diffusion.posterior.particle_filter import ParticleFilter
from diffusion.posterior.smc import SMCResult, jackknife, log_mean, run, spread
from diffusion.posterior.twist import Twist
from diffusion.samplers import Ancestral
from tests.diffusion.models import binomial, gaussian


def systems(
    model: DiffusionModel, seen: Observation, count: int, particles: int = 8, **more: Twist
) -> SMCResult:
    """At all the model's steps."""
    kernel = ParticleFilter(Ancestral().plan(model), particles, **more)
    return run(model, kernel, seen.rows(torch.zeros(count).long()), 6, torch.arange(count))


def told(result: SMCResult, each: int) -> list[Diagnostics]:
    """What answers of so many systems say."""
    count = len(result.log_evidence) // each
    return [
        Diagnostics.of(result.rows(slice(k * each, (k + 1) * each)), 1000) for k in range(count)
    ]


def held(answers: list[Diagnostics], log_evidence: float) -> float:
    """How often log p(y) is within 1.96 stated errors."""
    off = [
        abs((one.log_evidence or math.nan) - log_evidence) / (one.log_evidence_error or math.nan)
        for one in answers
    ]
    return float((torch.tensor(off) < 1.96).double().mean())


def least(count: int) -> float:
    """How often at least so many answers hold, at .95 each: 4.5 standard errors below."""
    return 0.95 - 4.5 * (0.95 * 0.05 / count) ** 0.5


def of_chain(result: SMCResult) -> tuple[SMCResult, float]:
    """The same without the error of the chain's steps, and log p(y) of the chain as it is."""
    still = replace(result, moved=torch.zeros_like(result.moved))
    return still, float(log_mean(result.log_evidence[None]))


def line_through(
    mixture: GaussianMixture, y: float, std: float
) -> tuple[Observation, GaussianMixture, float]:
    """x_0 + x_1 / 2 seen through noise; the exact posterior and log p(y)."""
    D = mixture.config.features
    row = (1.0, 0.5) + (0.0,) * (D - 2)
    matrix = torch.tensor([row])
    seen = Observation.of_linear(Dense(rows=(row,)), torch.tensor([[y]]), (D,), std)
    return seen, *mixture.posterior(matrix, torch.tensor([y]), torch.tensor([std**2]))


# ---- one system ----


def test_ancestors_tell_the_variance_of_z_by_their_formula() -> None:
    """Four particles of two ancestors, weights .4 .1 .3 .2: V = 1 - 4/3 (1 - .25 - .25)."""
    log_w = torch.tensor([[0.4, 0.1, 0.3, 0.2]]).double().log()
    origin = torch.tensor([[0, 0, 3, 3]])
    apart = torch.tensor([0.7]).double()
    V = 1 - 4 / 3 * 0.5
    assert spread(log_w, origin, apart).item() == pytest.approx(-math.log1p(-V))
    own = torch.arange(4)[None]  # none resampled: s^2 / P of weights whose mean is 1
    s2 = float((4 * log_w.exp()).var())
    assert spread(log_w, own, apart).item() == pytest.approx(-math.log1p(-s2 / 4))
    assert spread(log_w, torch.ones_like(origin), apart).item() == 1.0
    assert spread(log_w, torch.ones_like(origin), 3 * apart).item() == pytest.approx(2.1)
    assert spread(log_w[:, :1], origin[:, :1], apart).item() == math.inf


def test_leaving_out_one_weight_at_a_time_tells_the_variance_of_a_log_mean() -> None:
    """Of 16 lognormal weights, 4,000 times: the mean of estimates within a tenth of the truth."""
    generator = torch.Generator().manual_seed(2)
    log_w = 0.5 * torch.randn(4000, 16, generator=generator, dtype=torch.float64)
    true = float(log_w.logsumexp(1).var())
    assert float(jackknife(log_w).mean()) == pytest.approx(true, rel=0.1)
    equal = torch.zeros(1, 4).double()
    assert jackknife(equal).item() == 0
    assert jackknife(equal[:, :1]).item() == 0


@pytest.mark.parametrize("twist", [Twist(), Twist(covariance="independent")])
def test_a_single_system_states_its_own_error(twist: Twist, mixture: GaussianMixture) -> None:
    """Of 8 particles and of 32: within 4.5 standard errors of .95, or more often."""
    seen = line_through(mixture, 0.3, 0.1)[0]
    for count, particles in ((160, 8), (40, 32)):
        found = systems(gaussian(mixture, 20), seen, count, particles, twist=twist)
        result, log_evidence = of_chain(found)
        assert held(told(result, 1), log_evidence) > least(count)


def test_the_error_of_bits_holds(heartbeat: BitPatterns) -> None:
    known = (torch.arange(20) < 4)[None]
    seen = Observation.of_bits(heartbeat.patterns[4:5].float(), known)
    result, log_evidence = of_chain(systems(binomial(heartbeat, 40), seen, 120))
    assert log_evidence == pytest.approx(math.log(0.2), abs=0.1)
    for each in (1, 4):
        assert held(told(result, each), log_evidence) > least(120 // each)


# ---- several ----


@pytest.mark.parametrize("each", [2, 8])
def test_several_systems_state_their_error(each: int, mixture: GaussianMixture) -> None:
    """Within 4.5 standard errors of .95 or more often, and not by saying far too much."""
    seen = line_through(mixture, 0.3, 0.1)[0]
    result, log_evidence = of_chain(systems(gaussian(mixture, 20), seen, 480))
    answers = told(result, each)
    assert held(answers, log_evidence) > least(len(answers))
    off = torch.tensor([(one.log_evidence or math.nan) - log_evidence for one in answers])
    stated = torch.tensor([one.log_evidence_error or math.nan for one in answers])
    assert float(stated.median()) < 2.5 * float(off.square().mean().sqrt())


@pytest.mark.parametrize(("features", "correlation"), [(2, 0.9), (8, 0.98)])
def test_the_stated_error_covers_the_chain_s_steps_far_out(
    features: int, correlation: float
) -> None:
    """One Gaussian whose elements go together, 8 deviations out: a chain whose steps do not know
    that is off by more than so many systems differ."""
    place = torch.arange(features)
    covariance = correlation ** (place[:, None] - place).abs().double()[None]
    zero = torch.zeros(1, features).double()
    network = GaussianMixture.from_values(torch.ones(1), zero, covariance)
    y = 8 * float(covariance[0, 0, 0] + covariance[0, 0, 1] + covariance[0, 1, 1] / 4) ** 0.5
    seen, _, log_evidence = line_through(network, y, 0.1)
    result = systems(gaussian(network, 60), seen, 64)
    (answer,) = told(result, 64)
    assert held([answer], log_evidence) == 1
    apart = float(result.log_evidence.std()) / 8
    assert abs((answer.log_evidence or 0.0) - log_evidence) > 1.96 * apart


# ---- warnings ----


def test_a_warning_comes_with_bad_answers_and_not_with_good_ones() -> None:
    """Three narrow modes and one sample of 8 particles, 100 times: far out between them its mean is
    off by half a deviation and more, and nine in ten warn; as they expect it, neither."""
    means = torch.tensor([[-1.0, 1.0], [0.0, 0.0], [1.0, -1.0]]).double()
    covariances = torch.diag(torch.tensor([0.04, 0.3])).double().repeat(3, 1, 1)
    network = GaussianMixture.from_values(torch.tensor([0.3, 0.3, 0.4]), means, covariances)
    for y, std, bad in ((8.0, 0.5, True), (0.4, 0.5, False)):
        seen, exact, _ = line_through(network, y, std)
        result = systems(gaussian(network, 25), seen, 100)
        apart = result.samples[:, 0].double().mean(0) - exact.mean()
        off = float((apart / exact.covariance().diagonal().sqrt()).abs().max())
        warned = sum(one.warning is not None for one in told(result, 1)) / 100
        assert (off > 0.5, warned > 0.9, warned < 0.1) == (bad, bad, not bad)
