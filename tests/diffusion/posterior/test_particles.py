"""Particles: resampling and evidence without bias, the exact posterior, systems apart."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.distributions import Normal
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from diffusion.operators import Dense
from diffusion.posterior.factors import Factor
from diffusion.posterior.particle_filter import ParticleFilter
from diffusion.posterior.proposal import Independent, TwistValue
from diffusion.posterior.smc import Particles, SMCResult, drawn, ess, log_mean, run, systematic
from diffusion.posterior.twist import Told, Twist, evaluate_twist
from diffusion.samplers import Ancestral, sample
from tests.diffusion.models import binomial, gaussian

TWISTS = [
    Twist(),
    Twist(covariance="full", products=1),
    Twist(covariance="diagonal"),
    Twist(covariance="independent"),
    Told(),
]


def cloud(
    model: DiffusionModel,
    observation: Observation,
    systems: int,
    particles: int,
    steps: int,
    factors: Sequence[Factor] = (),
    twist_function: Callable[[Tensor, Tensor, Tensor, Observation], TwistValue] | None = None,
    **more: object,
) -> SMCResult:
    """With `twist_function` another twist in the place of the library's, for s above 0."""
    kernel = ParticleFilter(Ancestral(steps=steps).plan(model), particles, **more)  # type: ignore[arg-type]
    seen = observation.rows(torch.zeros(systems, dtype=torch.long))
    with pytest.MonkeyPatch.context() as patch:
        if twist_function is not None:
            other = twist_function
            patch.setattr(Twist, "evaluate", lambda _self, _model, *parts: other(*parts))
        return run(model, kernel, seen, 4, torch.arange(systems), factors)


def check_evidence(found: SMCResult, log_evidence: float) -> None:
    """The mean of the estimates is p(y), within 4.5 standard errors, and their spread is not 0."""
    ratio = (found.log_evidence - log_evidence).exp()
    error = float(ratio.std()) / len(ratio) ** 0.5
    assert 0 < error < 0.2
    assert abs(float(ratio.mean()) - 1) < 4.5 * error


# ---- resampling ----


def test_offspring_are_in_proportion_to_weights() -> None:
    """Averaged over u exactly, and each time no further from it than the next whole number."""
    w = torch.tensor([0.05, 0.4, 0.0, 0.31, 0.24]).double()
    u = (torch.arange(2000).double() + 0.5) / 2000
    places = systematic(w.log().expand(len(u), 5), u, 7)
    counts = torch.nn.functional.one_hot(places, 5).sum(1).double()
    assert_close(counts.mean(0), 7 * w, rtol=0, atol=1e-3)
    assert bool(((counts - 7 * w).abs() < 1).all())
    assert bool((places.diff(dim=1) >= 0).all())


def test_equal_weights_stay_where_they_are() -> None:
    for u in (0.01, 0.5, 0.99):
        place = systematic(torch.full((1, 6), -3.0).double(), torch.tensor([u]).double(), 6)
        assert place.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_each_draw_by_itself_is_in_proportion_to_weights() -> None:
    """Averaged over u exactly, whichever draw it is; and all together they are even."""
    w = torch.tensor([0.3, 0.0, 0.4, 0.1, 0.2]).double()
    u = (torch.arange(3000).double() + 0.5) / 3000
    for count in (1, 3):
        places = drawn(w.log().expand(len(u), 5), u, count)
        each = torch.nn.functional.one_hot(places, 5).double()
        assert_close(each.mean(0), w.expand(count, 5), rtol=0, atol=1e-3)
        assert bool(((each.sum(1) - count * w).abs() < 1).all())


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("w", [[0.3, 0.7], [0.5, 0.4, 0.1], [0.05, 0.3, 0.25, 0.4]])
def test_a_system_s_samples_are_drawn_by_its_weights(
    w: list[float], draws: int, line: GaussianMixture
) -> None:
    """At the last step of 4,000 systems, each sample's share within 4.5 standard errors."""
    model, S, P = gaussian(line), 4000, len(w)
    nothing = Observation.of_reals(Y, torch.zeros_like(KNOWN)).rows(torch.zeros(S).long())
    x = torch.arange(P).float().repeat(S)[:, None].expand(S * P, 3)  # which particle it is
    begun = Particles.begun(x, nothing, 9, torch.arange(S))
    weighed = replace(begun, log_w=torch.tensor(w).double().log().expand(S, P))
    kernel = ParticleFilter(Ancestral().plan(model), P, draws)
    found = kernel.step(model, weighed, len(kernel) - 1).x_0[:, :, 0].double()
    of = model.predict(x[:P], torch.ones(P).long()).x_0[:, 0].double()
    share = (found[..., None] - of).abs().lt(1e-4).double().mean(0)
    for one in share:
        for got, wanted in zip(one.tolist(), w, strict=True):
            assert abs(got - wanted) < 4.5 * (wanted * (1 - wanted) / S) ** 0.5


