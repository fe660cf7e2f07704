"""Plans: which steps, with which coefficients."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.testing import assert_close

from diffusion.distributions import Normal
from diffusion.model import DiffusionModel
from diffusion.networks import MLP, GaussianMixture, MLPConfig
from diffusion.process import BinomialProcess, GaussianProcess, VarianceKind, as_gaussian
from diffusion.samplers import DDIM, Ancestral, DPMSolver, Update
from diffusion.schedule import InverseTimeSchedule, LinearSchedule, LogSnrSchedule
from diffusion.space import DataSpace
from tests.diffusion.models import gaussian

Any_ = Ancestral | DDIM | DPMSolver


def bare(process: GaussianProcess | BinomialProcess) -> DiffusionModel:
    """A model of which only the process matters."""
    gaussian = isinstance(process, GaussianProcess)
    space = DataSpace(kind="vector" if gaussian else "bits", shape=(1,))
    variance: VarianceKind | None = "lower" if gaussian else None
    return DiffusionModel(process, nn.Identity(), space, "x_0", variance)


@pytest.mark.parametrize("T", [1, 2, 7, 40, 1000])
def test_plans_are_distinct_descending_steps_that_end_at_zero(T: int) -> None:
    process = GaussianProcess(LinearSchedule().beta(T))
    for steps in {1, 2, 3, T // 3, T - 1, T} & set(range(1, T + 1)):
        for start in {None, 1, 2, T // 2, T - 1, T} & {None, *range(1, T + 1)}:
            for sampler in (Ancestral(steps=steps), DDIM(steps=steps), DPMSolver(steps=steps)):
                plan = sampler.plan(bare(process), start)
                assert plan.t[0] == (start or T)
                assert bool((plan.t.diff() < 0).all())
                assert torch.equal(plan.s[:-1], plan.t[1:])
                assert plan.s[-1] == 0
                assert bool((plan.s < plan.t).all())
                assert bool(torch.isfinite(plan.table).all())
                assert not plan.own
                # A chain from the middle takes its share of the steps.
                assert len(plan) == max(1, round(steps * (start or T) / T))


def test_steps_are_evenly_spaced() -> None:
    process = GaussianProcess(LinearSchedule().beta(1000))
    for steps in (3, 7, 50, 999):
        gaps = -torch.cat((DDIM(steps=steps).plan(bare(process)).t, torch.zeros(1).long())).diff()
        assert gaps.max() - gaps.min() <= 1
    assert DDIM(steps=4).plan(bare(process)).t.tolist() == [1000, 750, 500, 250]
    assert Ancestral().plan(bare(process)).t.tolist() == list(range(1000, 0, -1))


@pytest.mark.parametrize("sampler", [Ancestral(steps=41), DDIM(steps=50), DPMSolver(steps=41)])
def test_more_steps_than_there_are_is_refused(sampler: Any_) -> None:
    process = GaussianProcess(LinearSchedule().beta(40))
    with pytest.raises(ValueError, match=r"has 40 steps, came \d+: ask for 40 or fewer"):
        sampler.plan(bare(process))


@pytest.mark.parametrize("sampler", [DDIM(steps=5), DPMSolver(steps=5)])
def test_bits_have_no_deterministic_sampler(sampler: Any_) -> None:
    process = BinomialProcess(InverseTimeSchedule().beta(40))
    with pytest.raises(ValueError, match=f"'{sampler.name}' is for real data: bits have"):
        sampler.plan(bare(process))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(Ancestral, {"steps": 0}), (DDIM, {"eta": 1.5}), (DDIM, {"eta": -0.1}), (DPMSolver, {"n": 2})],
)
def test_settings_are_checked(kind: type[Any_], settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(settings)


def test_ddim_with_eta_1_is_the_lower_kernel_at_every_stride(mixture: GaussianMixture) -> None:
    model = gaussian(mixture, 12, "lower")
    assert isinstance(model.process, GaussianProcess)
    x_t = torch.randn(12, 2, dtype=torch.float64)
    for steps in (12, 5, 2):
        plan = DDIM(steps=steps, eta=1.0).plan(model)
        inner = plan.s > 0  # at 0 DDIM takes x_0hat itself
        t, s, x = plan.t[inner], plan.s[inner], x_t[: int(inner.sum())]
        a, b, c, var, *_ = plan.table[inner].unbind(1)
        prediction = model.predict(x, t)
        kernel = model.reverse_kernel(x, t, s)
        assert isinstance(kernel, Normal)
        assert_close(a[:, None] * x + b[:, None] * prediction.x_0, kernel.mean)
        assert not c.any()
        _, _, wanted = model.process.posterior_coefficients(t, s)
        assert_close(var, wanted)
        assert plan.table[-1].tolist() == [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_ddim_keeps_the_marginal_of_the_true_x_0() -> None:
    """For any eta: given x_0, x_t ~ q(x_t | x_0) is taken to x_s ~ q(x_s | x_0)."""
    process = GaussianProcess(LinearSchedule(first=0.01, last=0.5).beta(20))
    for eta in (0.0, 0.3, 1.0):
        plan = DDIM(steps=6, eta=eta).plan(bare(process))
        a, b, _, var, *_ = plan.table.unbind(1)
        at_t, at_s = process.alpha_bar[plan.t], process.alpha_bar[plan.s]
        assert_close(a * at_t.sqrt() + b, at_s.sqrt())
        if eta < 1:
            assert_close(a.square() * (1 - at_t) + var, 1 - at_s)


def test_dpm_solver_begins_and_ends_as_ddim_and_sums_to_it() -> None:
    """Where x_0hat does not change, the order does not matter: b + c = DDIM's b."""
    process = GaussianProcess(LogSnrSchedule().beta(100))
    second, first = DPMSolver(steps=9).plan(bare(process)), DDIM(steps=9).plan(bare(process))
    assert_close(second.table[[0, -1]], first.table[[0, -1]])
    assert_close(second.table[:, 0], first.table[:, 0])
    assert_close(second.table[:, 1] + second.table[:, 2], first.table[:, 1])
    assert bool((second.table[1:-1, 2] < 0).all())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["lower", "upper", "interpolated", "moment"])
def test_an_ancestral_plan_holds_the_models_own_kernel(kind: VarianceKind) -> None:
    """At any stride and for any rows, in float32: to seven digits of the largest part."""
    torch.manual_seed(0)
    process = GaussianProcess(LogSnrSchedule().beta(40))
    network = MLP(
        MLPConfig(
            features=2,
            outputs=2 if kind in ("interpolated", "moment") else 1,
            width=8,
            zero_out=False,
        )
    )
    space = DataSpace(kind="vector", shape=(2,))
    model = DiffusionModel(process, network, space, "v", kind).eval()
    for steps in (40, 7, 1):
        plan = Ancestral(steps=steps).plan(model)
        x_t, whole = torch.randn(steps, 2), Update(plan.t, plan.s, plan.table, plan.own)
        prediction = as_gaussian(model.predict(x_t, whole.t))
        own, columns = prediction.kernel(whole.s), whole.columns(x_t)
        table = prediction._moved(x_t, columns, torch.zeros(1), False, whole.s)
        assert isinstance(own, Normal)
        assert isinstance(table, Normal)
        assert_close(table.mean, own.mean, rtol=1e-6, atol=1e-6)
        assert_close(table.var.expand_as(x_t), own.var.expand_as(x_t), rtol=1e-5, atol=1e-12)
