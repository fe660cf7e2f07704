"""Courses of systems: in one loop or by turns, all rows at once or a few, they go the same way."""

import pytest
import torch
from torch.testing import assert_close

from diffusion.model import DiffusionModel
from diffusion.networks import GaussianMixture
from diffusion.observation import Observation
from diffusion.operators import Dense, Mask
from diffusion.posterior import Product, sample_posterior
from diffusion.posterior.baselines import ProductKernel, RepaintKernel
from diffusion.posterior.particle_filter import ParticleFilter
from diffusion.posterior.smc import Particles, SMCKernel, SMCResult, run
from diffusion.posterior.twist import Twist
from diffusion.samplers import Ancestral, sample
from tests.diffusion.models import gaussian

NUMBER = torch.tensor([4, 0, 2])
Y = torch.tensor([[0.5, 0.0], [-1.0, 0.4], [0.0, 1.5]])
MASKED = Observation.of_reals(Y, torch.tensor([[True, False], [True, True], [False, True]]), 0.2)
LINE = Observation.of_linear(Dense(rows=((1.0, 0.5),)), Y[:, :1], (2,), 0.2)


def kernels(model: DiffusionModel) -> list[tuple[SMCKernel, Observation]]:
    plan = Ancestral(steps=6).plan(model)
    return [
        # One example's covariance is worked out, another's is not.
        (ParticleFilter(plan, 5, 2, Twist(covariance="full", products=1)), MASKED),
        (ParticleFilter(plan, 4, twist=Twist(covariance="diagonal")), LINE),
        (ParticleFilter(plan, 4), LINE),
        (RepaintKernel(plan, 2, 3), MASKED),
        (ProductKernel(plan), LINE),
    ]


@pytest.mark.parametrize("place", range(5))
def test_a_few_rows_at_once_are_all_of_them(place: int, mixture: GaussianMixture) -> None:
    model = gaussian(mixture)
    kernel, seen = kernels(model)[place]
    whole = run(model, kernel, seen, 3, NUMBER)
    systems = kernel.begin(model, seen, 3, NUMBER)
    for unit in range(len(kernel)):
        systems = kernel.step(model, systems, unit, 3)
    parts = SMCResult.of(model, kernel, systems)
    for ours, theirs in zip(parts.tensors(), whole.tensors(), strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("piece", [1, 2])
def test_a_step_made_in_pieces_is_the_step(
    place: int, piece: int, mixture: GaussianMixture
) -> None:
    """Nothing moves before the last piece; then the unit is the whole one."""
    model = gaussian(mixture)
    kernel, seen = kernels(model)[place]
    first, number = seen.rows(torch.tensor([0])), NUMBER[:1]
    whole = run(model, kernel, first, 3, number)
    systems, pieces = kernel.begin(model, first, 3, number), -(-kernel.particles // piece)
    for unit in range(len(kernel)):
        for k in range(pieces):
            before = systems
            systems = kernel.step(model, systems, unit, 2, piece)
            assert (systems.x is before.x) == (k < pieces - 1)
    parts = SMCResult.of(model, kernel, systems)
    for ours, theirs in zip(parts.tensors(), whole.tensors(), strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", range(5))
def test_systems_can_be_taken_apart_and_put_together(place: int, mixture: GaussianMixture) -> None:
    """Between any two steps, in any order."""
    model = gaussian(mixture)
    kernel, seen = kernels(model)[place]
    whole = run(model, kernel, seen, 3, NUMBER)
    systems, order = kernel.begin(model, seen, 3, NUMBER), torch.tensor([2, 0, 1])
    for unit in range(len(kernel)):
        parts = [kernel.step(model, systems.rows(order[i : i + 1]), unit) for i in range(3)]
        systems = Particles.joined(parts).rows(order.argsort())
    found = SMCResult.of(model, kernel, systems)
    for ours, theirs in zip(found.tensors(), whole.tensors(), strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_product_seen_one_by_one_is_that_of_plain_chains(mixture: GaussianMixture) -> None:
    """As a kernel of systems and as a chain: the same kernel, the same noise."""
    model = gaussian(mixture)
    kernel = ProductKernel(Ancestral(steps=6).plan(model))
    found = run(model, kernel, MASKED, 3, torch.arange(3)).samples[:, 0]
    chain = sample(model, 3, seed=3, sampler=Ancestral(steps=6), observation=MASKED)
    assert_close(found, chain)
    assert found[0, 0] != Y[0, 0]  # it was seen with noise


def test_a_dense_identity_is_a_mask(mixture: GaussianMixture) -> None:
    """The product by either: the same factor of every step, so the same moments; 2,000 samples,
    within 5 standard errors."""
    model, n = gaussian(mixture, 10), 2000
    y = torch.tensor([[0.4, -0.3]])
    one_by_one = Observation.of_reals(y, torch.ones(1, 2, dtype=torch.bool), 0.5)
    together = Observation.of_linear(Dense(rows=((1.0, 0.0), (0.0, 1.0))), y, (2,), 0.5)
    assert isinstance(one_by_one.operator, Mask)
    a, b = (
        sample_posterior(model, seen, n, seed=seed, method=Product()).samples[0].double()
        for seed, seen in ((1, one_by_one), (2, together))
    )
    error = (a.var(0) / n + b.var(0) / n).sqrt()
    assert bool(((a.mean(0) - b.mean(0)).abs() < 5 * error).all())
    assert_close(a.std(0), b.std(0), rtol=5 * (2 / n) ** 0.5, atol=0)


def test_what_a_course_costs(mixture: GaussianMixture) -> None:
    model = gaussian(mixture)
    found = [run(model, *pair, 3, NUMBER).evaluations.tolist() for pair in kernels(model)]
    assert found == [[5 * 11] * 3, [4 * 11] * 3, [4 * 11] * 3, [18] * 3, [6] * 3]
