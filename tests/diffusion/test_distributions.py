"""Distributions: their figures against quadrature and enumeration, their products against Bayes."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.distributions import Bernoulli, Normal
from diffusion.noise import counter_noise

INF = math.inf
GRID = torch.linspace(-40, 40, 160_001, dtype=torch.float64)
CELL = float(GRID[1] - GRID[0])
BITS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)


def doubles(*values: float) -> Tensor:
    """One row."""
    return torch.tensor([values], dtype=torch.float64)


def normals() -> tuple[Normal, Normal]:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(4, 5, 2, 3, generator=generator, dtype=torch.float64)
    return Normal(numbers[0], numbers[1].exp()), Normal(numbers[2], numbers[3].exp())


def bernoullis() -> tuple[Bernoulli, Bernoulli]:
    logits = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Bernoulli(2 * logits[0]), Bernoulli(2 * logits[1])


def every(distribution: Bernoulli) -> Bernoulli:
    """One row of parameters for each of the 8 values."""
    return Bernoulli(distribution.logits.expand(8, 3))


# ---- Normal ----


def test_normal_density_entropy_and_kl_by_quadrature() -> None:
    p, q = Normal(doubles(0.7), doubles(2.3)), Normal(doubles(-1.0), doubles(0.9))
    log_p, log_q = (
        Normal(d.mean.expand(len(GRID), 1), d.var).log_prob(GRID[:, None]) for d in (p, q)
    )
    density = log_p.exp()
    assert float(density.sum()) * CELL == pytest.approx(1, abs=1e-9)
    assert float(p.entropy()) == pytest.approx(-float((density * log_p).sum()) * CELL, abs=1e-9)
    assert float(p.kl(q)) == pytest.approx(
        float((density * (log_p - log_q)).sum()) * CELL, abs=1e-9
    )


def test_normal_figures_are_torchs_summed_over_a_row() -> None:
    p, q = normals()
    P, Q = (torch.distributions.Normal(d.mean, d.var.sqrt()) for d in (p, q))
    x = q.mean
    assert_close(p.log_prob(x), P.log_prob(x).sum((1, 2)))
    assert_close(p.entropy(), P.entropy().sum((1, 2)))
    assert_close(p.kl(q), torch.distributions.kl_divergence(P, Q).sum((1, 2)))
    assert_close(p.kl(p), torch.zeros(5, dtype=torch.float64))


def test_one_variance_a_row_counts_for_each_element() -> None:
    p, q = normals()
    var = doubles(0.1, 0.4, 1.0, 2.0, 5.0).view(5, 1, 1)
    narrow, wide = Normal(p.mean, var), Normal(p.mean, var.expand(5, 2, 3))
    assert_close(narrow.entropy(), wide.entropy())
    assert_close(narrow.log_prob(q.mean), wide.log_prob(q.mean))
    for other in (q, Normal(q.mean, var)):
        assert_close(narrow.kl(other), wide.kl(other))
        assert_close(other.kl(narrow), other.kl(wide))
        assert_close(narrow.multiply(other)[1], wide.multiply(other)[1])


def test_normal_samples_have_its_moments() -> None:
    """Within 5 standard errors of 20,000 rows."""
    rows = torch.arange(20_000)
    p = Normal(doubles(1.0, -3.0).expand(20_000, 2), doubles(0.25, 4.0))
    x = p.sample(counter_noise(0, rows, 0))
    z = (x - p.mean) / p.var.sqrt()
    assert (z.mean(0)).abs().max() < 5 / 20_000**0.5
    assert (z.square().mean(0) - 1).abs().max() < 5 * (2 / 20_000) ** 0.5


def test_no_variance_gives_the_mean_bit_for_bit() -> None:
    mean = torch.randn(4, 3)
    noise = counter_noise(0, torch.arange(4), 0)
    assert torch.equal(Normal(mean, torch.zeros(4, 1)).sample(noise), mean)


def test_normal_product_is_bayes_everywhere() -> None:
    """log p(x) + log r(x) = log Z + log (p r / Z)(x) for every x."""
    p, r = normals()
    product, log_z = p.multiply(r)
    for x in (p.mean, r.mean, 3 * r.mean - p.mean):
        assert_close(p.log_prob(x) + r.log_prob(x), log_z + product.log_prob(x))


def test_normal_evidence_by_quadrature() -> None:
    p, r = Normal(doubles(0.7), doubles(2.3)), Normal(doubles(-1.0), doubles(0.9))
    log_joint = sum(
        Normal(d.mean.expand(len(GRID), 1), d.var).log_prob(GRID[:, None]) for d in (p, r)
    )
    assert isinstance(log_joint, Tensor)
    product, log_z = p.multiply(r)
    weights = log_joint.exp() * CELL
    Z = float(weights.sum())
    mean = float(weights @ GRID) / Z
    assert float(log_z) == pytest.approx(math.log(Z), abs=1e-9)
    assert float(product.mean) == pytest.approx(mean, abs=1e-9)
    assert float(product.var) == pytest.approx(float(weights @ (GRID - mean) ** 2) / Z, abs=1e-9)


def test_normal_product_commutes() -> None:
    p, r = normals()
    (one, log_one), (other, log_other) = p.multiply(r), r.multiply(p)
    assert_close(one.mean, other.mean)
    assert_close(one.var, other.var)
    assert_close(log_one, log_other)


def test_a_factor_that_saw_nothing_changes_no_bit() -> None:
    p, r = normals()
    product, log_z = p.multiply(Normal(r.mean, torch.full_like(r.var, INF)))
    assert torch.equal(product.mean, p.mean)
    assert torch.equal(product.var, p.var)
    assert torch.equal(log_z, torch.zeros(5, dtype=torch.float64))


def test_a_kernel_that_knows_nothing_takes_the_factor() -> None:
    """Either variance may be infinite."""
    p, r = normals()
    product, log_z = Normal(p.mean, torch.full_like(p.var, INF)).multiply(r)
    assert_close(product.mean, r.mean)
    assert_close(product.var, r.var)
    assert_close(log_z, torch.zeros(5, dtype=torch.float64))


def test_an_exact_factor_is_a_point_and_its_evidence_a_density() -> None:
    p, r = normals()
    product, log_z = p.multiply(Normal(r.mean, torch.zeros_like(r.var)))
    assert torch.equal(product.mean, r.mean)
    assert not product.var.any()
    assert_close(log_z, p.log_prob(r.mean))


def test_an_exact_kernel_is_not_moved() -> None:
    """A deterministic sampler's step has variance 0: a noisy factor only weighs it."""
    p, r = normals()
    product, log_z = Normal(p.mean, torch.zeros_like(p.var)).multiply(r)
    assert_close(product.mean, p.mean)
    assert not product.var.any()
    assert_close(log_z, r.log_prob(p.mean))
    product, _ = Normal(p.mean, torch.zeros_like(p.var)).multiply(
        Normal(r.mean, torch.zeros_like(r.var))
    )
    assert torch.equal(product.mean, r.mean)
    assert not product.var.any()


