"""Noise schedules: tables of beta_t, t = 0..T, in float64, with beta_0 = 0.

    alpha_bar_t = prod_{k <= t} (1 - beta_k),    SNR_t = alpha_bar_t / (1 - alpha_bar_t)

A schedule is a frozen configuration that computes its table; a learned table is stored as a tensor
of the artefact.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from typing_extensions import override


class Tables(nn.Module):
    """A module of float64 tables, which move to a device but are never cast."""

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # .float(), .bfloat16() and .to(device) all call this: change only the device.
        super()._apply(lambda x: x.to(fn(x).device), recurse)  # type: ignore[no-untyped-call]
        return self


class _Schedule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LinearSchedule(_Schedule):
    """beta increases from `first` to `last` in equal steps (Ho, Jain and Abbeel 2020)."""

    kind: Literal["linear"] = "linear"
    first: float = Field(1e-4, gt=0, lt=1)
    last: float = Field(0.02, gt=0, lt=1)

    def beta(self, T: int) -> Tensor:  # noqa: D102
        return _from_beta(torch.linspace(self.first, self.last, T, dtype=torch.float64))


class CosineSchedule(_Schedule):
    """alpha_bar = cos^2((t / T + offset) / (1 + offset) pi / 2) (Nichol and Dhariwal 2021, 17)."""

    kind: Literal["cosine"] = "cosine"
    offset: float = Field(0.008, ge=0)
    max_beta: float = Field(0.999, gt=0, lt=1)

    def beta(self, T: int) -> Tensor:  # noqa: D102
        u = torch.arange(T + 1, dtype=torch.float64) / T
        alpha_bar = ((u + self.offset) / (1 + self.offset) * (math.pi / 2)).cos().square()
        return _from_beta((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=self.max_beta))


class GeometricSchedule(_Schedule):
    """beta increases from `first` to `last` in equal ratios."""

    kind: Literal["geometric"] = "geometric"
    first: float = Field(1e-4, gt=0, lt=1)
    last: float = Field(0.5, gt=0, lt=1)

    def beta(self, T: int) -> Tensor:  # noqa: D102
        ends = (math.log(self.first), math.log(self.last))
        return _from_beta(torch.linspace(*ends, T, dtype=torch.float64).exp())


class InverseTimeSchedule(_Schedule):
    """beta_t = 1 / (T - t + 1), alpha_bar_t = 1 - t / T (Sohl-Dickstein et al. 2015, 2.4.1)."""

    kind: Literal["inverse-time"] = "inverse-time"

    def beta(self, T: int) -> Tensor:  # noqa: D102
        return _from_beta(1.0 / torch.arange(T, 0, -1, dtype=torch.float64))


class LogSnrSchedule(_Schedule):
    """log SNR goes from `first` at t = 1 to `last` at t = T in equal steps (Kingma et al. 2021)."""

    kind: Literal["linear-log-snr"] = "linear-log-snr"
    first: float = 13.3
    last: float = -5.0

    def beta(self, T: int) -> Tensor:  # noqa: D102
        return from_log_snr(torch.linspace(self.first, self.last, T, dtype=torch.float64))


class TableSchedule(_Schedule):
    """The schedule is the artefact's tensor `process.beta`, learned or converted."""

    kind: Literal["table"] = "table"

    def beta(self, T: int) -> Tensor:
        """Return a placeholder of the right shape, to be filled from the artefact."""
        return LogSnrSchedule().beta(T)  # some signal is left at t = T, as any prediction needs


Schedule = Annotated[
    LinearSchedule
    | CosineSchedule
    | GeometricSchedule
    | InverseTimeSchedule
    | LogSnrSchedule
    | TableSchedule,
    Field(discriminator="kind"),
]


def alpha_bar(beta: Tensor) -> Tensor:
    """Compute alpha_bar_t = prod_{k <= t} (1 - beta_k), float64 [T + 1]."""
    return (1.0 - beta.double()).cumprod(0)


def check_beta(beta: Tensor) -> None:
    """Raise ValueError unless beta_0 = 0 and the rest lies in (0, 1], with 1 only at t = T."""
    inner = beta[1:]
    if beta.ndim != 1 or len(beta) < 2 or beta[0] != 0:
        raise ValueError(
            "beta must be a table [T + 1] with beta[0] = 0 and T >= 1, came shape "
            f"{tuple(beta.shape)}, beginning {beta.flatten()[:2].tolist()}"
        )
    if not bool(((inner > 0) & (inner <= 1)).all()) or bool((inner[:-1] == 1).any()):
        raise ValueError(
            "beta[1..T] must lie above 0 and below 1 (1 is allowed at t = T alone): came values "
            f"from {inner.min().item():.3g} to {inner.max().item():.3g}"
        )


def _from_beta(beta: Tensor) -> Tensor:
    return torch.cat((beta.new_zeros(1), beta))


def from_log_snr(log_snr: Tensor) -> Tensor:
    """Convert log SNR at t = 1..T to beta, float64 [T] to [T + 1]; differentiable.

    With s = t - 1 and l_0 = infinity, it avoids the cancellation in 1 - alpha_bar_t / alpha_bar_s:

    beta_t = 1 - alpha_bar_t / alpha_bar_s = -expm1(logsigmoid(l_t) - logsigmoid(l_s))
    """
    log_alpha_bar = torch.nn.functional.logsigmoid(log_snr)
    before = torch.cat((log_alpha_bar.new_zeros(1), log_alpha_bar[:-1]))
    return _from_beta(-torch.expm1(log_alpha_bar - before))
