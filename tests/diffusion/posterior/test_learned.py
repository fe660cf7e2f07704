"""Method `learned`: an oracle that is told what was seen draws and bounds the exact posterior."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from diffusion.likelihood.bound import bound
from diffusion.model import DiffusionModel
from diffusion.networks import MLP, BernoulliMixture, BitPatterns, GaussianMixture, MLPConfig
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from diffusion.posterior import Learned, sample_posterior
from diffusion.process import BinomialProcess, GaussianConfig
from diffusion.samplers import Ancestral, sample
from diffusion.schedule import InverseTimeSchedule
from diffusion.space import DataSpace
from tests.diffusion.models import binomial, gaussian

ROWS = 2000


def trio() -> GaussianMixture:
    """Two components of three correlated elements, near enough to each other to be mistaken."""
    root = torch.tensor([[0.6, 0.0, 0.0], [0.4, 0.5, 0.0], [-0.3, 0.2, 0.4]]).double()
    covariances = torch.stack((root @ root.mT, 0.5 * root.mT @ root))
    means = torch.tensor([[0.8, -0.5, 0.2], [-0.6, 0.6, -0.4]]).double()
    return GaussianMixture.from_values(torch.tensor([0.4, 0.6]), means, covariances)


def moments_off(x: Tensor, mean: Tensor, covariance: Tensor) -> float:
    """The largest difference of a mean or a product of deviations, in its standard errors."""
    off = x - mean
    products = (off[:, :, None] * off[:, None]).flatten(1) - covariance.flatten()
    both = torch.cat((off, products), 1)
    return float((both.mean(0) / both.std(0) * math.sqrt(len(x))).abs().max())


def conditional(oracle: GaussianMixture, known: Tensor, y: Tensor) -> GaussianMixture:
    """p(x_hidden | x_seen = y), a mixture: Gaussian conditioning of each component."""
    C, hidden = oracle.covariances, ~known
    seen = C[:, known][:, :, known]
    gain = torch.linalg.solve(seen, C[:, known][:, :, hidden]).mT
    off = y[known].double() - oracle.means[:, known]
    means = oracle.means[:, hidden] + (gain @ off[:, :, None])[:, :, 0]
    left = C[:, hidden][:, :, hidden] - gain @ C[:, known][:, :, hidden]
    log_w = oracle.weights.log() + MultivariateNormal(oracle.means[:, known], seen).log_prob(
        y[known].double()
    )
    return GaussianMixture.from_values(log_w.softmax(0), means, (left + left.mT) / 2)


def drawn(model: DiffusionModel, seen: Observation, steps: int | None = None) -> Tensor:
    found = sample_posterior(
        model, seen, ROWS, seed=5, method=Learned(), sampler=Ancestral(steps=steps)
    )
    assert found.network_evaluations == ROWS * (steps or model.T) * len(seen)
    return found.samples.double()


@pytest.mark.parametrize("known", [(True, False, False), (False, True, True)])
def test_of_a_gaussian_mixture_seen_exactly(known: tuple[bool, ...]) -> None:
    """The hidden elements' moments within 4.5 standard errors; the others are what was seen."""
    oracle, mask = trio(), torch.tensor(known)
    model, y = gaussian(oracle, 150, first=10.0), torch.tensor([0.3, -0.2, 0.1])
    (x,) = drawn(model, Observation.of_reals(y[None], mask[None]))
    assert_close(x[:, mask], y[mask].double().expand(ROWS, -1), rtol=0, atol=1e-6)
    exact = conditional(oracle, mask, y)
    assert moments_off(x[:, ~mask], exact.mean(), exact.covariance()) < 4.5


def test_of_a_gaussian_mixture_seen_with_noise() -> None:
    """Two of three elements, with noise that no step of the chain would match."""
    oracle, mask = trio(), torch.tensor([True, True, False])
    model, y = gaussian(oracle, 150, first=10.0), torch.tensor([0.3, -0.2, 9.0])
    (x,) = drawn(model, Observation.of_reals(y[None], mask[None], 0.4))
    rows = torch.eye(3)[mask].double()
    exact = oracle.posterior(rows, y[mask], torch.full((2,), 0.16))[0]
    assert moments_off(x, exact.mean(), exact.covariance()) < 4.5


def frequencies_off(x: Tensor, log_joint: Tensor, every: Tensor) -> float:
    """The largest difference of a frequency, in its standard errors."""
    wanted = log_joint.softmax(0)
    found = (x[:, None] == every).all(2).double().mean(0)
    assert float(found.sum()) == pytest.approx(1)
    assert bool((found[wanted == 0] == 0).all())
    error = (wanted * (1 - wanted) / len(x)).sqrt()
    return float(((found - wanted)[wanted > 0] / error[wanted > 0]).abs().max())


def every_bits(count: int) -> Tensor:
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * count).double()