def test_effective_sizes_and_means() -> None:
    log_w = torch.tensor([[0.0, 0, 0, 0], [5, -math.inf, -math.inf, -math.inf]]).double()
    assert ess(log_w).tolist() == [4, 1]
    assert_close(log_mean(log_w), torch.tensor([0, 5 - math.log(4)]).double())


def test_where_nothing_weighs_anything_all_weigh_the_same() -> None:
    none = torch.full((1, 4), -math.inf).double()
    assert ess(none).tolist() == [4]
    assert systematic(none, torch.tensor([0.5]).double(), 4).tolist() == [[0, 1, 2, 3]]
    assert log_mean(none).tolist() == [-math.inf]


# ---- the evidence has no bias ----

Y = torch.tensor([[1.1, -0.7, 0.0]])
KNOWN = torch.tensor([[True, True, False]])


@pytest.mark.parametrize("std", [0.0, 0.3])
@pytest.mark.parametrize("twist", TWISTS)
def test_the_evidence_of_reals_has_no_bias(twist: Twist, std: float, line: GaussianMixture) -> None:
    """On a model whose kernel is exact at any number of steps, by whatever twist."""
    seen = Observation.of_reals(Y, KNOWN, std)
    exact = line.posterior(torch.eye(3)[:2], Y[0, :2], torch.full((2,), max(std, 1e-4) ** 2))[1]
    check_evidence(cloud(gaussian(line), seen, 600, 4, 5, twist=twist), exact)


def test_the_evidence_has_no_bias_even_by_a_bad_twist(line: GaussianMixture) -> None:
    """r_t = 1, or one that draws away from what was seen: more spread, the same mean."""
    model, seen = gaussian(line), Observation.of_reals(Y, KNOWN, 0.5)
    exact = line.posterior(torch.eye(3)[:2], Y[0, :2], torch.full((2,), 0.25))[1]

    def blind(x: Tensor, t: Tensor, s: Tensor, _: Observation) -> TwistValue:
        kernel = model.predict(x, t).kernel(s)
        return TwistValue(torch.zeros(len(x)).double(), Independent(kernel, kernel), x)

    def wrong(x: Tensor, t: Tensor, s: Tensor, _: Observation) -> TwistValue:
        kernel = model.predict(x, t).kernel(s)
        away = type(kernel)(kernel.mean + 0.1, 1.2 * kernel.var)  # type: ignore[attr-defined, call-arg]
        return TwistValue(-0.3 * x.double().sum(1), Independent(kernel, away), x)

    spreads = []
    for twist in (blind, wrong, None):
        found = cloud(model, seen, 1500, 8, 5, twist_function=twist)
        check_evidence(found, exact)
        spreads.append(float(found.log_evidence.std()))
    assert spreads[2] < 0.5 * min(spreads[:2])


@pytest.mark.parametrize("far", [math.nan, math.inf, 1e7])
def test_a_particle_that_is_lost_counts_for_nothing(line: GaussianMixture, far: float) -> None:
    """One of four sent out of reach at the first step, whatever its state: 3/4 of the evidence."""
    model, seen = gaussian(line), Observation.of_reals(Y, KNOWN, 0.5)
    exact = line.posterior(torch.eye(3)[:2], Y[0, :2], torch.full((2,), 0.25))[1]

    def losing(x: Tensor, t: Tensor, s: Tensor, here: Observation) -> TwistValue:
        found = evaluate_twist(model, x, t, s, here, Twist(covariance="diagonal"))
        assert isinstance(found.proposal, Independent)
        kernel, to = found.proposal.base, found.proposal.drawn
        lost = (torch.arange(len(x)) % 4 == 0) & (t == model.T)
        assert isinstance(to, Normal)
        sent = Normal(torch.where(lost[:, None], far, to.mean), to.var)
        return replace(found, proposal=Independent(kernel, sent))

    found = cloud(model, seen, 1500, 4, 5, twist_function=losing)
    assert bool(found.samples.isfinite().all())
    check_evidence(found, exact + math.log(3 / 4))


def test_the_paper_s_kernel_with_weights_has_no_bias_either(line: GaussianMixture) -> None:
    """r_t = r for every t: w = Z~_t / r_t."""
    model, seen = gaussian(line), Observation.of_reals(Y, KNOWN, 0.5)
    exact = line.posterior(torch.eye(3)[:2], Y[0, :2], torch.full((2,), 0.25))[1]

    def constant(x: Tensor, t: Tensor, s: Tensor, here: Observation) -> TwistValue:
        kernel = model.predict(x, t).kernel(s)
        product, _ = here.multiply(kernel)
        off = (x - Y)[:, :2].double() / 0.5
        log_r = -0.5 * (off.square() + math.log(2 * math.pi * 0.25)).sum(1)
        return TwistValue(log_r, Independent(kernel, product), x)  # type: ignore[arg-type]

    check_evidence(cloud(model, seen, 1500, 8, 5, twist_function=constant), exact)


