"""Particles drawn by a network that is told what was seen, corrected by their weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from typing_extensions import override

from diffusion.model import DiffusionModel
from diffusion.networks import BernoulliMixture, BitPatterns, GaussianMixture, Network
from diffusion.networks.embedding import Clock
from diffusion.observation import Observation
from diffusion.operators import Dense
from diffusion.posterior import Learned, Twisted, sample_posterior
from diffusion.posterior.particle_filter import ParticleFilter
from diffusion.posterior.smc import SMCResult, run
from diffusion.posterior.twist import Told
from diffusion.samplers import Ancestral
from tests.diffusion.models import binomial, gaussian

Y, HALF = torch.tensor([[0.9, 0.0]]), torch.tensor([[True, False]])
Case = tuple[Callable[[int], DiffusionModel], Observation, float]


def of_reals(mixture: GaussianMixture, noise: float) -> Case:
    """An element of two seen, and log p(y)."""
    var = torch.tensor([max(noise, 1e-4) ** 2])
    exact = mixture.posterior(torch.eye(2)[:1], Y[0, :1], var)[1]
    return lambda T: gaussian(mixture, T), Observation.of_reals(Y, HALF, noise), exact


def of_patterns() -> Case:
    """Two of four bits seen that repeat with probability .8."""
    bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    same = (bits.diff(dim=1) == 0).double()
    weights = 0.5 * (same * 0.8 + (1 - same) * 0.2).prod(1)
    y, known = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[True, False, True, False]])
    exact = float(weights[((bits == y) | ~known).all(1)].sum().log())
    network = BitPatterns.from_values(weights, bits, 0.4)
    return lambda T: binomial(network, T), Observation.of_bits(y, known), exact


def of_bits(flip: float) -> Case:
    """A mixture of independent bits, two of three seen, perhaps flipped."""
    weights = torch.tensor([0.3, 0.7]).double()
    ones = torch.tensor([[0.9, 0.2, 0.6], [0.1, 0.7, 0.3]]).double()
    network = BernoulliMixture.from_values(weights, ones, 0.4)
    y, known = torch.tensor([[1.0, 0, 0]]), torch.tensor([[True, True, False]])
    agree = ones * (1 - flip) + (1 - ones) * flip
    exact = float((weights * agree[:, 0] * (1 - agree[:, 1])).sum().log())
    return lambda T: binomial(network, T), Observation.of_bits(y, known, flip), exact


def systems(model: DiffusionModel, seen: Observation, count: int, steps: int) -> SMCResult:
    kernel = ParticleFilter(Ancestral(steps=steps).plan(model), 8, twist=Told())
    return run(model, kernel, seen.rows(torch.zeros(count).long()), 4, torch.arange(count))


@pytest.mark.parametrize("which", ["exact", "noisy", "patterns", "bits", "flipped bits"])
def test_weights_even_out_as_steps_grow(which: str, mixture: GaussianMixture) -> None:
    """By the exact p(x_s | x_t, y) only the steps spread them: a variance of order 1 / T, here at
    least 2.5 times less at 6 times the steps. The estimates of p(y) are within 4.5 standard errors
    and what the steps miss, of order 1 / T too; each system's own variance within half."""
    make, seen, exact = {
        "exact": lambda: of_reals(mixture, 0.0),
        "noisy": lambda: of_reals(mixture, 0.3),
        "patterns": of_patterns,
        "bits": lambda: of_bits(0.0),
        "flipped bits": lambda: of_bits(0.2),
    }[which]()
    spread, size = [], []
    for T in (15, 90):
        found = systems(make(T), seen, 150, T)
        spread.append(float(found.log_evidence.var()))
        size.append(float(found.ess[:, -1].mean()))
        ratio = (found.log_evidence - exact).exp()
        error = float(ratio.std()) / len(ratio) ** 0.5
        assert abs(float(ratio.mean()) - 1) < 4.5 * error + 2 / T
        assert float(found.variance.mean()) == pytest.approx(spread[-1], rel=0.5)
    assert spread[1] < spread[0] / 2.5
    assert size[0] < size[1]
    assert size[1] > 7.5


class Mistold(Network):
    """The network of one mixture, which answers for another one when it is told something."""

    clock: Clock = "log_snr"
    conditional = True

    def __init__(self, mixture: GaussianMixture, other: GaussianMixture) -> None:
        super().__init__()
        self.mixture, self.other, self.config = mixture, other, mixture.config

    @override
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        return (time,)

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        plain = x_t.shape[1] == self.config.features
        return (self.mixture if plain else self.other).given(x_t, *condition)


def test_a_network_that_is_told_wrong_is_corrected(mixture: GaussianMixture) -> None:
    """It has learned that the element unseen lies .2 further up: the learned chain's mean is off
    by more than 8 standard errors of 400 samples, the particles' is within 4; and p(y) within its
    stated error, twice."""
    higher = mixture.means + torch.tensor([0.0, 0.2])
    other = GaussianMixture.from_values(mixture.weights, higher, mixture.covariances)
    model = gaussian(Mistold(mixture, other), 60)  # type: ignore[arg-type]
    seen, n = Observation.of_reals(Y, HALF, 0.3), 400
    exact, log_z = mixture.posterior(torch.eye(2)[:1], Y[0, :1], torch.tensor([0.09]))
    far = {}
    for method in (Learned(), Twisted(proposal="learned", systems="weighted")):
        found = sample_posterior(model, seen, n, seed=2, method=method)
        x = found.samples[0, :, 1].double()
        wide = float(exact.covariance()[1, 1]) ** 0.5
        far[method.name] = abs(float(x.mean() - exact.mean()[1])) / (wide / n**0.5)
    assert far["learned"] > 8
    assert far["twisted"] < 4
    told = found.diagnostics[0]
    assert told.log_evidence is not None
    assert told.log_evidence_error is not None
    assert abs(told.log_evidence - log_z) < 2 * told.log_evidence_error


def test_what_was_seen_comes_back_and_is_counted(mixture: GaussianMixture) -> None:
    """Two evaluations a particle and step, of which the last takes one."""
    y, known = torch.tensor([[0.123456, 9.0]]), torch.tensor([[True, False]])
    method = Twisted(proposal="learned", particles=4)
    found = sample_posterior(
        gaussian(mixture),
        Observation.of_reals(y, known),
        9,
        seed=1,
        method=method,
        sampler=Ancestral(steps=12),
    )
    assert bool((found.samples[0, :, 0] == y[0, 0]).all())
    assert found.network_evaluations == 9 * 4 * (2 * 11 + 1)
    assert found.method == method
    assert not found.biased


def test_what_a_network_cannot_be_told_is_refused(mixture: GaussianMixture) -> None:
    method = Twisted(proposal="learned")
    line = Observation.of_linear(Dense(rows=((1.0, 0.5),)), torch.zeros(1, 1), (2,), 0.1)
    with pytest.raises(ValueError, match="told of elements"):
        sample_posterior(gaussian(mixture), line, 1, seed=1, method=method)
    untold = gaussian(mixture)
    untold.network.conditional = False  # type: ignore[assignment]
    with pytest.raises(ValueError, match="cannot be told"):
        sample_posterior(untold, Observation.of_reals(Y, HALF), 1, seed=1, method=method)
