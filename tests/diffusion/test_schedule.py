"""Schedules: what every table must be, and each one's own formula."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.testing import assert_close

from diffusion.schedule import (
    CosineSchedule,
    GeometricSchedule,
    InverseTimeSchedule,
    LinearSchedule,
    LogSnrSchedule,
    Schedule,
    TableSchedule,
    alpha_bar,
    check_beta,
)

SCHEDULES = [
    LinearSchedule(),
    LinearSchedule(first=0.02, last=0.001),
    CosineSchedule(),
    CosineSchedule(offset=0.0),
    GeometricSchedule(),
    InverseTimeSchedule(),
    LogSnrSchedule(),
    LogSnrSchedule(first=20.0, last=-20.0),
    TableSchedule(),
]
ADAPTER: TypeAdapter[Schedule] = TypeAdapter(Schedule)


def named(schedule: Schedule) -> str:
    return schedule.kind


@pytest.mark.parametrize("T", [1, 2, 40, 1000])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_every_table_destroys_signal_step_by_step(schedule: Schedule, T: int) -> None:
    beta = schedule.beta(T)
    assert beta.dtype == torch.float64
    assert beta.shape == (T + 1,)
    assert beta[0] == 0
    assert bool(((beta[1:] > 0) & (beta[1:] <= 1)).all())
    check_beta(beta)
    signal = alpha_bar(beta)
    assert signal[0] == 1
    assert bool((signal.diff() < 0).all())
    assert signal[-1] >= 0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_a_schedule_survives_json(schedule: Schedule) -> None:
    again = ADAPTER.validate_json(schedule.model_dump_json())
    assert again == schedule
    assert torch.equal(again.beta(30), schedule.beta(30))


def test_linear_is_linear() -> None:
    beta = LinearSchedule(first=1e-4, last=0.02).beta(1000)
    assert beta[1] == 1e-4
    assert beta[-1] == 0.02
    assert_close(beta[1:].diff(), torch.full((999,), (0.02 - 1e-4) / 999, dtype=torch.float64))


def test_geometric_has_equal_ratios() -> None:
    beta = GeometricSchedule(first=1e-4, last=0.5).beta(50)
    assert_close(beta[[1, -1]], torch.tensor([1e-4, 0.5], dtype=torch.float64))
    assert_close(beta[2:] / beta[1:-1], torch.full((49,), 5000 ** (1 / 49), dtype=torch.float64))


def test_inverse_time_loses_the_same_signal_each_step() -> None:
    """beta_t = 1 / (T - t + 1): alpha_bar_t = 1 - t / T, and none is left at T."""
    for T in (1, 7, 2000):
        t = torch.arange(T + 1, dtype=torch.float64)
        signal = alpha_bar(InverseTimeSchedule().beta(T))
        assert_close(signal, 1 - t / T, rtol=1e-10, atol=1e-15)
        assert signal[-1] == 0


@pytest.mark.parametrize(("first", "last"), [(13.3, -5.0), (20.0, -20.0), (3.0, 2.0)])
def test_log_snr_is_linear_in_log_snr(first: float, last: float) -> None:
    signal = alpha_bar(LogSnrSchedule(first=first, last=last).beta(500))[1:]
    wanted = torch.linspace(first, last, 500, dtype=torch.float64)
    # alpha_bar itself is rounded near 1, at 1e-16 of a noise of e^-first.
    assert_close(torch.logit(signal), wanted, rtol=0, atol=1e-14 * math.exp(first) + 1e-11)


def test_log_snr_keeps_the_digits_of_a_small_first_step() -> None:
    """beta_1 = sigmoid(-first), which 1 - alpha_bar would round away."""
    beta = LogSnrSchedule(first=30.0, last=0.0).beta(10)
    assert float(beta[1]) == pytest.approx(math.exp(-30) / (1 + math.exp(-30)), rel=1e-12)


@pytest.mark.parametrize("offset", [0.008, 0.1])
def test_cosine_is_nichol_and_dhariwals(offset: float) -> None:
    """alpha_bar_t = f(t) / f(0), f = cos^2(((t/T + s) / (1 + s)) pi/2), but where beta is cut."""
    T = 100

    def f(t: int) -> float:
        return math.cos((t / T + offset) / (1 + offset) * math.pi / 2) ** 2

    beta = CosineSchedule(offset=offset).beta(T)
    signal = alpha_bar(beta)
    for t in range(T):
        assert float(signal[t]) == pytest.approx(f(t) / f(0), rel=1e-12)
    assert beta[-1] == 0.999
    assert CosineSchedule(offset=offset, max_beta=0.3).beta(T).max() == 0.3


def test_alpha_bar_is_the_running_product() -> None:
    beta = torch.tensor([0.0, 0.5, 0.1, 1.0], dtype=torch.float64)
    assert_close(alpha_bar(beta), torch.tensor([1.0, 0.5, 0.45, 0.0], dtype=torch.float64))
    assert alpha_bar(beta.float()).dtype == torch.float64


@pytest.mark.parametrize(
    ("beta", "says"),
    [
        (torch.tensor([0.1, 0.2]), r"beta\[0\] = 0"),
        (torch.tensor([0.0]), "T >= 1"),
        (torch.zeros(2, 2), r"shape \(2, 2\)"),
        (torch.tensor([0.0, 0.0, 0.1]), "came values from 0 to 0.1"),
        (torch.tensor([0.0, -0.1, 0.1]), "came values from -0.1"),
        (torch.tensor([0.0, 0.1, 1.1]), "to 1.1"),
        (torch.tensor([0.0, 1.0, 0.5]), "1 is allowed at t = T alone"),
        (torch.tensor([0.0, 0.1, torch.nan]), "above 0 and below 1"),
    ],
)
def test_what_is_no_table_is_refused(beta: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_beta(beta)


@pytest.mark.parametrize(
    "document",
    [
        {"kind": "quadratic"},
        {"kind": "linear", "first": 0.0},
        {"kind": "linear", "last": 1.0},
        {"kind": "cosine", "max_beta": 1.0},
        {"kind": "linear", "frist": 1e-4},
        {"kind": "inverse-time", "first": 1e-4},
    ],
)
def test_settings_are_checked(document: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(document)