def test_each_element_has_its_own_factor() -> None:
    p = Normal(doubles(1.0, 2.0, 3.0), doubles(0.5, 0.5, 0.5))
    product, log_z = p.multiply(Normal(doubles(0.0, 5.0, 4.0), doubles(INF, 0.0, 1.5)))
    assert_close(product.mean, doubles(1.0, 5.0, 3.25))
    assert_close(product.var, doubles(0.5, 0.0, 0.375))
    seen = Normal(doubles(2.0, 3.0), doubles(0.5, 2.0)).log_prob(doubles(5.0, 4.0))
    assert_close(log_z, seen)


@pytest.mark.parametrize("var", [1e-3, 1e-6, 1e-8, 1e-12])
def test_a_sharp_factor_keeps_its_variance_in_float32(var: float) -> None:
    product, _ = Normal(torch.zeros(1, 1), torch.ones(1, 1)).multiply(
        Normal(torch.ones(1, 1), torch.full((1, 1), var))
    )
    assert float(product.var) == pytest.approx(var / (1 + var), rel=1e-5)


# ---- Bernoulli ----


def test_bernoulli_figures_by_enumeration() -> None:
    p, q = bernoullis()
    log_p, log_q = every(p).log_prob(BITS), every(q).log_prob(BITS)
    assert_close(log_p.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    assert_close(p.mean[0], log_p.exp() @ BITS)
    assert_close(p.entropy()[0], -(log_p.exp() * log_p).sum())
    assert_close(p.kl(q)[0], (log_p.exp() * (log_p - log_q)).sum())
    assert_close(p.kl(p), torch.zeros(1, dtype=torch.float64))


def test_bernoulli_product_by_enumeration() -> None:
    p, r = bernoullis()
    log_joint = every(p).log_prob(BITS) + every(r).log_prob(BITS)
    product, log_z = p.multiply(r)
    assert_close(log_z[0], log_joint.logsumexp(0))
    assert_close(every(product).log_prob(BITS), log_joint - log_joint.logsumexp(0))


def test_of_takes_a_probability() -> None:
    assert_close(Bernoulli.of(doubles(0.0, 0.2, 1.0)).mean, doubles(0.0, 0.2, 1.0))


def test_certain_bits() -> None:
    certain, p = Bernoulli(doubles(INF, -INF, INF)), Bernoulli(doubles(0.4, -1.0, 3.0))
    x = doubles(1.0, 0.0, 1.0)
    assert float(certain.entropy()) == 0
    assert float(certain.kl(certain)) == 0
    assert_close(certain.kl(p), -p.log_prob(x))
    assert float(p.kl(certain)) == INF
    assert float(certain.log_prob(x)) == 0
    assert float(certain.log_prob(1 - x)) == -INF
    product, log_z = p.multiply(certain)
    assert torch.equal(product.mean, x)
    assert_close(log_z, p.log_prob(x))


def test_a_bit_not_seen_is_left_alone() -> None:
    p, _ = bernoullis()
    product, log_z = p.multiply(Bernoulli(torch.zeros_like(p.logits)))
    assert torch.equal(product.logits, p.logits)
    assert_close(log_z, torch.full((1,), -3 * math.log(2), dtype=torch.float64))


def test_factors_that_exclude_each_other_have_no_evidence() -> None:
    _, log_z = Bernoulli(doubles(INF)).multiply(Bernoulli(doubles(-INF)))
    assert float(log_z) == -INF


def test_bernoulli_samples_have_its_mean() -> None:
    """Within 5 standard errors of 20,000 rows; what is certain is certain."""
    p = doubles(0.0, 0.003, 0.5, 0.9, 1.0)
    x = Bernoulli.of(p.expand(20_000, 5)).sample(counter_noise(0, torch.arange(20_000), 0))
    assert bool(((x == 0) | (x == 1)).all())
    error = (x.mean(0) - p[0]).abs()
    assert bool((error <= 5 * (p[0] * (1 - p[0]) / 20_000).sqrt()).all())
