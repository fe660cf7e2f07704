"""Posteriors: what was observed comes back, and where the answer is known it is that."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.distributions import Bernoulli, Normal
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.noise import counter_noise
from diffusion.plan import DDIM, Ancestral, DPMSolver
from diffusion.posterior import Observation, matched_start
from diffusion.process import BinomialProcess, GaussianProcess
from diffusion.sampling import sample
from diffusion.schedule import InverseTimeSchedule, LogSnrSchedule
from diffusion.space import DataSpace

SAMPLERS = [
    Ancestral(),
    Ancestral(steps=6),
    DDIM(steps=5),
    DDIM(steps=6, eta=1.0),
    DPMSolver(steps=5),
]


def gaussian(network: GaussianMixture, T: int = 20) -> DiffusionModel:
    process = GaussianProcess(LogSnrSchedule(first=8.0, last=-12.0).beta(T))
    space = DataSpace(kind="vector", shape=(network.config.features,))
    return DiffusionModel(process, network, space, "x_0", "moment").eval()


def binomial(network: BitPatterns, T: int = 20) -> DiffusionModel:
    process = BinomialProcess(InverseTimeSchedule().beta(T), network.config.base_rate)
    space = DataSpace(kind="bits", shape=(network.config.features,))
    return DiffusionModel(process, network, space, "x_0", None).eval()


def fair_bits() -> BitPatterns:
    """Five bits under base rate 1/2."""
    patterns = torch.tensor([[0, 0, 1, 1, 0], [1, 0, 1, 0, 1], [1, 1, 0, 0, 0]])
    return BitPatterns.from_values(torch.tensor([0.5, 0.3, 0.2]), patterns, 0.5)


def reals(rows: int, width: int = 2) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


# ---- the paper's product ----


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_observed_reals_come_back_bit_for_bit(
    sampler: Ancestral | DDIM | DPMSolver, mixture: GaussianMixture
) -> None:
    y = reals(30)
    known = torch.tensor([[True, False], [False, True], [True, True]]).repeat(10, 1)
    seen = Observation.of_reals(y, known)
    x = sample(gaussian(mixture), 30, seed=1, sampler=sampler, observation=seen)
    assert torch.equal(x[known], y[known])
    assert bool(torch.isfinite(x).all())
    assert bool((x != y)[~known].all())


def test_observed_bits_come_back_even_where_the_model_excludes_them(heartbeat: BitPatterns) -> None:
    y = (reals(40, 20) > 0).float()  # no heartbeat
    known = reals(40, 20) > 0.5
    x = sample(binomial(heartbeat), 40, seed=1, observation=Observation.of_bits(y, known))
    assert torch.equal(x[known], y[known])
    assert bool(((x == 0) | (x == 1)).all())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_observed_is_plain_sampling_bit_for_bit(
    sampler: Ancestral | DDIM | DPMSolver, mixture: GaussianMixture
) -> None:
    model = gaussian(mixture)
    plain = sample(model, 6, seed=1, sampler=sampler)
    nan = torch.full((6, 2), torch.nan)  # values that were not seen are not read
    for seen in (
        Observation.nothing(model.process, model.event, 6),
        Observation.of_reals(nan, torch.zeros(6, 2, dtype=torch.bool), 0.3),
    ):
        assert torch.equal(sample(model, 6, seed=1, sampler=sampler, observation=seen), plain)


def test_no_bits_observed_is_plain_sampling_bit_for_bit(heartbeat: BitPatterns) -> None:
    model = binomial(heartbeat)
    plain = sample(model, 6, seed=1)
    for seen in (
        Observation.nothing(model.process, model.event, 6),
        Observation.of_bits(torch.ones(6, 20), torch.zeros(6, 20, dtype=torch.bool)),
    ):
        assert torch.equal(sample(model, 6, seed=1, observation=seen), plain)


def test_one_step_of_the_product_is_the_exact_posterior(line: GaussianMixture) -> None:
    """From pure noise in one step p~(x_0) = p(x_0) r(x_0) / Z, so the product is exact there: mean
    and variance within 5 standard errors of 4,000 rows, element by element, seen and not seen."""
    rows = 4000
    y, known = torch.tensor([[1.0, -0.6, 0.0]]), torch.tensor([[True, True, False]])
    seen = Observation.of_reals(y.expand(rows, 3), known.expand(rows, 3), 0.5)
    x = sample(gaussian(line), rows, seed=1, sampler=Ancestral(steps=1), observation=seen)
    var = line.covariance().diag()
    factor = torch.where(known[0], 1 / 0.25, 0.0).double()
    posterior_var = 1 / (1 / var + factor)
    posterior_mean = posterior_var * (line.mean() / var + factor * y[0].double())
    z = (x.double() - posterior_mean) / posterior_var.sqrt()
    assert z.mean(0).abs().max() < 5 / rows**0.5
    assert (z.T.cov() - torch.eye(3).double()).abs().max() < 5 * (2 / rows) ** 0.5


def test_one_step_of_the_product_of_bits_is_bayes_for_each(heartbeat: BitPatterns) -> None:
    """p = 1/5, seen as a one through flips of 1/10: .2 .9 / (.2 .9 + .8 .1), within 5 errors."""
    rows = 2000
    y, known = torch.ones(rows, 20), (torch.arange(20) < 10).expand(rows, 20)
    seen = Observation.of_bits(y, known, 0.1)
    x = sample(binomial(heartbeat), rows, seed=1, sampler=Ancestral(steps=1), observation=seen)
    for part, wanted in ((x[:, :10], 0.18 / 0.26), (x[:, 10:], 0.2)):
        error = (part.double().mean(0) - wanted).abs().max()
        assert error < 5 * (wanted * (1 - wanted) / rows) ** 0.5


def test_noise_draws_the_samples_towards_what_was_seen(mixture: GaussianMixture) -> None:
    """The less noise, the nearer: in the limit the values themselves."""
    model, y = gaussian(mixture), torch.tensor([[0.6, 0.4]]).expand(400, 2)
    known = torch.ones(400, 2, dtype=torch.bool)
    distances = []
    for std in (10.0, 1.0, 0.1, 1e-3):
        x = sample(model, 400, seed=1, observation=Observation.of_reals(y, known, std))
        distances.append(float((x - y).square().mean().sqrt()))
    assert distances == sorted(distances, reverse=True)
    assert 0.3e-3 < distances[-1] < 1.5e-3


@pytest.mark.parametrize("sampler", [Ancestral(), Ancestral(steps=6), DDIM(steps=20, eta=1.0)])
def test_a_little_noise_is_no_jump(sampler: Ancestral | DDIM, line: GaussianMixture) -> None:
    """Seen through noise of 1/1000, samples lie within 6/1000 of what was seen."""
    y = line.sample(counter_noise(8, torch.arange(100), 0))
    seen = Observation.of_reals(y, torch.ones(100, 3, dtype=torch.bool), 1e-3)
    x = sample(gaussian(line), 100, seed=1, sampler=sampler, observation=seen)
    assert (x - y).abs().max() < 6e-3


@pytest.mark.parametrize("sampler", [DDIM(steps=20), DPMSolver(steps=20)])
def test_a_sampler_without_noise_refuses_a_noisy_observation(
    sampler: DDIM | DPMSolver, line: GaussianMixture
) -> None:
    """Its steps are points, which a noisy factor does not move: silence would be a wrong answer."""
    y, known = torch.full((2, 3), 1.5), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"noise.*use 'ancestral'"):
        sample(
            gaussian(line),
            2,
            seed=1,
            sampler=sampler,
            observation=Observation.of_reals(y, known, 0.1),
        )


# ---- observations as factors ----


def test_reals_are_seen_through_normal_noise() -> None:
    y, known = reals(3), torch.tensor([[True, False]]).expand(3, 2)
    factor = Observation.of_reals(y, known, torch.tensor([0.5, 2.0])).factor
    assert isinstance(factor, Normal)
    assert torch.equal(factor.mean[:, 0], y[:, 0])
    assert factor.var.tolist() == [[0.25, math.inf]] * 3
    exact = Observation.of_reals(y, known).factor
    assert isinstance(exact, Normal)
    assert exact.var.tolist() == [[0.0, math.inf]] * 3


@pytest.mark.parametrize("flips", [0.0, 0.1, 0.4999])
def test_bits_are_seen_through_flips(flips: float) -> None:
    """r(x_0) is proportional to P(y | x_0)."""
    y = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    known = torch.tensor([[True, True, False, False]])
    factor = Observation.of_bits(y, known, flips).factor
    assert isinstance(factor, Bernoulli)
    assert_close(factor.mean, torch.tensor([[flips, 1 - flips, 0.5, 0.5]]))


def test_an_observation_multiplies_a_kernel() -> None:
    kernel, factor = Normal(reals(3), torch.ones(3, 2)), Normal(-reals(3), 2 * torch.ones(3, 2))
    found, _ = Observation(factor).multiply(kernel)
    assert isinstance(found, Normal)
    assert_close(found.mean, kernel.multiply(factor)[0].mean)
    assert_close(found.var, torch.full((3, 2), 2 / 3))


# ---- the matched start ----


def test_matched_start_has_the_exact_posterior(mixture: GaussianMixture) -> None:
    """E and Cov of x_0 given y = x_0 + noise, within 5 standard errors of 1,500 chains."""
    rows, model = 1500, gaussian(mixture, 200)
    for y, noise in ((torch.tensor([[0.2, 0.1]]), 0.6), (torch.tensor([[0.9, -1.0]]), 0.25)):
        start = matched_start(model, y.expand(rows, 2), noise)
        x = sample(model, rows, seed=2, start=(start.t, start.x_t)).double()
        mean, covariance = mixture.posterior_given_noisy(y.double(), start.noise)
        assert bool(((x.mean(0) - mean[0]).abs() < 5 * (covariance[0].diag() / rows).sqrt()).all())
        off = x - mean[0]
        products = off[:, :, None] * off[:, None, :]
        error = products.std(0) / rows**0.5
        assert bool(((products.mean(0) - covariance[0]).abs() < 5 * error).all())


def test_matched_start_of_bits_has_the_exact_posterior() -> None:
    """P(pattern | y) by Bayes, y a datum with flipped bits, within 5 standard errors of 1,500."""
    rows, network = 1500, fair_bits()
    model = binomial(network, 100)
    y = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0]])
    start = matched_start(model, y.expand(rows, 5), 0.2)
    assert start.t == 40
    assert start.noise == pytest.approx(0.2)
    x = sample(model, rows, seed=2, start=(start.t, start.x_t)).double()
    flips = (network.patterns != y).sum(1)
    joint = network.weights * 0.2**flips * 0.8 ** (5 - flips)
    wanted = joint / joint.sum()
    counts = (x[:, None] == network.patterns).all(2).double().mean(0)
    assert bool(((counts - wanted).abs() < 5 * (wanted * (1 - wanted) / rows).sqrt()).all())


@pytest.mark.parametrize("noise", [1e-3, 0.1, 1.0, 30.0])
def test_matched_start_takes_the_nearest_step(noise: float, mixture: GaussianMixture) -> None:
    model, y = gaussian(mixture, 100), reals(3)
    start = matched_start(model, y, noise)
    t = torch.arange(1, 101)
    noises = (-model.process.log_snr(t) / 2).exp()
    distance = (noises.log() - math.log(noise)).abs()
    assert start.t == int(distance.argmin()) + 1
    assert start.noise == pytest.approx(float(noises[start.t - 1]))
    assert_close(start.x_t, float(model.process.alpha_bar[start.t].sqrt()) * y)


def test_matched_start_is_a_draw_from_the_marginal(line: GaussianMixture) -> None:
    """y = x_0 + noise n becomes sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) n, to rounding."""
    model = gaussian(line, 50)
    row = torch.arange(5)
    x_0, n = line.sample(counter_noise(0, row, 0)).double(), reals(5, 3).double()
    noise = matched_start(model, x_0, 0.7).noise
    start = matched_start(model, x_0 + noise * n, noise)
    marginal = model.process.marginal(x_0, torch.full((5,), start.t))
    assert isinstance(marginal, Normal)
    assert_close(start.x_t, marginal.mean + marginal.var.sqrt() * n)


def test_a_schedule_that_ends_without_signal_has_a_start_too(mixture: GaussianMixture) -> None:
    process = GaussianProcess(InverseTimeSchedule().beta(50))
    space = DataSpace(kind="vector", shape=(2,))
    model = DiffusionModel(process, mixture, space, "x_0", "moment")
    start = matched_start(model, reals(3), 1e4)
    assert start.t == 49
    assert bool(torch.isfinite(start.x_t).all())
    assert start.noise == pytest.approx(7.0)


def test_uneven_flips_have_no_matched_start(heartbeat: BitPatterns) -> None:
    with pytest.raises(
        ValueError, match=r"base rate 1/2, this process has 0\.2 .*use method 'product'"
    ):
        matched_start(binomial(heartbeat), torch.zeros(1, 20), 0.1)


@pytest.mark.parametrize("noise", [0.0, -0.5, math.nan])
def test_a_matched_start_needs_noise(noise: float, mixture: GaussianMixture) -> None:
    with pytest.raises(ValueError, match="above 0"):
        matched_start(gaussian(mixture), reals(1), noise)


@pytest.mark.parametrize(("noise", "says"), [(0.0, "above 0"), (0.5, "1/2"), (0.7, "1/2")])
def test_a_matched_start_of_bits_needs_flips_below_one_half(noise: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        matched_start(binomial(fair_bits()), torch.zeros(1, 5), noise)
