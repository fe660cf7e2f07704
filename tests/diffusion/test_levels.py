"""Probabilities of levels, likelihoods under the prior alone, and which convention fits."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.distributions import Normal
from diffusion.likelihood.bound import (
    bits,
    bound,
    check_convention,
    closed_last,
    null_log_prob,
)
from diffusion.networks import GaussianMixture
from diffusion.space import Convention, DataSpace
from tests.diffusion.bounds import (
    EVERY_LEVEL,
    LEVELS,
    binomial,
    drawn,
    expected,
    few_bits,
    gaussian,
    sized,
)

# ---- levels ----


def every_level(mean: Tensor, var: Tensor) -> Tensor:
    """log P of each of 256 levels under each of n kernels [n] -> [n, 256]."""
    n = len(mean)
    x = EVERY_LEVEL[:, None].repeat(n, 1)
    kernel = Normal(*(v.repeat_interleave(256)[:, None] for v in (mean, var)))
    return kernel.log_mass(x, LEVELS).view(n, 256)


def test_levels_have_probability_one_in_all() -> None:
    """Kernels of any width, within the range, beside it, and far off."""
    generator = torch.Generator().manual_seed(0)
    mean = 1.5 * torch.randn(60, generator=generator, dtype=torch.float64)
    log_var = torch.empty(60, dtype=torch.float64).uniform_(-30, 5, generator=generator)
    mean = torch.cat((mean, torch.tensor([-100.0, 1e4, 1.0, 0.0, 1 / 255]))).double()
    log_var = torch.cat((log_var, torch.tensor([-20.0, 0.0, -60.0, 20.0, -60.0])))
    log_prob = every_level(mean, log_var.exp())
    assert bool(torch.isfinite(log_prob).all())
    assert_close(log_prob.exp().sum(1), torch.ones(65).double(), rtol=0, atol=1e-12)


def test_a_levels_probability_by_quadrature_however_unlikely() -> None:
    """The density's integral over the bin, in logarithms: to e^-100,000."""
    h = 1 / 255
    nodes = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    simpson = torch.full_like(nodes, 2.0)
    simpson[1::2], simpson[0], simpson[-1] = 4.0, 1.0, 1.0
    for mean, std in ((0.0, 0.5), (0.2, 0.02), (-0.9, 0.005), (1.7, 0.05), (-3.0, 0.01)):
        found = every_level(torch.tensor([mean]), torch.tensor([std**2]).double())[0]
        for level in (1, 30, 127, 128, 200, 254):
            x = -1 + 2 * level / 255 + h * nodes
            log_density = -0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
            wanted = (log_density + (simpson * (nodes[1] - nodes[0]) * h / 3).log()).logsumexp(0)
            assert_close(found[level], wanted, rtol=1e-6, atol=1e-6)


def test_a_levels_probability_has_a_gradient_everywhere() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = 2 * torch.randn(40, generator=generator, dtype=torch.float64)
    var = torch.empty(40, dtype=torch.float64).uniform_(-25, 3, generator=generator).exp()
    mean.requires_grad_(), var.requires_grad_()
    found = every_level(mean, var)
    for gradient in torch.autograd.grad(found.sum(), (mean, var)):
        assert bool(torch.isfinite(gradient).all())
    near = torch.tensor([[0.1], [-0.4]], dtype=torch.float64, requires_grad=True)
    wide = torch.tensor([[0.3], [0.02]], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[-1.0], [1 / 255]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m, v: Normal(m, v).log_mass(x, LEVELS), (near, wide))


# ---- the prior alone ----


def test_null_is_a_likelihood() -> None:
    """Over all data in its units it sums, or integrates, to one."""
    grid = torch.linspace(-3000, 3000, 60_001, dtype=torch.float64)[:, None]
    space = DataSpace(kind="vector", shape=(1,), shift=3.0, scale=200.0)
    model = gaussian(sized(1, 1.0), 5, space=space)
    density = null_log_prob(model, (grid - 3) / 200, "density").exp()
    assert float(density.sum()) * 0.1 == pytest.approx(1, abs=1e-6)
    levels = LEVELS.to_model(torch.arange(256.0)[:, None])
    model = gaussian(sized(1, 1.0), 5, space=LEVELS)
    assert float(null_log_prob(model, levels, "discretised").exp().sum()) == pytest.approx(1)
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)))
    bit_model = binomial(few_bits(0.2), 5)
    conventions: list[Convention] = ["discretised", "paper"]
    for convention in conventions:
        log_prob = null_log_prob(bit_model, states, convention)
        assert float(log_prob.exp().sum()) == pytest.approx(1)
        assert float(log_prob[0]) == pytest.approx(3 * math.log(0.8))


def test_a_model_that_learned_nothing_is_the_prior() -> None:
    """The oracle of N(0, 1) says what pi says."""
    model = gaussian(sized(1, 1.0), 9)
    x_0 = torch.tensor([[0.3], [-2.0]], dtype=torch.float64)
    assert_close(
        expected(model, x_0, "density"), null_log_prob(model, x_0, "density"), rtol=0, atol=1e-4
    )


def test_only_the_papers_last_step_is_closed(line: GaussianMixture) -> None:
    model, x_0 = gaussian(line, 5), drawn(line, 2)
    assert closed_last(model, x_0, "density") is None
    found = closed_last(model, x_0, "paper")
    assert found is not None
    assert_close(found, -model.process.marginal(x_0, torch.tensor([1, 1])).entropy())


def test_a_convention_must_fit_the_data(line: GaussianMixture) -> None:
    real, bit = gaussian(line, 5), binomial(few_bits(0.5), 5)
    with pytest.raises(ValueError, match='use "density" or "paper"'):
        check_convention(real, "discretised")
    with pytest.raises(ValueError, match='use "discretised" or "paper"'):
        bound(bit, torch.zeros(1, 3), seed=0, convention="density")
    with pytest.raises(ValueError, match='use "density" or "paper"'):
        Normal(torch.zeros(1, 3), torch.ones(1, 3)).log_mass(torch.zeros(1, 3), real.space)
    for model, own in ((real, "density"), (bit, "discretised")):
        assert model.space.default_convention == own
        check_convention(model, model.space.default_convention)
        check_convention(model, "paper")


def test_bits_of_nats() -> None:
    assert bits(math.log(8)) == pytest.approx(3)
