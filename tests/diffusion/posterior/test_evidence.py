"""The evidence of what a network was told, against oracles' exact log p(y)."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from diffusion.operators import AveragePooling
from diffusion.posterior import Learned, sample_posterior
from diffusion.posterior.evidence import Evidence, evidence
from tests.diffusion.models import binomial, gaussian
from tests.diffusion.networks.test_mixture import gaussian_mixture

N, EACH, T = 60, 8, 200


def estimate(model: DiffusionModel, seen: Observation, terms: int | None = None) -> Evidence:
    drawn = sample_posterior(model, seen, EACH, seed=3, method=Learned()).samples
    return evidence(model, seen, drawn, seed=3, terms=terms, batch=4096)


def check(found: Evidence, exact: Tensor, gap: float) -> None:
    """Within 4 standard errors and the bounds' gap on average; 95% intervals hold 85% or more."""
    off = found.log_evidence - exact
    assert abs(float(off.mean())) < 4 * float(off.std()) / math.sqrt(N) + gap
    low, high = found.interval.unbind(1)
    assert float(((low <= exact) & (exact <= high)).double().mean()) >= 0.85
    # Student's t of 7 degrees has variance 7 / 5.
    t = off / found.standard_error
    assert 0.6 < float(t.square().mean().sqrt()) / math.sqrt(7 / 5) < 1.5


@pytest.mark.parametrize("terms", [None, 20])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_of_a_gaussian_mixture(noise: float, terms: int | None) -> None:
    """Two of three elements seen exactly, or all with noise."""
    mixture = gaussian_mixture(3, 3, spread=1.0)
    model = gaussian(mixture, T=T)
    x = mixture.sample(counter_noise(5, torch.arange(N), 0))
    known = torch.tensor([True, noise > 0, True])
    y = (x + noise * counter_noise(6, torch.arange(N), 0).normal((3,))).float()
    means, covariances = mixture.means[:, known], mixture.covariances[:, known][:, :, known]
    covariances = covariances + noise**2 * torch.eye(int(known.sum())).double()
    each = MultivariateNormal(means, covariances).log_prob(y[:, None, known].double())
    exact = (mixture.weights.log() + each).logsumexp(1)
    check(estimate(model, Observation.of_reals(y, known.expand(N, 3), noise), terms), exact, 0.05)


@pytest.mark.parametrize("flip", [0.0, 0.1])
def test_of_bits(flip: float) -> None:
    """Two of four bits seen exactly, or all through flips: the sum over patterns."""
    patterns = torch.tensor([[0.0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]])
    oracle = BitPatterns.from_values(torch.tensor([0.5, 0.3, 0.2]), patterns)
    model = binomial(oracle, T=T)
    rows = torch.arange(N)
    x = oracle.sample(counter_noise(5, rows, 0))
    u = counter_noise(6, rows, 0).uniform((4,))
    y = torch.where(u < flip, 1 - x, x).float()
    known = torch.tensor([True, flip > 0, True, flip > 0])
    agree = torch.where(y[:, None] == patterns, 1 - flip, flip)[:, :, known].double()
    exact = (agree.prod(2) @ oracle.weights).log()
    found = estimate(model, Observation.of_bits(y, known.expand(N, 4), flip))
    check(found, exact, 0.05)


class TwoMinds(nn.Module):
    """A network that answers by one mixture, and by another where it is told something."""

    clock, conditional = "log_snr", True

    def __init__(self, free: GaussianMixture, told: GaussianMixture) -> None:
        super().__init__()
        self.free, self.told = free, told

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        out: Tensor = (self.free if x_t.shape[1] == 2 else self.told)(x_t, time)
        return out


def test_a_told_network_that_is_wrong_lowers_it_by_its_divergence() -> None:
    """log p(y) - KL(p^(x | y) || p(x | y)), here of two Normals."""
    free, told = (
        GaussianMixture.from_values(
            torch.ones(1), torch.zeros(1, 2), torch.tensor([[[1.0, each], [each, 1.0]]])
        )
        for each in (0.8, 0.5)
    )
    known = torch.tensor([True, False]).expand(N, 2)
    model = gaussian(told, T=T)
    wrong = DiffusionModel(model.process, TwoMinds(free, told), model.space, "x_0", "moment").eval()
    y = torch.linspace(-2, 2, N)[:, None].expand(N, 2)
    found = estimate(wrong, Observation.of_reals(y, known))
    first = y[:, :1].double()
    p, q = (
        MultivariateNormal(each * first, (1 - each**2) * torch.eye(1).double())
        for each in (0.8, 0.5)
    )
    marginal = MultivariateNormal(torch.zeros(1).double(), torch.eye(1).double()).log_prob(first)
    check(found, marginal - kl_divergence(q, p), 0.05)


def test_what_it_cannot_estimate_is_refused() -> None:
    model = gaussian(gaussian_mixture(2, 4), T=10)
    drawn, known = torch.zeros(1, 2, 4), torch.ones(1, 4, dtype=torch.bool)
    seen = Observation.of_reals(drawn[:, 0], known, 0.1)
    with pytest.raises(ValueError, match="2 draws"):
        evidence(model, seen, drawn[:, :1], seed=1)
    with pytest.raises(ValueError, match="paper"):
        evidence(model, seen, drawn, seed=1, convention="paper")
    pooled = Observation(seen.factor, AveragePooling(size=2))
    with pytest.raises(ValueError, match="twisted"):
        evidence(model, pooled, drawn, seed=1)
