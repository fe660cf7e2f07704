"""Posteriors by any method: which is taken, what it costs, and what it says of itself."""

import math

import pytest
import torch
from pydantic import TypeAdapter

from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.observation import Observation
from diffusion.operators import AveragePooling, Dense
from diffusion.posterior import (
    Auto,
    Matched,
    MatchedStart,
    Method,
    Product,
    Repaint,
    Twisted,
    sample_posterior,
)
from diffusion.posterior.diagnostics import Diagnostics
from diffusion.posterior.particle_filter import ParticleFilter
from diffusion.posterior.smc import SMCResult, run, weigh
from diffusion.posterior.twist import Twist
from diffusion.samplers import DDIM, Ancestral
from tests.diffusion.models import binomial, gaussian, given_noisy

ALL = torch.ones(2, 2, dtype=torch.bool)
NOISE = math.exp(-4 + 6 * 10 / 19)  # that of t = 7, of 20 steps
SHARP = torch.tensor([[0.01, 0.01], [1.0, 1.0]])
PRODUCTS = Twist(covariance="full", products=1)
HALF = torch.tensor([[True, False], [True, True]])


def test_auto_takes_the_matched_start_where_it_holds(
    mixture: GaussianMixture, heartbeat: BitPatterns
) -> None:
    model, y = gaussian(mixture), torch.zeros(2, 2)
    assert Auto().resolve(model, Observation.of_reals(y, ALL, NOISE)) == Matched()
    mine = Auto(particles=3)
    for seen in (
        Observation.of_reals(y, ALL),
        Observation.of_reals(y, HALF, NOISE),
        Observation.of_reals(y, ALL, 1.3 * NOISE),  # between two steps
        Observation.of_reals(y, ALL, 1e-3),  # below the first
        Observation.of_reals(y, ALL, 1e4),  # above the last
        Observation.of_reals(y, ALL, torch.tensor([0.3, 0.2])),
        Observation.of_linear(AveragePooling(size=1), y, (2,), 0.3),
    ):
        assert mine.resolve(model, seen) == mine.twisted
    fair = BitPatterns.from_values(torch.ones(1), torch.zeros(1, 3))
    bits, known = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    assert Auto().resolve(binomial(fair), Observation.of_bits(bits, known, 0.1)) == Matched()
    assert Auto().resolve(binomial(fair), Observation.of_bits(bits, known)) == Twisted()
    uneven = Observation.of_bits(torch.zeros(2, 20), torch.ones(2, 20, dtype=torch.bool), 0.1)
    assert Auto().resolve(binomial(heartbeat), uneven) == Twisted()
    assert Product().resolve(model, Observation.of_reals(y, ALL, 0.3)) == Product()


@pytest.mark.parametrize(
    ("method", "cost"),
    [
        (Product(), 6),
        (Repaint(jump=2, repeats=3), 18),
        (Twisted(particles=4, systems="independent", covariance="diagonal"), 4 * 11),
        (Twisted(particles=4, systems="independent", **PRODUCTS.model_dump()), 4 * 11),
    ],
)
def test_samples_and_their_cost(
    method: Product | Repaint | Twisted, cost: int, mixture: GaussianMixture
) -> None:
    """What was seen comes back by every method, and calls and products are counted."""
    model, y = gaussian(mixture), torch.tensor([[0.3, 0.0], [-1.0, 0.5]])
    seen = Observation.of_reals(y, HALF)
    found = sample_posterior(model, seen, 3, seed=1, method=method, sampler=Ancestral(steps=6))
    assert found.samples.shape == (2, 3, 2)
    assert bool((found.samples[:, :, 0] == y[:, :1]).all())
    assert bool((found.samples[1] == y[1]).all())
    assert len(found.samples[0].unique(dim=0)) == 3
    assert found.network_evaluations == 2 * 3 * cost
    assert found.method == method
    assert found.biased is not isinstance(method, Twisted)
    assert len(found.diagnostics) == 2
    again = sample_posterior(model, seen, 3, seed=1, method=method, sampler=Ancestral(steps=6))
    assert torch.equal(again.samples, found.samples)