@pytest.mark.parametrize("flip", [0.0, 0.15])
def test_of_a_mixture_of_bits(flip: float) -> None:
    """All 16 values by enumeration, two of four bits seen, exactly or perhaps flipped."""
    p = torch.tensor([[0.9, 0.8, 0.1, 0.3], [0.2, 0.1, 0.7, 0.9]])
    oracle = BernoulliMixture.from_values(torch.tensor([0.45, 0.55]), p, 0.4)
    process, space = BinomialProcess(InverseTimeSchedule().beta(150), 0.4), "bits"
    model = DiffusionModel(process, oracle, DataSpace(kind=space, shape=(4,)), "x_0", None).eval()
    y, known = torch.tensor([[1.0, 0, 1, 0]]), torch.tensor([[True, False, True, False]])
    (x,) = drawn(model, Observation.of_bits(y, known, flip))
    every = every_bits(4)
    agree = torch.where(every == y, 1 - flip, flip)[:, known[0]].double()
    assert frequencies_off(x, oracle.log_prob(every) + agree.log().sum(1), every) < 4.5


@pytest.mark.parametrize("flip", [0.0, 0.15])
def test_of_bit_patterns(flip: float, heartbeat: BitPatterns) -> None:
    """The first three of 20 bits are zeros: two phases are left if that is sure, else all five."""
    y, known = torch.zeros(1, 20), torch.arange(20)[None] < 3
    model, flip_of = binomial(heartbeat, 150), max(flip, 1e-300)
    (x,) = drawn(model, Observation.of_bits(y, known, flip))
    differ = (heartbeat.patterns[:, known[0]] != 0).sum(1)
    log_joint = heartbeat.weights.log() + differ * math.log(flip_of)
    log_joint = log_joint + (3 - differ) * math.log1p(-flip)
    assert frequencies_off(x, log_joint, heartbeat.patterns) < 4.5


def network(kind: str) -> DiffusionModel:
    if kind == "mixture":
        return gaussian(trio(), 20)
    torch.manual_seed(3)
    dense = MLP(MLPConfig(features=3, width=32, zero_out=False, conditional=True))
    space = DataSpace(kind="vector", shape=(3,))
    return DiffusionModel(GaussianConfig(T=20).build(), dense, space, "v", "lower").eval()


@pytest.mark.parametrize("kind", ["mixture", "dense"])
def test_told_of_nothing_it_is_the_model_of_samples(kind: str) -> None:
    """The same predictions, samples and bounds to the last bit, told or not."""
    model = network(kind)
    x_0 = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    nothing = model.process.nothing_seen((3,), 40)
    plain = sample(model, 40, seed=2)
    bounds = bound(model, x_0, seed=2, convention="density").bound
    for told in (True, False):
        seen = nothing.to_network(told)
        assert torch.equal(sample(model, 40, seed=2, observation=seen), plain)
        found = bound(model, x_0, seed=2, convention="density", observation=seen).bound
        assert torch.equal(found, bounds)


def test_a_network_that_is_told_says_something_else() -> None:
    """So the law before this one is not of networks that do not listen."""
    model = network("dense")
    x_t, t = torch.randn(4, 3), torch.full((4,), 9)
    seen = Observation.of_reals(torch.ones(4, 3), torch.tensor([[True, False, False]]).expand(4, 3))
    with torch.no_grad():
        told = model.predict(x_t, t, observation=seen.to_network()).x_0
        free = model.predict(x_t, t).x_0
    assert bool((told[:, 0] == 1).all())
    assert float((told - free)[:, 1:].abs().min()) > 1e-4


def test_the_bound_given_what_was_seen_is_the_exact_conditional_density() -> None:
    """At most log p(hidden | seen), data units, in the mean over data, and near it in 400 steps."""
    N, known = 300, torch.tensor([True, False, True])
    oracle = trio()
    plain = gaussian(oracle, 400, first=10.0)
    space = DataSpace(kind="vector", shape=(3,), shift=1.0, scale=(2.0, 0.25, 5.0))
    model = DiffusionModel(plain.process, oracle, space, "x_0", "moment").eval()
    x_0 = oracle.sample(counter_noise(1, torch.arange(N), 0))
    exact = torch.stack(
        [conditional(oracle, known, x).log_prob(x[None, ~known])[0] for x in x_0]
    ) - math.log(0.25)
    seen = Observation.of_reals(x_0, known.expand(N, 3)).to_network()
    found = bound(model, x_0, seed=1, convention="density", terms=60, observation=seen, batch=4096)
    off = found.bound - exact
    error = float(off.std()) / math.sqrt(N)
    assert float(off.mean()) < 3 * error
    assert float(off.mean()) > -0.03 - 3 * error


def test_elements_that_were_seen_add_nothing_to_a_bound() -> None:
    """Whatever their scale: the bound of the rest is the same to rounding, in other units too."""
    model, x_0 = network("mixture"), torch.randn(20, 3) * 0.3
    known = torch.tensor([True, False, True]).expand(20, 3)
    seen = Observation.of_reals(x_0, known).to_network()
    found = bound(model, x_0, seed=3, convention="density", observation=seen)
    units = DataSpace(kind="vector", shape=(3,), scale=(7.0, 1.0, 0.01))
    other = DiffusionModel(model.process, model.network, units, "x_0", "moment").eval()
    again = bound(other, x_0, seed=3, convention="density", observation=seen)
    assert_close(again.bound, found.bound)
    everything = Observation.of_reals(x_0, torch.ones_like(known)).to_network()
    nothing_left = bound(model, x_0, seed=3, convention="density", observation=everything)
    assert bool((nothing_left.bound == 0).all())
