"""Labels and products of models: evidence without bias, and the exact posteriors."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from typing_extensions import override

from diffusion.classifier import Classifier
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture, Network
from diffusion.networks.embedding import Clock
from diffusion.observation import Observation
from diffusion.operators import Dense
from diffusion.posterior import (
    Auto,
    Expert,
    Factor,
    Label,
    Product,
    Twisted,
    sample_posterior,
)
from diffusion.posterior.particle_filter import ParticleFilter
from diffusion.posterior.smc import SMCResult, run
from diffusion.posterior.twist import Covariance, Told, Twist
from diffusion.samplers import Ancestral
from tests.diffusion.models import binomial, gaussian
from tests.diffusion.posterior.test_particles import check_evidence, cloud, independent_bits


class Components(Network):
    """log p(k) q(x_t | k) of a mixture of Gaussians: the exact classifier of its components."""

    clock: Clock = "log_snr"

    def __init__(self, mixture: GaussianMixture) -> None:
        super().__init__()
        self.weights, self.means = mixture.weights, mixture.means
        self.covariances = mixture.covariances

    @override
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        return (time,)

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        signal = condition[0].double().sigmoid()[:, None, None]
        noise = (1 - signal)[..., None] * torch.eye(x_t.shape[1], dtype=torch.float64)
        q = torch.distributions.MultivariateNormal(
            signal.sqrt() * self.means, signal[..., None] * self.covariances + noise
        )
        return self.weights.log() + q.log_prob(x_t.double()[:, None])


class Patterns(Components):
    """The same of a mixture of bit patterns."""

    def __init__(self, mixture: BitPatterns) -> None:
        Network.__init__(self)
        self.mixture = mixture

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        return self.mixture.posterior_weights(x_t, condition[0]).clamp_min(1e-300).log()


class Logistic(Components):
    """p(1 | x_t) = sigmoid(slope x_t + 1/2), whatever t: a factor, and a bad twist."""

    def __init__(self, slope: Tensor) -> None:
        Network.__init__(self)
        self.slope = slope

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        one = x_t.double() @ self.slope.double() + 0.5
        return torch.stack((torch.zeros_like(one), one), 1)


def classifier(model: DiffusionModel, network: Network, labels: int) -> Classifier:
    return Classifier(model.process, network, model.space, [str(k) for k in range(labels)])


def nothing(model: DiffusionModel) -> Observation:
    return model.process.nothing_seen(model.event, 1)


def found_by(
    model: DiffusionModel,
    factor: Factor,
    systems: int,
    particles: int,
    steps: int,
    seen: Observation | None = None,
    **more: object,
) -> SMCResult:
    place = torch.zeros(systems, dtype=torch.long)
    seen = nothing(model) if seen is None else seen
    return cloud(model, seen, systems, particles, steps, factors=[factor.rows(place)], **more)


def label(reader: Classifier, y: int) -> Label:
    return Label(reader, torch.tensor([y]))


def check_samples(x: Tensor, exact: GaussianMixture, most: float = 4.5) -> None:
    """Means within so many standard errors of independent draws, and variances (of fourth moments
    as a sample has them)."""
    x = x.double()
    off = (x.mean(0) - exact.mean()) / (exact.covariance().diagonal() / len(x)).sqrt()
    assert float(off.abs().max()) < most
    square = (x - exact.mean()).square()
    off = (square.mean(0) - exact.covariance().diagonal()) / (square.std(0) / len(x) ** 0.5)
    assert float(off.abs().max()) < most


# ---- labels ----


@pytest.mark.parametrize("std", [None, 0.0, 0.3])
@pytest.mark.parametrize("twist", [Twist(), Twist(covariance="diagonal")])
def test_a_label_s_evidence_has_no_bias(
    std: float | None, twist: Twist, line: GaussianMixture
) -> None:
    """On a model whose kernel is exact at any number of steps, by a twist that is not, with and
    without an element seen: E[sigmoid(slope x_0 + 1/2)] by quadrature."""
    model, slope = gaussian(line), torch.tensor([1.0, -2.0, 0.7])
    mean, var = line.mean(), line.covariance().diagonal()
    seen, evidence = nothing(model), 0.0
    if std is not None:
        y, noise = torch.tensor([[1.1, 0.0, 0.0]]), std**2
        seen = Observation.of_reals(y, torch.tensor([[True, False, False]]), std)
        evidence = float(
            torch.distributions.Normal(mean[0], (var[0] + noise).sqrt()).log_prob(y[0, 0])
        )
        mean = torch.cat((mean[:1] + var[0] / (var[0] + noise) * (y[0, 0] - mean[0]), mean[1:]))
        var = torch.cat(((var[0] * noise / (var[0] + noise))[None], var[1:]))
    u = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    at = slope.double() @ mean + (slope.double().square() @ var).sqrt() * u
    one = torch.trapezoid((at + 0.5).sigmoid() * (-u * u / 2).exp() / (2 * math.pi) ** 0.5, u)
    factor = label(classifier(model, Logistic(slope), 2), 1)
    found = found_by(model, factor, 1200, 4, 5, seen, twist=twist)
    check_evidence(found, evidence + math.log(float(one)))


@pytest.mark.parametrize("k", [0, 1])
def test_a_component_s_label_draws_that_component(k: int, mixture: GaussianMixture) -> None:
    """The exact classifier of components: their own Gaussians, and their weights as evidence."""
    model = gaussian(mixture, 60)
    factor = label(classifier(model, Components(mixture), 2), k)
    found = found_by(model, factor, 200, 4, 60)
    check_evidence(found, math.log(float(mixture.weights[k])))
    own = GaussianMixture.from_values(
        torch.ones(1), mixture.means[k : k + 1], mixture.covariances[k : k + 1]
    )
    check_samples(found.samples[:, 0], own)


@pytest.mark.parametrize("twist", [Twist(), Twist(covariance="diagonal"), Told()])
def test_labels_given_what_was_seen(twist: Twist, mixture: GaussianMixture) -> None:
    """p(k | y) as a ratio of evidences, and the posterior of a component."""
    model, y, var = gaussian(mixture, 60), torch.tensor([[0.2, 0.0]]), torch.tensor([0.25])
    seen = Observation.of_reals(y, torch.tensor([[True, False]]), 0.5)
    reader = classifier(model, Components(mixture), 2)
    row = torch.eye(2)[:1]
    exact, log_z = mixture.posterior(row, y[0, :1], var)
    for k in (0, 1):
        own = GaussianMixture.from_values(
            torch.ones(1), mixture.means[k : k + 1], mixture.covariances[k : k + 1]
        )
        found = found_by(model, label(reader, k), 150, 8, 60, seen, twist=twist)
        check_evidence(found, log_z + math.log(float(exact.weights[k])))
        check_samples(found.samples[:, 0], own.posterior(row, y[0, :1], var)[0])


def test_a_pattern_s_label_draws_that_pattern(heartbeat: BitPatterns) -> None:
    """Of five patterns the third: evidence 1/5, and nothing else is drawn."""
    model = binomial(heartbeat, 100)
    factor = label(classifier(model, Patterns(heartbeat), 5), 2)
    found = found_by(model, factor, 60, 8, 100)
    check_evidence(found, math.log(0.2))
    drawn = (found.samples[:, 0] == heartbeat.patterns[2]).all(1).double().mean()
    assert float(drawn) > 0.95


# ---- products ----


def other_line() -> GaussianMixture:
    variances = torch.tensor([0.2, 0.5, 1.3], dtype=torch.float64)
    means = torch.tensor([[-0.2, -0.5, 0.4]], dtype=torch.float64)
    return GaussianMixture.from_values(torch.ones(1), means, variances.diag()[None])


def other_mixture() -> GaussianMixture:
    covariances = torch.tensor([[[0.4, 0.0], [0.0, 0.2]], [[0.2, 0.05], [0.05, 0.3]]])
    means = torch.tensor([[0.6, -0.1], [-0.5, -0.4]])
    return GaussianMixture.from_values(
        torch.tensor([0.5, 0.5]), means.double(), covariances.double()
    )


def product(one: GaussianMixture, other: GaussianMixture) -> tuple[GaussianMixture, float]:
    """p_1 p_2 / Z of two mixtures, and log Z: component by component N N = N(0; ..) N."""
    log_w, means, covariances = [], [], []
    for w, m, S in zip(one.weights, one.means, one.covariances, strict=True):
        for v, n, U in zip(other.weights, other.means, other.covariances, strict=True):
            both = torch.linalg.inv(S.inverse() + U.inverse())
            means.append(both @ (S.inverse() @ m + U.inverse() @ n))
            covariances.append((both + both.mT) / 2)
            overlap = torch.distributions.MultivariateNormal(n, S + U).log_prob(m)
            log_w.append(w.log() + v.log() + overlap)
    weights = torch.stack(log_w)
    found = GaussianMixture.from_values(
        weights.softmax(0), torch.stack(means), torch.stack(covariances)
    )
    return found, float(weights.logsumexp(0))


@pytest.mark.parametrize("steps", [5, 20])
def test_a_product_of_gaussians_is_exact_at_any_number_of_steps(
    steps: int, line: GaussianMixture
) -> None:
    model, other = gaussian(line), gaussian(other_line())
    exact, log_z = product(line, other_line())
    found = found_by(model, Expert(other), 1500, 8, steps)
    check_evidence(found, log_z)
    check_samples(found.samples[:, 0], exact)


def test_the_product_of_the_prior_with_itself_needs_no_weights() -> None:
    """Of two models that are pi every estimate is the integral of pi^2, (4 pi)^(-D / 2)."""
    pi = GaussianMixture.from_values(
        torch.ones(1), torch.zeros(1, 3).double(), torch.eye(3).double()[None]
    )
    found = found_by(gaussian(pi), Expert(gaussian(pi)), 50, 4, 7)
    wanted = torch.full((50,), -1.5 * math.log(4 * math.pi)).double()
    assert_close(found.log_evidence, wanted, rtol=0, atol=1e-4)


def test_a_product_of_mixtures(mixture: GaussianMixture) -> None:
    """A mixture of four again: its moments, the share of a half-plane, and the evidence."""
    model, other = gaussian(mixture, 80), gaussian(other_mixture(), 80)
    exact, log_z = product(mixture, other_mixture())
    found = found_by(model, Expert(other), 200, 16, 80)
    check_evidence(found, log_z)
    check_samples(found.samples[:, 0], exact)


@pytest.mark.parametrize("twist", [Twist(covariance="diagonal"), Told()])
def test_a_product_with_what_was_seen_of_it(twist: Twist, mixture: GaussianMixture) -> None:
    """(p_1 p_2 / Z)(x_0 | y), an element seen; exact values come back bit for bit."""
    model, other = gaussian(mixture, 80), gaussian(other_mixture(), 80)
    both, log_z = product(mixture, other_mixture())
    y, known = torch.tensor([[0.2, 0.0]]), torch.tensor([[True, False]])
    seen = Observation.of_reals(y, known, 0.5)
    exact, of_y = both.posterior(torch.eye(2)[:1], y[0, :1], torch.tensor([0.25]))
    found = found_by(model, Expert(other), 200, 16, 80, seen, twist=twist)
    check_evidence(found, log_z + of_y)
    check_samples(found.samples[:, 0], exact)
    seen = Observation.of_reals(y, known)
    found = found_by(model, Expert(other), 20, 8, 50, seen, twist=twist)
    assert bool((found.samples[:, 0, 0] == y[0, 0]).all())


def test_a_product_of_bits_by_enumeration() -> None:
    """Independent bits, at five steps: sum over x_0 of p_1 p_2, and the share of each of 8."""
    one = independent_bits()
    p = torch.tensor([0.3, 0.6, 0.5]).double()
    weights = torch.where(one.patterns > 0, p, 1 - p).prod(1)
    other = BitPatterns.from_values(weights, one.patterns, 0.4)
    joint = one.weights * other.weights
    found = found_by(binomial(one), Expert(binomial(other)), 2000, 4, 5)
    ratio = (found.log_evidence - joint.sum().log()).exp()
    error = max(float(ratio.std()) / len(ratio) ** 0.5, 1e-4)
    assert abs(float(ratio.mean()) - 1) < 4.5 * error
    place = (found.samples[:, 0] @ torch.tensor([4.0, 2.0, 1.0])).long()
    shares = torch.bincount(place, minlength=8).double() / len(place)
    order = (one.patterns.float() @ torch.tensor([4.0, 2.0, 1.0])).long()
    exact = (joint / joint.sum())[order.argsort()]
    assert float(((shares - exact) / (exact * (1 - exact) / len(place)).sqrt()).abs().max()) < 4.5


def correlated(*weights: float) -> BitPatterns:
    """Three bits that depend on each other, all eight patterns possible."""
    patterns = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    return BitPatterns.from_values(torch.tensor(weights).double(), patterns, 0.4)


def of_paths(one: DiffusionModel, other: DiffusionModel, steps: int) -> Tensor:
    """log of the sum over x_1..T of p_1(x_0..T) p_2(x_0..T) / q(x_1..T | x_0), of each x_0, [8]."""
    patterns = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    x_t, x_s = patterns.repeat_interleave(8, 0), patterns.repeat(8, 1)
    log = 2 * one.process.prior((3,), 8).log_prob(patterns).double()
    plan = Ancestral(steps=steps).plan(one)
    for t, s in zip(plan.t, plan.s, strict=True):
        t, s = t.expand(64), s.expand(64)
        step = sum(m.reverse_kernel(x_t, t, s).log_prob(x_s).double() for m in (one, other))
        step = step - one.process.forward_kernel(x_s, t, s).log_prob(x_t).double()
        log = (log[:, None] + step.reshape(8, 8)).logsumexp(0)
    return log


A = (0.3, 0.05, 0.05, 0.1, 0.05, 0.1, 0.05, 0.3)
B = (0.1, 0.3, 0.05, 0.05, 0.25, 0.05, 0.1, 0.1)


def test_a_product_of_bits_is_that_of_all_paths() -> None:
    """Bits that depend on each other, by enumeration of every path of a chain of 8 steps."""
    one, other = binomial(correlated(*A)), binomial(correlated(*B))
    exact = of_paths(one, other, 8)
    found = found_by(one, Expert(other), 1500, 8, 8)
    check_evidence(found, float(exact.logsumexp(0)))
    place = (found.samples[:, 0] @ torch.tensor([4.0, 2.0, 1.0])).long()
    shares, wanted = torch.bincount(place, minlength=8).double() / 1500, exact.softmax(0)
    assert float(((shares - wanted) / (wanted * (1 - wanted) / 1500).sqrt()).abs().max()) < 4.5


def test_all_paths_come_to_the_product_as_steps_grow() -> None:
    """The error of log Z, by enumeration, falls as 1 / T."""
    exact = float((torch.tensor(A) * torch.tensor(B)).sum().log())
    errors = []
    for T in (20, 200):
        one, other = binomial(correlated(*A), T), binomial(correlated(*B), T)
        errors.append(abs(float(of_paths(one, other, T).logsumexp(0)) - exact))
    assert errors[0] < 0.02
    assert errors[1] < errors[0] / 8


# ---- draws, and what is refused ----


def test_draw_takes_factors(mixture: GaussianMixture) -> None:
    """Labels of two data in one call: each its own component, a posterior of its own."""
    model, other = gaussian(mixture, 60), gaussian(other_mixture(), 60)
    reader = classifier(model, Components(mixture), 2)
    seen = model.process.nothing_seen(model.event, 2)
    factors = [Label(reader, torch.tensor([0, 1]))]
    method = Auto(particles=4)
    found = sample_posterior(model, seen, 20, seed=1, method=method, factors=factors)
    assert found.network_evaluations == 2 * 20 * 4 * 60
    assert bool((found.samples[0, :, 0] > 0).float().mean() > 0.9)
    assert bool((found.samples[1, :, 0] < 0).float().mean() > 0.9)
    alone = model.process.nothing_seen(model.event, 1)
    first = sample_posterior(
        model, alone, 20, seed=1, method=method, factors=[factors[0].rows(torch.tensor([0]))]
    )
    assert_close(first.samples[0], found.samples[0], rtol=1e-4, atol=1e-4)
    twice = sample_posterior(model, alone, 2, seed=1, method=method, factors=[Expert(other)])
    assert twice.network_evaluations == 2 * 4 * (60 + 60)


@pytest.mark.parametrize("which", ["label", "model", "both"])
@pytest.mark.parametrize("kind", ["reals", "bits"])
def test_no_network_gets_more_rows_than_are_allowed(
    which: str, kind: str, mixture: GaussianMixture
) -> None:
    """Two systems of 7 particles by three rows at a time are what they are by all at once."""
    if kind == "bits":
        model, other = binomial(correlated(*A), 30), binomial(correlated(*B), 30)
        network: Network = Patterns(correlated(*A))
        seen = Observation.of_bits(
            torch.tensor([[1.0, 0, 0]]), torch.tensor([[True, False, False]])
        )
    else:
        model, other = gaussian(mixture, 30), gaussian(other_mixture(), 30)
        network = Components(mixture)
        seen = Observation.of_reals(torch.tensor([[0.2, 0]]), torch.tensor([[True, False]]), 0.5)
    reader = classifier(model, network, 8 if kind == "bits" else 2)
    factors = [[label(reader, 0)], [Expert(other)], [label(reader, 0), Expert(other)]]
    used: list[Factor] = factors[["label", "model", "both"].index(which)]  # type: ignore[assignment]
    kernel = ParticleFilter(Ancestral(steps=6).plan(model), 7, twist=Twist(covariance="diagonal"))
    place, sizes = torch.zeros(2, dtype=torch.long), list[int]()
    walked = [seen.rows(place), 4, torch.arange(2), [factor.rows(place) for factor in used]]
    whole = run(model, kernel, *walked)  # type: ignore[arg-type]
    for part in (model.network, other.network, network):
        part.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    parts = run(model, kernel, *walked, together=3)  # type: ignore[arg-type]
    assert max(sizes) == 3
    for ours, theirs in zip(parts.tensors(), whole.tensors(), strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_joined_is_refused(mixture: GaussianMixture, heartbeat: BitPatterns) -> None:
    model = gaussian(mixture)
    seen = Observation.of_reals(torch.zeros(1, 2), torch.tensor([[True, False]]), 0.2)

    def refuses(words: str, factor: Factor, **more: object) -> None:
        with pytest.raises(ValueError, match=words):
            sample_posterior(model, seen, 1, seed=0, factors=[factor], **more)  # type: ignore[arg-type]

    reader = classifier(model, Components(mixture), 2)
    refuses("use 'twisted' for labels", label(reader, 0), method=Product())
    refuses(r"labels are 0 to 1 \(0, 1\), came \[2\]", label(reader, 2))
    refuses(r"each has its label, int64 \[1\]", Label(reader, torch.tensor([0, 1])))
    later = classifier(gaussian(mixture, 30), Components(mixture), 2)
    refuses(r"fitted under another process .* T = 30", label(later, 0))
    refuses("runs under another process", Expert(gaussian(mixture, 30)))
    refuses("runs under another process", Expert(binomial(heartbeat)))
    refuses("ties them together", Expert(model), sampler=Ancestral(steps=5))


def refusal(act: Callable[[], object]) -> str:
    """What it says against it; nothing where it does it."""
    try:
        act()
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("covariance", ["auto", "full", "diagonal", "independent"])
@pytest.mark.parametrize("products", [1, 2])
@pytest.mark.parametrize("what", ["both", "one", "neither", "mixed", "line"])
def test_a_product_is_refused_at_once_where_it_would_be_on_the_way(
    what: str, products: int, covariance: Covariance, mixture: GaussianMixture
) -> None:
    """Before the first step: just where some step of these systems cannot join two models."""
    model = gaussian(mixture)
    known = {"both": [[1, 1]], "one": [[0, 1]], "neither": [[0, 0]], "mixed": [[1, 1], [0, 0]]}
    if what == "line":
        seen = Observation.of_linear(Dense(rows=((1.0, 0.5),)), torch.zeros(1, 1), (2,), 0.5)
    else:
        mask = torch.tensor(known[what]).bool()
        seen = Observation.of_reals(torch.zeros(len(mask), 2), mask, 0.5)
    method = Twisted(particles=2, covariance=covariance, products=products)
    kernel = method.kernel(model, seen, 1, Ancestral(steps=3))
    assert kernel is not None
    number = torch.arange(len(seen))
    asked = [Expert(model)]
    early = refusal(lambda: method.resolve(model, seen, asked))
    assert early == refusal(lambda: run(model, kernel, seen, 0, number, asked))
    tied = {"neither": False, "line": True}.get(what, covariance in ("auto", "full"))
    assert bool(early) == (tied and not (what in ("both", "mixed") and products == 1))