def test_data_of_one_call_stand_alone(mixture: GaussianMixture) -> None:
    """Few numbers seen of one example, many of the other: each by its own cost."""
    model, y = gaussian(mixture), torch.tensor([[-1.0, 0.5], [0.3, 0.0]])
    known = torch.tensor([[True, True], [True, False]])
    method = Twisted(particles=3, covariance="full", products=1)
    both = sample_posterior(model, Observation.of_reals(y, known, 0.2), 2, seed=1, method=method)
    first = sample_posterior(
        model, Observation.of_reals(y[:1], known[:1], 0.2), 2, seed=1, method=method
    )
    torch.testing.assert_close(first.samples[0], both.samples[0], rtol=1e-4, atol=1e-4)
    assert first.network_evaluations * 2 == both.network_evaluations
    told, wanted = both.diagnostics[0], first.diagnostics[0]
    assert told.log_evidence == pytest.approx(wanted.log_evidence, abs=1e-3)


def test_the_matched_start_goes_through(mixture: GaussianMixture) -> None:
    model, seen = gaussian(mixture), Observation.of_reals(torch.zeros(2, 2), ALL, NOISE)
    found = sample_posterior(model, seen, 3, seed=1)
    assert found.start is not None
    assert found.network_evaluations == 6 * found.start.t
    assert not found.biased
    half = Observation.of_reals(torch.zeros(2, 2), HALF, 0.5)
    with pytest.raises(ValueError, match=r"same independent noise .* use 'twisted'"):
        sample_posterior(model, half, 3, seed=1, method=Matched())


def test_one_joint_system_gives_all_samples_of_a_datum(mixture: GaussianMixture) -> None:
    model, seen = gaussian(mixture), Observation.of_reals(torch.zeros(2, 2), HALF, 0.2)
    method = Twisted(particles=16, systems="joint")
    found = sample_posterior(model, seen, 5, seed=1, method=method, sampler=Ancestral(steps=8))
    assert found.samples.shape == (2, 5, 2)
    assert len(found.samples.flatten(0, 1).unique(dim=0)) == 10
    assert found.network_evaluations == 16 * (7 * 2 + 1) + 16 * (7 * 3 + 1)
    assert [d.systems for d in found.diagnostics] == [1, 1]
    # Of 8 steps most of it is the chain's own part, 3.4 moved / steps.
    assert all(0 < (d.log_evidence_error or 0) < 1.5 for d in found.diagnostics)
    with pytest.raises(ValueError, match="16 particles hold 16 samples at most, came 17"):
        sample_posterior(model, seen, 17, seed=1, method=method)


def test_weighted_systems_are_right_where_few_particles_alone_are_not() -> None:
    """Two modes, 93 to 7 given y, and two particles of a poor twist: systems that end in the lesser
    mode say so in Z. The share of the greater one within 4.5 standard errors, with a quarter of the
    systems counted for the weights' spread; counted alike they are beyond that."""
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).double()
    covariances = torch.diag(torch.tensor([0.05, 1.0])).double().repeat(2, 1, 1)
    mixture = GaussianMixture.from_values(torch.tensor([0.5, 0.5]), means, covariances)
    model, n = gaussian(mixture), 1500
    matrix, y = torch.tensor([[1.0, 0.3]]), torch.tensor([[0.3]])
    seen = Observation.of_linear(Dense(rows=matrix.tolist()), y, (2,), 0.3)
    exact, _ = mixture.posterior(matrix, y[0], torch.tensor([0.09]))
    wanted = float(exact.weights[1])
    error = (wanted * (1 - wanted) / (n / 4)) ** 0.5
    off = {}
    for systems in ("independent", "weighted"):
        method = Twisted(particles=2, systems=systems, covariance="independent")
        found = sample_posterior(model, seen, n, seed=2, method=method, sampler=Ancestral(steps=10))
        off[systems] = abs(float((found.samples[0, :, 0] > 0).double().mean()) - wanted)
        assert found.network_evaluations == n * 2 * 10
    assert off["weighted"] < 4.5 * error < off["independent"]


def test_weighted_systems_are_all_there_where_their_evidence_is_too_uncertain(
    mixture: GaussianMixture,
) -> None:
    """Eight systems of one particle: of example 0, seen sharply, one Z outweighs the others, each
    is drawn once; of example 1, hardly seen, some are drawn twice."""
    model = gaussian(mixture)
    each = torch.ones(2, 2, dtype=torch.bool)
    seen = Observation.of_reals(torch.tensor([[0.5, 0.2], [0.5, 0.2]]), each, SHARP)
    sampler, copies = Ancestral(steps=4), []
    for systems in ("independent", "weighted"):
        twist = Twist(covariance="diagonal")
        method = Twisted(particles=1, systems=systems, **twist.model_dump())
        copies.append(sample_posterior(model, seen, 8, seed=3, method=method, sampler=sampler))
    alone, drawn = copies
    assert [len(x.unique(dim=0)) for x in alone.samples] == [8, 8]
    ordered = [x.samples[0].sort(0).values for x in copies]
    assert torch.equal(*ordered)
    torch.testing.assert_close(alone.weights[0], torch.full((8,), 0.125).double())
    assert len(drawn.samples[1].unique(dim=0)) < 8
    assert float(alone.weights[1].std()) > 0.01


