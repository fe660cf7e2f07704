"""The model: rows that do not know of each other, clipping, clocks, and parts that must fit."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from diffusion.distributions import Bernoulli, Distribution, Normal
from diffusion.model import DiffusionModel
from diffusion.networks import MLP, BitPatterns, GaussianMixture, MLPConfig
from diffusion.process import (
    BinomialProcess,
    GaussianProcess,
    PredictionKind,
    Process,
    VarianceKind,
)
from diffusion.schedule import InverseTimeSchedule, LinearSchedule, LogSnrSchedule
from diffusion.space import DataSpace

T = 6
D = 3
VECTOR = DataSpace(kind="vector", shape=(D,))
BITS = DataSpace(kind="bits", shape=(D,))
GAUSSIAN_KINDS: list[tuple[PredictionKind, VarianceKind | None]] = [
    ("eps", "lower"),
    ("eps", "upper"),
    ("x_0", "moment"),
    ("v", "interpolated"),
    ("perturbation", None),
]
BIT_KINDS: list[tuple[PredictionKind, VarianceKind | None]] = [
    ("x_0", None),
    ("perturbation", None),
]
ALL_KINDS = [("gaussian", *kinds) for kinds in GAUSSIAN_KINDS] + [
    ("binomial", *kinds) for kinds in BIT_KINDS
]


def made(kind: str, prediction: PredictionKind, variance: VarianceKind | None) -> DiffusionModel:
    """A dense network with random weights, float64."""
    beta = LogSnrSchedule(first=5.0, last=-4.0).beta(T)
    gaussian = kind == "gaussian"
    process: Process = GaussianProcess(beta) if gaussian else BinomialProcess(beta, 0.3)
    config = MLPConfig(
        features=D,
        outputs=2 if process.output(prediction, variance).count == 2 else 1,
        width=16,
        zero_out=False,
    )
    space = VECTOR if gaussian else BITS
    return DiffusionModel(process, MLP(config).double(), space, prediction, variance).eval()


def rows(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t, s of every stride at once."""
    t, s = torch.tensor([(t, s) for t in range(1, T + 1) for s in range(t)]).unbind(1)
    x = torch.randn(len(t), D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (x if kind == "gaussian" else (x > 0).double()), t, s


def numbers(kernel: Distribution) -> Tensor:
    if isinstance(kernel, Normal):
        return torch.cat((kernel.mean, kernel.var.expand_as(kernel.mean)), 1)
    assert isinstance(kernel, Bernoulli)
    return kernel.logits


@torch.no_grad()
@pytest.mark.parametrize(("kind", "prediction", "variance"), ALL_KINDS)
def test_a_row_alone_is_the_row_in_a_batch_of_any_steps(
    kind: str, prediction: PredictionKind, variance: VarianceKind | None
) -> None:
    model, (x_t, t, s) = made(kind, prediction, variance), rows(kind)
    whole = numbers(model.reverse_kernel(x_t, t, s))
    assert bool(torch.isfinite(whole).all())
    for i in range(len(t)):
        one = slice(i, i + 1)
        assert_close(numbers(model.reverse_kernel(x_t[one], t[one], s[one])), whole[one])


@torch.no_grad()
@pytest.mark.parametrize(("kind", "prediction", "variance"), ALL_KINDS)
def test_a_kernel_has_its_inputs_shape_and_type(
    kind: str, prediction: PredictionKind, variance: VarianceKind | None
) -> None:
    model, (x_t, t, s) = made(kind, prediction, variance), rows(kind)
    model.network.float()
    found = model.predict(x_t.float(), t)
    told = numbers(found.kernel(s))
    assert found.x_0.shape == x_t.shape == told[:, :D].shape
    assert found.x_0.dtype == told.dtype == torch.float32
    assert (model.T, model.event, model.device.type) == (T, (D,), "cpu")


def test_a_kernel_is_differentiable_in_every_weight() -> None:
    for kinds in ALL_KINDS:
        model, (x_t, t, s) = made(*kinds), rows(kinds[0])
        numbers(model.reverse_kernel(x_t, t, s)).square().sum().backward()
        grads = [p.grad for p in model.parameters()]
        assert all(g is not None and bool(torch.isfinite(g).all()) for g in grads)
        assert all(g is not None and bool(g.any()) for g in grads)


class Asked(nn.Module):
    """Returns a constant and keeps the time it was asked at."""

    def __init__(self, clock: str, value: float, times: int = 1) -> None:
        super().__init__()
        self.clock, self.value, self.times = clock, value, times
        self.time = torch.empty(0)

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        self.time = time
        return torch.full_like(x_t, self.value).repeat(1, self.times)


def test_a_network_reads_its_own_clock() -> None:
    process, t = GaussianProcess(InverseTimeSchedule().beta(4)), torch.tensor([1, 2, 4])
    for clock, wanted in (("step", [0.0, 1.0, 3.0]), ("log_snr", [math.log(3), 0.0, -math.inf])):
        network = Asked(clock, 0.0)
        DiffusionModel(process, network, VECTOR, "x_0", "lower").predict(torch.zeros(3, D), t)
        assert network.time.dtype == torch.float32
        assert_close(network.time, torch.tensor(wanted))


def test_x_0_is_kept_in_the_range_of_levels_unless_asked_not_to_be() -> None:
    space = DataSpace(kind="vector", shape=(D,), shift=127.5, scale=127.5, levels=256)
    process = GaussianProcess(LinearSchedule().beta(T))
    x_t, t = torch.zeros(2, D), torch.tensor([1, T])
    for value in (-3.0, -0.5, 3.0):
        model = DiffusionModel(process, Asked("step", value), space, "x_0", "lower")
        assert bool((model.predict(x_t, t).x_0 == min(max(value, -1.0), 1.0)).all())
        assert bool((model.predict(x_t, t, clip=False).x_0 == value).all())
    free = DiffusionModel(process, Asked("step", 3.0), VECTOR, "x_0", "lower")
    assert bool((free.predict(x_t, t).x_0 == 3.0).all())


def test_the_reverse_kernel_is_the_predictions(mixture: GaussianMixture) -> None:
    space = DataSpace(kind="vector", shape=(2,))
    process = GaussianProcess(LogSnrSchedule().beta(T))
    model = DiffusionModel(process, mixture, space, "x_0", "moment")
    x_t, t, s = torch.randn(3, 2), torch.tensor([1, 4, 6]), torch.tensor([0, 1, 5])
    found = model.reverse_kernel(x_t, t, s)
    wanted = model.predict(x_t, t).kernel(s)
    assert torch.equal(numbers(found), numbers(wanted))


def test_the_oracles_estimate_is_the_exact_probability(one_hot: BitPatterns) -> None:
    """P(x_0 = 1 | x_t) by Bayes over the three patterns."""
    process = BinomialProcess(InverseTimeSchedule().beta(T), 1 / 3)
    model = DiffusionModel(process, one_hot, BITS, "x_0", None)
    t = torch.arange(1, T + 1)
    x_t = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64).expand(T, D)
    joint = torch.stack(
        [process.marginal(p.expand(T, D), t).log_prob(x_t) for p in torch.eye(3).double()], 1
    )
    wanted = joint.softmax(1) @ torch.eye(3, dtype=torch.float64)
    assert_close(model.predict(x_t, t).x_0, wanted, rtol=1e-6, atol=1e-6)


