"""Observations: what was observed comes back, and products are what Bayes says."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.distributions import Bernoulli, Normal
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from diffusion.operators import AveragePooling, Dense, Mask
from diffusion.samplers import DDIM, Ancestral, DPMSolver, sample
from tests.diffusion.models import binomial, gaussian

SAMPLERS = [
    Ancestral(),
    Ancestral(steps=6),
    DDIM(steps=5),
    DDIM(steps=6, eta=1.0),
    DPMSolver(steps=5),
]


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
        model.process.nothing_seen(model.event, 6),
        Observation.of_reals(nan, torch.zeros(6, 2, dtype=torch.bool), 0.3),
    ):
        assert torch.equal(sample(model, 6, seed=1, sampler=sampler, observation=seen), plain)


def test_no_bits_observed_is_plain_sampling_bit_for_bit(heartbeat: BitPatterns) -> None:
    model = binomial(heartbeat)
    plain = sample(model, 6, seed=1)
    for seen in (
        model.process.nothing_seen(model.event, 6),
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


@pytest.mark.parametrize("flips", [0.0, 0.1])
def test_z_of_bits_is_the_sum_over_all_that_there_is(flips: float) -> None:
    """sum over x of kernel(x) P(y | x), by enumeration, what was not seen counting nothing."""
    kernel = Bernoulli(torch.tensor([[0.3, -1.2, 2.0]]).double())
    y, known = torch.tensor([[1.0, 0.0, 1.0]]).double(), torch.tensor([[True, True, False]])
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 3)
    likelihood = torch.where(x == y, 1 - flips, flips)[:, :2].prod(1)
    _, log_z = Observation.of_bits(y, known, flips).multiply(kernel)
    terms = Bernoulli(kernel.logits.expand(8, 3)).log_prob(x).exp() * likelihood
    assert_close(log_z.exp(), terms.sum()[None])


@pytest.mark.parametrize("std", [0.0, 0.4])
def test_a_mask_is_the_dense_operator_of_its_rows(std: float) -> None:
    """Products of a kernel, draws and Z alike, by elements or by a matrix."""
    kernel = Normal(reals(5, 4).double(), reals(5, 4).double().exp())
    y = torch.tensor([[0.3, -0.2]]).double().expand(5, 2)
    known = torch.tensor([[False, True, False, True]]).expand(5, 4)
    full = torch.zeros(5, 4).double()
    full[:, [1, 3]] = y
    dense = Dense(rows=((0, 1, 0, 0), (0, 0, 0, 1)))
    by_rows, log_z = Observation.of_linear(dense, y, (4,), std).multiply(kernel)
    by_mask, wanted = Observation.of_reals(full, known, std).multiply(kernel)
    assert_close(log_z, wanted)
    noise = counter_noise(0, torch.arange(5), 0)
    assert_close(by_rows.sample(noise), by_mask.sample(noise))


def test_masks_that_differ_have_rows_of_their_own() -> None:
    known = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])
    y, x = reals(3, 3), -reals(3, 3)
    matrix, off, var = Observation.of_reals(y, known, 0.5).linear(x)
    assert matrix.tolist() == [
        [[1, 0, 0], [0, 0, 1]],
        [[0, 1, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 0]],
    ]
    assert_close(off[0], 2 * y[0, [0, 2]].double())
    assert_close(off[1], torch.stack((2 * y[1, 1].double(), torch.zeros(()).double())))
    assert var[0].tolist() == [0.25, 0.25]
    # A row that is not there adds nothing to log N(0; 0, var).
    assert_close(torch.log(2 * math.pi * var[2]), torch.zeros(2).double())


def test_shapes_that_do_not_fit_and_singular_operators_are_refused() -> None:
    with pytest.raises(ValueError, match=r"this operator sees \[2\], came .* shape \[3\]"):
        Observation.of_linear(AveragePooling(size=2), torch.zeros(1, 3), (4,))
    twice = Dense(rows=((1, 2, 0), (2, 4, 0)))
    with pytest.raises(ValueError, match=r"singular operator.*noise above 0"):
        Observation.of_linear(twice, torch.zeros(1, 2), (3,))
    assert len(Observation.of_linear(twice, torch.zeros(1, 2), (3,), 0.1)) == 1
    assert isinstance(Observation.of_linear(Mask(), torch.zeros(1, 3), (3,)).operator, Mask)
