"""RePaint: its timeline, and what was seen in every answer."""

import itertools

import pytest
import torch

from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.observation import Observation
from diffusion.operators import Dense
from diffusion.posterior.baselines import RepaintKernel, timeline
from diffusion.posterior.smc import SMCResult, run
from diffusion.samplers import Ancestral, Plan
from tests.diffusion.models import binomial, gaussian


def repaint(
    model: DiffusionModel,
    observation: Observation,
    plan: Plan,
    jump: int = 10,
    times: int = 10,
) -> SMCResult:
    kernel = RepaintKernel(plan, jump, times)
    return run(model, kernel, observation, 1, torch.arange(len(observation)))


@pytest.mark.parametrize(("steps", "jump", "times"), [(6, 2, 3), (7, 3, 2), (4, 9, 5), (5, 1, 1)])
def test_each_stretch_is_made_so_often(steps: int, jump: int, times: int) -> None:
    """From 0 to all steps, down one at a time and back up `jump`; the last whole stretches each
    `times` times, what comes before them once."""
    way = timeline(steps, jump, times)
    moves = [b - a for a, b in itertools.pairwise(way)]
    assert (way[0], way[-1]) == (0, steps)
    assert set(moves) <= {1, -jump}
    made = [sum(a == k and b == k + 1 for a, b in itertools.pairwise(way)) for k in range(steps)]
    assert made == [1 if k < steps % jump else times for k in range(steps)] or jump > steps
    assert sum(made) == (steps if jump > steps else steps % jump + times * (steps // jump * jump))


def test_exact_reals_come_back_bit_for_bit(mixture: GaussianMixture) -> None:
    model = gaussian(mixture)
    y, known = torch.randn(9, 2), torch.tensor([[True, False]]).expand(9, 2)
    plan = Ancestral(steps=6).plan(model)
    found = repaint(model, Observation.of_reals(y, known), plan, jump=3, times=2)
    x = found.samples[:, 0]
    assert torch.equal(x[:, 0], y[:, 0])
    assert bool((x[:, 1] != y[:, 1]).all())
    assert found.evaluations.tolist() == [12] * 9


def test_exact_bits_come_back_and_flips_are_refused(heartbeat: BitPatterns) -> None:
    model, plan = binomial(heartbeat), Ancestral(steps=6).plan(binomial(heartbeat))
    y, known = (torch.rand(9, 20) < 0.5).float(), torch.rand(9, 20) < 0.5
    x = repaint(model, Observation.of_bits(y, known), plan, jump=2, times=2).samples[:, 0]
    assert torch.equal(x[known], y[known])
    with pytest.raises(ValueError, match="use 'twisted'"):
        repaint(model, Observation.of_bits(y, known, 0.1), plan)


def test_numbers_seen_through_a_matrix_come_back(mixture: GaussianMixture) -> None:
    """Without noise A x_0 = y, to rounding; with noise above the chain's own y is left alone."""
    model, matrix = gaussian(mixture), Dense(rows=((1.0, 0.5),))
    plan = Ancestral(steps=6).plan(model)
    y = torch.full((9, 1), 0.3)
    x = repaint(model, Observation.of_linear(matrix, y, (2,)), plan, times=1).samples[:, 0]
    torch.testing.assert_close(matrix.forward(x), y)
    vague = Observation.of_linear(matrix, y, (2,), 1e6)
    other = Observation.of_linear(matrix, y + 5, (2,), 1e6)
    assert torch.equal(repaint(model, vague, plan).samples, repaint(model, other, plan).samples)
