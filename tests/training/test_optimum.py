"""The best table: better than every other, and no better than what the ideal kernel says of it."""

import math

import torch

from diffusion.process import GaussianProcess
from diffusion.schedule import GeometricSchedule, LinearSchedule, LogSnrSchedule, alpha_bar
from training.data.swissroll import SwissRoll
from training.study import ideal

ROLL = SwissRoll(0.15)
T = 4
FIRST = 5.0


def K(beta: torch.Tensor) -> float:
    """Of the ideal kernel, nats, on draws of its own."""
    return ideal.swissroll(ROLL, GaussianProcess(beta), "density", rows=200).bound


def test_no_table_with_its_first_step_is_better() -> None:
    best = ideal.best_table(ROLL, T, FIRST, levels=60, rows=100)
    first = float(best[1])
    assert torch.logit(alpha_bar(best)[1:])[0].item() - FIRST < 1e-9
    others = [
        LinearSchedule(first=first, last=0.7).beta(T),
        GeometricSchedule(first=first, last=0.9).beta(T),
        *(LogSnrSchedule(first=FIRST, last=last).beta(T) for last in (-2.0, -4.0)),
    ]
    assert all(K(best) > K(other) for other in others)
    free = ideal.best_table(ROLL, T, FIRST, ends="learned", levels=60, rows=100)
    assert K(free) > K(best) - 0.01


def test_a_gaussian_needs_no_steps() -> None:
    """noise = .9999: each table loses nothing, so the best one does not lose either."""
    best = ideal.best_table(SwissRoll(0.9999), T, FIRST, levels=20, rows=20)
    found = ideal.swissroll(SwissRoll(0.9999), GaussianProcess(best), "density", rows=20)
    assert abs(found.bound + math.log(2 * math.pi * math.e)) < 1e-3