def independent_bits() -> BitPatterns:
    """Three bits apart from each other, whose kernel is exact at any number of steps."""
    patterns = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    p = torch.tensor([0.7, 0.2, 0.4]).double()
    weights = torch.where(patterns > 0, p, 1 - p).prod(1)
    return BitPatterns.from_values(weights, patterns, 0.4)


@pytest.mark.parametrize("flips", [0.0, 0.1])
def test_the_evidence_of_bits_has_no_bias(flips: float) -> None:
    seen = Observation.of_bits(torch.tensor([[0.0, 1.0, 0.0]]), KNOWN, flips)
    exact = math.log(0.3 * (1 - flips) + 0.7 * flips) + math.log(0.2 * (1 - flips) + 0.8 * flips)
    model = binomial(independent_bits())
    found = cloud(model, seen, 1500, 4, 5)
    # The twist is exact here, so there is nothing to average: every estimate is p(y).
    assert_close(found.log_evidence, torch.full((1500,), exact).double(), rtol=1e-4, atol=1e-4)

    def blind(x: Tensor, t: Tensor, s: Tensor, _: Observation) -> TwistValue:
        kernel = model.predict(x, t).kernel(s)
        return TwistValue(torch.zeros(len(x)).double(), Independent(kernel, kernel), x)

    check_evidence(cloud(model, seen, 1500, 4, 5, twist_function=blind), exact)


# ---- the posterior ----


def test_a_mixture_seen_through_a_line_has_the_exact_posterior(mixture: GaussianMixture) -> None:
    """Mean, and the share of each component: within 4 standard errors of 200 systems, where the
    paper's product is beyond 5; and p(y) within 4.5 of its own."""
    matrix, y = torch.tensor([[1.0, 0.5]]), torch.tensor([[0.3]])
    seen = Observation.of_linear(Dense(rows=matrix.tolist()), y, (2,), 0.1)
    exact, log_evidence = mixture.posterior(matrix, y[0], torch.tensor([0.01]))
    model, systems = gaussian(mixture, 60), 200
    found = cloud(model, seen, systems, 8, 60)
    check_evidence(found, log_evidence)
    draws = exact.sample(counter_noise(1, torch.arange(20_000), 0))
    share = float((draws[:, 0] > draws[:, 1]).double().mean())
    product = sample(
        model, systems, seed=4, observation=seen.rows(torch.zeros(systems, dtype=torch.long))
    )

    def far(x: Tensor) -> float:
        """Standard errors away, the worst of the three."""
        means = (x.double().mean(0) - exact.mean()).abs()
        errors = exact.covariance().diagonal().sqrt() / systems**0.5
        shares = abs(float((x[:, 0] > x[:, 1]).double().mean()) - share)
        return max(float((means / errors).max()), shares * (systems / share / (1 - share)) ** 0.5)

    assert far(found.samples[:, 0]) < 4
    assert far(product) > 5


def test_half_a_heartbeat_tells_the_other_half(heartbeat: BitPatterns) -> None:
    """The first four bits say which of the five it is; what was seen comes back bit for bit, and
    p(y) = 1/5 within 4.5 standard errors."""
    model, pattern = binomial(heartbeat, 100), heartbeat.patterns[4:5].float()
    known = (torch.arange(20) < 4)[None]
    found = cloud(model, Observation.of_bits(pattern, known), 60, 8, 100)
    assert torch.equal(found.samples[:, 0, :4], pattern[:, :4].expand(60, 4))
    assert float((found.samples[:, 0] == pattern).all(1).double().mean()) >= 0.95
    check_evidence(found, math.log(0.2))


@pytest.mark.parametrize("twist", TWISTS)
def test_what_was_seen_exactly_comes_back_bit_for_bit(
    twist: Twist, mixture: GaussianMixture
) -> None:
    y, known = torch.tensor([[0.123456, 9.0]]), torch.tensor([[True, False]])
    found = cloud(gaussian(mixture), Observation.of_reals(y, known), 9, 4, 12, draws=4, twist=twist)
    assert bool((found.samples[:, :, 0] == y[0, 0]).all())
    assert bool(found.samples.isfinite().all())
    assert bool((found.samples[:, :, 1] != 9.0).all())


# ---- systems ----