@pytest.mark.parametrize("method", [Twisted(), Repaint()])
def test_samplers_that_replace_the_kernel_are_refused(
    method: Twisted | Repaint, mixture: GaussianMixture
) -> None:
    seen = Observation.of_reals(torch.zeros(2, 2), HALF)
    with pytest.raises(ValueError, match=r"sampler 'ddim' replaces: use 'ancestral'"):
        sample_posterior(gaussian(mixture), seen, 1, seed=0, method=method, sampler=DDIM(steps=5))


def test_a_method_is_read_by_its_name() -> None:
    adapter: TypeAdapter[Method] = TypeAdapter(Method)
    read = adapter.validate_python({"name": "twisted", "particles": 4, "covariance": "diagonal"})
    assert read == Twisted(particles=4, covariance="diagonal")
    assert adapter.validate_json(Auto().model_dump_json()) == Auto()


# ---- diagnostics ----


def told(
    log_z: list[float], ancestors: int = 6, steps: int = 50, own: float = 0.0, moved: float = 0.0
) -> Diagnostics:
    """Of systems of 8 particles."""
    K = len(log_z)
    return Diagnostics.of(
        SMCResult(
            8,
            torch.zeros(K, 1, 2),
            torch.tensor(log_z).double(),
            torch.full((K,), own).double(),
            torch.full((K,), moved).double(),
            torch.full((K, steps), 5.0).double(),
            torch.full((K,), ancestors),
            torch.full((K,), 9),
        ),
        1000,
    )


def test_evidence_is_the_mean_of_the_systems() -> None:
    found = told([math.log(1.0), math.log(3.0)])
    assert found.log_evidence == pytest.approx(math.log(2.0))
    assert found.ess == (5.0,) * 50
    assert found.warning is None


def test_the_evidence_s_error_is_by_what_systems_say_of_themselves_and_by_their_spread() -> None:
    """v is their own, which counts as two systems, and the spread; u of the mean of lognormals.
    Of one system of 8 particles v is 7/5 what it is estimated at, of K 1 + 2 / (5 K)."""

    def wanted(v: float, K: int) -> float:
        sure = v * (1 + 0.4 / K)
        u = math.log1p(math.expm1(sure) / K) if sure < 500 else sure - math.log(K)
        return (u + u * u / 4) ** 0.5

    assert told([0.0], own=0.01).log_evidence_error == pytest.approx(0.014**0.5, rel=0.01)
    alike = told([0.0] * 4, own=0.01).log_evidence_error
    assert alike == pytest.approx((0.01 * 2 / 5 / 4 * 1.1) ** 0.5, rel=0.01)
    close = [math.log(1 + x) for x in (-0.1, 0.0, 0.1)]
    found = told(close, own=0.01).log_evidence_error
    assert found == pytest.approx(wanted((2 * 0.01 + 0.02) / 4, 3), rel=0.02)
    assert told([0.0], own=3.0).log_evidence_error == pytest.approx(wanted(3.0, 1))
    assert told([0.0, 40.0]).log_evidence_error == pytest.approx(wanted(800 / 3, 2))
    assert told([0.0, 80.0]).log_evidence_error == pytest.approx(wanted(3200 / 3, 2))
    lost = told([-math.inf, 0.0]).log_evidence_error
    assert lost == pytest.approx(wanted(math.log(2), 2))


def test_the_evidence_s_error_covers_the_chain_s_steps() -> None:
    assert told([0.0], steps=50, moved=10.0).log_evidence_error == pytest.approx(0.68)
    assert told([0.0], steps=500, moved=10.0).log_evidence_error == pytest.approx(0.068)


def test_nothing_is_said_of_one_system_of_one_particle() -> None:
    found = told([0.0], own=math.inf)
    assert (found.log_evidence_error, found.warning) == (None, None)
    assert told([0.0, 1.0], own=math.inf).log_evidence_error is not None


