"""Bridges: Bayes, Chapman and Kolmogorov, and the ends, for all a < s < t, a row each."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.process import BinomialProcess, GaussianProcess
from diffusion.schedule import (
    CosineSchedule,
    InverseTimeSchedule,
    LinearSchedule,
    LogSnrSchedule,
    Schedule,
)

T = 9
TRIPLES = list(itertools.combinations(range(T + 1), 3))
SCHEDULES: list[Schedule] = [
    LinearSchedule(first=0.01, last=0.4),
    CosineSchedule(),
    InverseTimeSchedule(),
    LogSnrSchedule(first=6.0, last=-4.0),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
every_base_rate = pytest.mark.parametrize("base_rate", [0.5, 0.2, 0.9])


def triples() -> tuple[Tensor, Tensor, Tensor]:
    a, s, t = torch.tensor(TRIPLES).unbind(1)
    return t, s, a


def reals(seed: int) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(len(TRIPLES), 2, generator=dice, dtype=torch.float64)


@every_schedule
def test_gaussian_bridge_by_regression(schedule: Schedule) -> None:
    """(x_s, x_t) given x_a are jointly normal: x_s given x_t by regression."""
    process, (t, s, a) = GaussianProcess(schedule.beta(T)), triples()
    x_a, x_t = reals(0), reals(1)
    at_s = process.forward_kernel(x_a, s, a)
    slope = process.forward_kernel(torch.ones_like(x_a), t, s).mean
    mean_t = slope * at_s.mean
    var_t = slope.square() * at_s.var + process.forward_kernel(x_a, t, s).var
    gain = slope * at_s.var / var_t
    found = process.bridge(x_a, x_t, t, s, a)
    assert_close(found.mean, at_s.mean + gain * (x_t - mean_t))
    assert_close(found.var.expand_as(x_a), at_s.var - gain * slope * at_s.var)


@every_base_rate
@every_schedule
def test_binomial_bridge_by_enumeration(schedule: Schedule, base_rate: float) -> None:
    """q(x_s | x_t, x_a) over both values of x_s; averaged over x_t it is q(x_s | x_a)."""
    process, (t, s, a) = BinomialProcess(schedule.beta(T), base_rate), triples()
    column = torch.ones(len(t), 1, dtype=torch.float64)
    for bit in (0.0, 1.0):
        x_a, total = bit * column, torch.zeros_like(column)
        for end in (0.0, 1.0):
            x_t = end * column
            joint = [
                process.forward_kernel(x_a, s, a).log_prob(x_s)
                + process.forward_kernel(x_s, t, s).log_prob(x_t)
                for x_s in (0 * column, column)
            ]
            found = process.bridge(x_a, x_t, t, s, a).mean
            assert_close(found, torch.stack(joint, 1).softmax(1)[:, 1:])
            total += found * process.forward_kernel(x_a, t, a).log_prob(x_t).exp()[:, None]
        assert_close(total, process.forward_kernel(x_a, s, a).mean)


@every_schedule
def test_a_bridge_begins_where_it_begins(schedule: Schedule) -> None:
    """At s = a it is x_a, bit for bit."""
    t, _, a = triples()
    gaussian, x_a, x_t = GaussianProcess(schedule.beta(T)), reals(0), reals(1)
    found = gaussian.bridge(x_a, x_t, t, a, a)
    assert torch.equal(found.mean, x_a)
    assert not found.var.any()
    binomial = BinomialProcess(schedule.beta(T), 0.3)
    x_a, x_t = (x_a > 0).double(), (x_t > 0).double()
    assert torch.equal(binomial.bridge(x_a, x_t, t, a, a).mean, x_a)