def test_a_system_is_the_same_alone_and_in_any_company(mixture: GaussianMixture) -> None:
    model, plan = gaussian(mixture), Ancestral(steps=12).plan(gaussian(mixture))
    y = torch.tensor([[0.5, 0.0], [-1.0, 0.0], [0.0, 1.5]])
    known = torch.tensor([[True, False], [True, False], [True, True]])
    seen = Observation.of_reals(y, known, 0.2)

    def of(place: list[int]) -> SMCResult:
        index = torch.tensor(place)
        return run(model, ParticleFilter(plan, 5, draws=2), seen.rows(index), 5, index)

    whole = of([0, 1, 2])
    assert bool((whole.ess < 2.5).any())  # so that some do resample
    for place in ([0], [1], [2], [2, 0]):
        part, same = of(place), whole.rows(torch.tensor(place))
        assert_close(part.samples, same.samples, rtol=1e-4, atol=1e-4)
        assert_close(part.log_evidence, same.log_evidence, rtol=1e-4, atol=1e-4)
        assert torch.equal(part.ancestors, same.ancestors)
        assert torch.equal(part.evaluations, same.evaluations)
    again = of([0, 1, 2])
    assert torch.equal(again.samples, whole.samples)


def test_systems_of_a_seed_differ(mixture: GaussianMixture) -> None:
    seen = Observation.of_reals(torch.zeros(1, 2), torch.tensor([[True, False]]), 0.2)
    found = cloud(gaussian(mixture), seen, 6, 4, 8, draws=3)
    assert len(found.samples.flatten(0, 1).unique(dim=0)) == 18


def test_ancestors_are_counted(line: GaussianMixture) -> None:
    """One particle that weighs all leaves one ancestor; equal weights leave all."""
    model, seen = gaussian(line), Observation.of_reals(Y, KNOWN, 5.0)

    def favour(x: Tensor, t: Tensor, s: Tensor, _: Observation) -> TwistValue:
        kernel = model.predict(x, t).kernel(s)
        first = torch.arange(len(x)) % 4 == 0
        r = torch.where(first & (t == 20), 50.0, 0.0).double()
        return TwistValue(r, Independent(kernel, kernel), x)

    assert cloud(model, seen, 3, 4, 20, twist_function=favour).ancestors.tolist() == [1, 1, 1]
    nothing = Observation.of_reals(Y, torch.zeros_like(KNOWN))
    found = cloud(model, nothing, 3, 4, 5)
    assert found.ancestors.tolist() == [4, 4, 4]
    assert_close(found.log_evidence, torch.zeros(3).double())


def test_nothing_seen_is_the_model_itself(line: GaussianMixture) -> None:
    """Means within 5 standard errors of 2,000 samples of 500 systems."""
    nothing = Observation.of_reals(Y, torch.zeros_like(KNOWN))
    x = cloud(gaussian(line), nothing, 500, 4, 5, draws=4).samples.flatten(0, 1).double()
    off = (x.mean(0) - line.mean()) / line.covariance().diagonal().sqrt()
    assert off.abs().max() < 5 / 2000**0.5


def test_the_impossible_has_no_evidence_and_no_nan(line: GaussianMixture) -> None:
    model, seen = gaussian(line), Observation.of_reals(Y, KNOWN, 0.5)

    def never(x: Tensor, t: Tensor, s: Tensor, _: Observation) -> TwistValue:
        kernel = model.predict(x, t).kernel(s)
        return TwistValue(torch.full((len(x),), -math.inf).double(), Independent(kernel, kernel), x)

    found = cloud(model, seen, 3, 4, 5, twist_function=never)
    assert found.log_evidence.tolist() == [-math.inf] * 3
    assert bool(found.samples.isfinite().all())


def test_bits_of_no_probability_have_no_evidence_and_no_nan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second is a zero in all patterns, of a network that does not keep its logits finite."""
    monkeypatch.setattr("diffusion.networks.bit_patterns._LOGIT_LIMIT", math.inf)
    patterns = torch.tensor([[1.0, 0, 0], [0, 0, 1]])
    model = binomial(BitPatterns.from_values(torch.tensor([0.5, 0.5]), patterns))
    seen = Observation.of_bits(torch.tensor([[1.0, 1, 0]]), torch.ones(1, 3, dtype=torch.bool))
    found = cloud(model, seen, 3, 4, 5)
    assert found.log_evidence.tolist() == [-math.inf] * 3
    assert bool(found.samples.isfinite().all())


def test_more_draws_than_particles_are_refused(line: GaussianMixture) -> None:
    with pytest.raises(ValueError, match="4 particles hold 4 samples at most, came 5"):
        cloud(gaussian(line), Observation.of_reals(Y, KNOWN), 1, 4, 5, draws=5)
