"""The optimal variance: exact where errors are known, and no other number is better."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.likelihood.bound import evaluate
from diffusion.model import DiffusionModel
from diffusion.networks import GaussianMixture
from diffusion.noise import counter_noise
from diffusion.profile import Profile
from diffusion.samplers import Ancestral
from tests.diffusion.bounds import drawn, expected, gaussian, sized

T = 12


def with_error(model: DiffusionModel, error: Tensor, last: Tensor | None = None) -> DiffusionModel:
    """The model with the optimal variance of these errors, [T + 1]."""
    profile = Profile(model.T, 1)
    profile.error.copy_(error)
    profile.last.copy_(error if last is None else last)
    return DiffusionModel(
        model.process, model.network, model.space, model.prediction, "optimal", profile
    ).eval()


def exact_error(model: DiffusionModel, var: float) -> Tensor:
    """Of one isotropic Gaussian: Var(x_0 | x_t) = var (1 - a) / (a var + 1 - a)."""
    a = model.process.alpha_bar
    return var * (1 - a) / (a * var + 1 - a)


@pytest.mark.parametrize("steps", [1, 3, T])
def test_one_gaussian_is_told_exactly(steps: int) -> None:
    """There the optimal kernel is the exact one: its bound is that of the moment match."""
    network = sized(3, 0.3, 0.5)
    model, x_0 = gaussian(network, steps), drawn(network, 5)
    optimal = with_error(model, exact_error(model, 0.3))
    assert_close(expected(optimal, x_0, "density"), expected(model, x_0, "density"))


@pytest.mark.parametrize(("t", "s"), [(1, 0), (5, 4), (12, 3), (7, 0)])
def test_no_other_number_gives_a_greater_bound(t: int, s: int, mixture: GaussianMixture) -> None:
    """On the rows that the error was measured on; any other variance loses."""
    model, x_0 = gaussian(mixture, T), drawn(mixture, 300)
    at, to = torch.full((300,), t), torch.full((300,), s)
    x_t = model.process.marginal(x_0, at).sample(counter_noise(0, torch.arange(300), 1))
    error = torch.zeros(T + 1, dtype=torch.float64)
    error[t] = (x_0 - model.predict(x_t, at).x_0).square().mean()

    def value(factor: float) -> float:
        changed = with_error(model, error * factor)
        found = evaluate(changed, changed.predict(x_t, at), x_0, x_t, at, "density", to)
        return float(found.mean())

    best = value(1.0)
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        assert value(factor) < best


def test_every_stride_of_a_plan_has_the_kernels_variance(mixture: GaussianMixture) -> None:
    model = gaussian(mixture, T)
    error = torch.linspace(0, 0.7, T + 1, dtype=torch.float64)
    optimal = with_error(model, error, 2 * error)
    for steps in (1, 4, T):
        plan = Ancestral(steps=steps).plan(optimal)
        x_t = torch.zeros(steps, 2, dtype=torch.float64)
        wanted = optimal.predict(x_t, plan.t).kernel(plan.s).var
        found = plan.table[:, 3:4] + plan.table[:, 4:5]
        assert_close(found, wanted.expand(-1, 1) if wanted.shape[1] == 1 else wanted[:, :1])
        assert float(wanted[-1, 0]) == pytest.approx(2 * float(error[plan.t[-1]]))


def test_it_is_between_the_others_in_the_bound(mixture: GaussianMixture) -> None:
    """At few steps, over 2,000 data: better than "lower" and "upper" by more than 4 standard
    errors of the paired differences; all steps, no worse."""
    x_0 = drawn(mixture, 2000)

    def terms(model: DiffusionModel, t: int) -> Tensor:
        at = torch.full((2000,), t)
        x_t = model.process.marginal(x_0, at).sample(counter_noise(0, torch.arange(2000), t))
        return evaluate(model, model.predict(x_t, at), x_0, x_t, at, "density")

    for steps in (3, 40):
        base = gaussian(mixture, steps)
        error = torch.zeros(steps + 1, dtype=torch.float64)
        for t in range(1, steps + 1):
            at = torch.full((2000,), t)
            noise = counter_noise(1, torch.arange(2000), t)
            x_t = base.process.marginal(x_0, at).sample(noise)
            error[t] = (x_0 - base.predict(x_t, at).x_0).square().mean()
        optimal = with_error(base, error)
        kinds: tuple[Literal["lower", "upper"], ...] = ("lower", "upper")
        for kind in kinds:
            other = DiffusionModel(base.process, base.network, base.space, "x_0", kind).eval()
            each = range(1, steps + 1)
            gained = sum(terms(optimal, t) - terms(other, t) for t in each)
            assert isinstance(gained, Tensor)
            standard_error = float(gained.std()) / math.sqrt(2000)
            assert float(gained.mean()) > (4 if steps == 3 else -2) * standard_error


def test_it_needs_a_profile(mixture: GaussianMixture) -> None:
    model = gaussian(mixture, T)
    with pytest.raises(ValueError, match=r"read from a profile.*training profile"):
        DiffusionModel(model.process, model.network, model.space, "x_0", "optimal")
