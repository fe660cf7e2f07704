"""What the process allows: no chain leaves the finite numbers, and no truth is cut."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from typing_extensions import override

from diffusion.distributions import Normal
from diffusion.model import DiffusionModel
from diffusion.networks import GaussianMixture
from diffusion.networks.base import Network
from diffusion.noise import counter_noise
from diffusion.process import (
    GaussianPrediction,
    GaussianProcess,
    PredictionKind,
    VarianceKind,
)
from diffusion.samplers import DDIM, Ancestral, DPMSolver, Sampler, sample
from diffusion.schedule import InverseTimeSchedule, LogSnrSchedule, Schedule
from diffusion.space import DataSpace
from tests.diffusion.models import gaussian

T = 40


class Wild(Network):
    """Right within two standard deviations of the data, and ever more wrong beyond."""

    clock: Literal["step", "log_snr"] = "step"

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    @override
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        return (time,)

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        beyond = (x_t.abs() - 2).clamp_min(0)
        return torch.cat((0.5 * x_t - 20 * beyond * x_t, 50 * beyond - 1)[: self.count], 1)


def wild(
    prediction: PredictionKind,
    variance: VarianceKind | None,
    schedule: Schedule | None = None,
) -> DiffusionModel:
    process = GaussianProcess((schedule or LogSnrSchedule(first=14.0, last=-1.3)).beta(T))
    network = Wild(process.output(prediction, variance).count)
    space = DataSpace(kind="vector", shape=(2,))
    return DiffusionModel(process, network, space, prediction, variance).eval()


@pytest.mark.parametrize(
    ("prediction", "variance"),
    [("v", "moment"), ("v", "interpolated"), ("eps", "upper"), ("x_0", "moment")],
)
@pytest.mark.parametrize(
    "sampler",
    [*(Ancestral(steps=steps) for steps in (1, 2, 3, 5, 8, 40)), DDIM(steps=8), DPMSolver(steps=8)],
    ids=str,
)
def test_any_number_of_steps_stays_finite(
    sampler: Sampler, prediction: PredictionKind, variance: VarianceKind
) -> None:
    """And near the data: the prior's own draws are within 4, and no step goes far beyond them."""
    found = sample(wild(prediction, variance), 500, seed=0, sampler=sampler)
    assert bool(torch.isfinite(found).all())
    assert float(found.abs().max()) < 100


def test_a_schedule_that_ends_without_signal_is_within_limits_too() -> None:
    for prediction in ("v", "x_0"):
        model = wild(prediction, "moment", InverseTimeSchedule())
        assert bool(torch.isfinite(sample(model, 500, seed=0, sampler=Ancestral(steps=3))).all())


@pytest.mark.parametrize("variance", ["moment", "interpolated"])
@pytest.mark.parametrize(("t", "s"), [(40, 39), (40, 20), (27, 14), (14, 0), (1, 0)])
def test_a_learned_variance_is_what_the_stride_allows(
    t: int, s: int, variance: VarianceKind
) -> None:
    """q(x_s | x_t, x_0)'s own at least; at most beta's, or with 36 times the spread of x_0 that
    x_t leaves when nothing is known of x_0, (1 - alpha_bar) / alpha_bar."""
    model = wild("v", variance)
    x_t = torch.tensor([[-50.0, 0.0], [1.0, 3.0], [2.5, -2.2], [9.0, -0.3]])
    here, there = torch.full((4,), t), torch.full((4,), s)
    kernel = model.reverse_kernel(x_t, here, there)
    assert isinstance(kernel, Normal)
    of_x_0, _, least = model.process.posterior_coefficients(here, there)
    at = model.process.alpha_bar[t]
    most = least + of_x_0.square() * 36 * (1 - at) / at
    if variance == "interpolated":
        most = 1 - model.process.rate(here, there)
    assert bool((kernel.var >= least[:, None] * (1 - 1e-5)).all())
    assert bool((kernel.var <= most[:, None] * (1 + 1e-5)).all())
    assert bool((kernel.var > 0).all())


@pytest.mark.parametrize("weight", [0.5, 1e-3])
def test_no_truth_is_cut(weight: float) -> None:
    """Two narrow heaps far apart, in either proportion: of 40 steps by 2,000 draws of q(x_t), all
    of E[x_0 | x_t] and Var(x_0 | x_t), 1e-7 of which the limits may cut, are as they were."""
    apart = 1 / math.sqrt(weight * (1 - weight))  # of unit variance together
    means = torch.tensor([[(1 - weight) * apart], [-weight * apart]]).double()
    network = GaussianMixture.from_values(
        torch.tensor([weight, 1 - weight]).double(), means, torch.full((2, 1, 1), 1e-4).double()
    )
    model, count = gaussian(network, T), 2000
    for t in range(1, T + 1):
        row, here = torch.arange(count), torch.full((count,), t)
        x_0 = network.sample(counter_noise(0, row, 0)).double()
        x_t = model.process.marginal(x_0, here).sample(counter_noise(0, row, t))
        free, kept = (model.predict(x_t, here, clip) for clip in (False, True))
        assert isinstance(free, GaussianPrediction)
        assert isinstance(kept, GaussianPrediction)
        assert free.extra is not None
        assert kept.extra is not None
        assert torch.equal(kept.x_0, free.x_0)
        # Below, a variance of 1e-9 of what is left is as good as none.
        assert_close(kept.extra.exp(), free.extra.exp(), rtol=1e-12, atol=3e-9)