def gaussian(**changes: object) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "process": GaussianProcess(LinearSchedule().beta(T)),
        "network": Asked("step", 0.0),
        "space": VECTOR,
        "prediction": "eps",
        "variance": "lower",
    }
    parts.update(changes)
    return parts


def binomial(**changes: object) -> dict[str, Any]:
    process = BinomialProcess(InverseTimeSchedule().beta(T))
    return gaussian(process=process, space=BITS, prediction="x_0", variance=None) | changes


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (gaussian(prediction="epsilon"), "one of .*came 'epsilon'"),
        (gaussian(variance="learned"), "one of .*came 'learned'"),
        (gaussian(variance=None), "came None"),
        (gaussian(prediction="perturbation"), "leave out 'lower'"),
        (gaussian(space=BITS), "bits need a binomial process"),
        (gaussian(process=GaussianProcess(InverseTimeSchedule().beta(T))), "use 'v' or 'x_0'"),
        (binomial(space=VECTOR), "kind 'vector'"),
        (binomial(prediction="eps"), "predicts 'x_0' or 'perturbation'"),
        (binomial(variance="lower"), "has no variance"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DiffusionModel(**parts)


def test_how_many_outputs_a_network_gives() -> None:
    real, bits = gaussian()["process"], binomial()["process"]
    assert [real.output(*kinds).count for kinds in GAUSSIAN_KINDS] == [1, 1, 2, 2, 2]
    assert [bits.output(*kinds).count for kinds in BIT_KINDS] == [1, 1]