def test_what_is_poor_is_said_in_words() -> None:
    """Of one system as of several; few ancestors alone are no sign."""
    for one in (told([0.0], own=4.0), told([0.0, 4.0, -2.0], own=3.0)):
        assert one.warning is not None
        assert "nats in the evidence, so the samples may be off by half" in one.warning
        assert one.warning.endswith("raise particles to 64 or steps to 250")
    assert "steps" not in (told([0.0], own=4.0, steps=1000).warning or "steps")
    assert told([0.0, 0.1], ancestors=1).warning is None
    assert told([0.0], ancestors=1, own=1.0).warning is None
    nothing = told([-math.inf, -math.inf])
    assert nothing.log_evidence_error is None
    assert nothing.warning is not None
    assert "no probability" in nothing.warning


def test_systems_count_as_their_evidence_as_long_as_most_of_them_count() -> None:
    """Of four: weights .4 .3 .2 .1 are an effective number of 10/3; .7 .1 .1 .1 of 25/13."""
    firm, loose = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([0.7, 0.1, 0.1, 0.1])
    found = weigh(torch.stack((firm, loose, torch.zeros(4))).double().log())
    alike = torch.full((4,), 0.25).double()
    torch.testing.assert_close(found, torch.stack((firm.double(), alike, alike)))
    torch.testing.assert_close(weigh(torch.tensor([[-3.0]]).double()), torch.ones(1, 1).double())


def test_samples_of_independent_systems_weigh_as_their_evidence(mixture: GaussianMixture) -> None:
    """log of the mean Z_j, and a mean weighed by Z_j / sum Z, as the systems say one by one."""
    model, seen = gaussian(mixture), Observation.of_reals(torch.zeros(2, 2), HALF, 0.2)
    sampler = Ancestral(steps=6)
    method: Method = Twisted(particles=2, systems="independent")
    found = sample_posterior(model, seen, 3, seed=1, method=method, sampler=sampler)
    torch.testing.assert_close(found.weights.sum(1), torch.ones(2).double())
    plan, place = sampler.plan(model), torch.zeros(3, dtype=torch.long)
    alone = run(model, ParticleFilter(plan, 2), seen.rows(place), 1, torch.arange(3))
    wanted = alone.log_evidence.softmax(0)
    torch.testing.assert_close(found.weights[0], wanted, rtol=1e-3, atol=1e-4)
    assert float(wanted.std()) > 0.01
    for method in (Twisted(particles=4, systems="joint"), Product()):
        equal = sample_posterior(model, seen, 3, seed=1, method=method, sampler=sampler).weights
        torch.testing.assert_close(equal, torch.full((2, 3), 1 / 3).double())


@pytest.mark.parametrize("noise", [1e-4, 0.02, 0.3, 1.0, 1e4])
def test_noise_that_no_step_has_is_answered_by_its_own_posterior(noise: float) -> None:
    """Ten steps whose noises are a factor of 3 apart; of one Gaussian they are exact. Mean and
    standard deviation within 4 standard errors of 300 draws."""
    network = GaussianMixture.from_values(
        torch.ones(1), torch.tensor([[0.2, -0.1]]).double(), 0.8 * torch.eye(2)[None].double()
    )
    y, count = torch.tensor([[0.5, -0.2]]), 300
    y = y + noise * (noise > 10)
    seen = Observation.of_reals(y, torch.ones(1, 2, dtype=torch.bool), noise)
    found = sample_posterior(gaussian(network, 10), seen, count, seed=2)
    mean, covariance = given_noisy(network, y.double(), noise)
    x, std = found.samples[0].double(), covariance[0].diagonal().sqrt()
    # In float32 a number of size 1 has seven digits.
    assert bool(((x.mean(0) - mean[0]).abs() < 4 * std / count**0.5 + 1e-6).all())
    assert bool(((x.std(0) / std - 1).abs() < 4 / (2 * count) ** 0.5 + 2e-3).all())


def test_a_matched_start_asked_for_by_name_says_what_noise_it_has(mixture: GaussianMixture) -> None:
    """Silent within 2%, a warning between two steps, refused beyond the schedule's ends."""
    model, y = gaussian(mixture), torch.zeros(2, 2)

    def start(noise: float) -> MatchedStart:
        return Matched().start(model, Observation.of_reals(y, ALL, noise))

    assert start(NOISE).warning is None
    assert start(1.019 * NOISE).warning is None
    warned = start(1.2 * NOISE)
    assert warned.noise == pytest.approx(NOISE)
    assert "has 0.833 times the noise asked for" in (warned.warning or "")
    for beyond, size in ((0.9 * math.exp(-4), "little"), (1.1 * math.exp(6), "much")):
        with pytest.raises(ValueError, match=f"no step has so {size}: .* use 'auto'"):
            start(beyond)
