"""Translate diffusers' scheduler settings to our process and prediction, and back.

linear              beta from beta_start to beta_end
scaled_linear       sqrt(beta) from sqrt(beta_start) to sqrt(beta_end)
squaredcos_cap_v2   the cosine schedule
sigmoid             beta_start + (beta_end - beta_start) sigmoid(u), u from -6 to 6
rescale_betas_zero_snr   sqrt(alpha_bar) shifted to 0 at t = T and scaled to its old value at
t = 1 (Lin et al. 2024, Algorithm 1)
"""

from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from diffusion.process import GaussianConfig, PredictionKind, VarianceKind
from diffusion.schedule import CosineSchedule, LinearSchedule, Schedule, TableSchedule, alpha_bar
from training.config import Frozen
from training.convert.found import ConvertError

PREDICTIONS: dict[str, PredictionKind] = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}
VARIANCES: dict[str, VarianceKind] = {
    "fixed_small": "lower",
    "fixed_small_log": "lower",
    "fixed_large": "upper",
    "fixed_large_log": "upper",
    "learned_range": "interpolated",
}


class SchedulerDocument(Frozen):
    """`scheduler_config.json` of a DDPMScheduler or a DDIMScheduler, with diffusers' defaults."""

    model_config = ConfigDict(populate_by_name=True)
    class_name: Literal["DDPMScheduler", "DDIMScheduler"] = Field(alias="_class_name")
    diffusers_version: str | None = Field(None, alias="_diffusers_version")
    num_train_timesteps: int = Field(1000, ge=1)
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    variance_type: Literal[
        "fixed_small",
        "fixed_small_log",
        "fixed_large",
        "fixed_large_log",
        "learned",
        "learned_range",
    ] = "fixed_small"
    rescale_betas_zero_snr: bool = False
    # Only for sampling: these do not affect the weights or the likelihood.
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    # From old versions, without effect today.
    timestep_values: None = None
    timesteps: int | None = None
    tensor_format: str | None = None

    @property
    def T(self) -> int:
        """Number of steps."""
        return len(self.trained_betas) if self.trained_betas else self.num_train_timesteps

    def schedule(self) -> tuple[Schedule, Tensor | None]:
        """The schedule, and beta, float64 [T + 1], if the schedule is a table."""
        if not self.trained_betas and not self.rescale_betas_zero_snr:
            if self.beta_schedule == "linear":
                return LinearSchedule(first=self.beta_start, last=self.beta_end), None
            if self.beta_schedule == "squaredcos_cap_v2":
                return CosineSchedule(), None
        beta = self._beta()
        if self.rescale_betas_zero_snr:
            beta = zero_terminal_snr(beta)
        return TableSchedule(), beta

    def variance(self, outputs: int) -> VarianceKind:
        """The reverse kernel's variance, for a network with `outputs` outputs per element."""
        if self.variance_type == "learned":
            raise ConvertError(
                "variance_type = 'learned' reads the network's second output as the variance "
                "itself, which nothing keeps above 0; only 'learned_range' can be converted"
            )
        learned = self.class_name == "DDPMScheduler" and self.variance_type == "learned_range"
        if outputs != 1 + learned:
            raise ConvertError(
                f"{self.class_name} with variance_type = {self.variance_type!r} needs a network "
                f"with {1 + learned} outputs per element, this one has {outputs}"
            )
        return VARIANCES[self.variance_type]

    def notes(self) -> tuple[str, ...]:
        """Sampler settings that an artefact does not keep, as sentences."""
        said = []
        if not self.clip_sample or self.clip_sample_range != 1:
            said.append(
                f"clip_sample = {self.clip_sample}, clip_sample_range = "
                f"{self.clip_sample_range:g}: here x_0hat is always kept within the levels' range"
            )
        if self.thresholding:
            said.append("thresholding (dynamic): here x_0hat is clipped instead")
        if self.class_name == "DDIMScheduler":
            said.append("DDIMScheduler: the sampler is chosen at each request, `ddim` is one")
        if self.variance_type == "fixed_large_log":
            said.append("fixed_large_log: read as fixed_large, of which it is the logarithm")
        if not self.set_alpha_to_one:
            said.append("set_alpha_to_one = False: here the last step ends at x_0 itself")
        return tuple(said)

    def _beta(self) -> Tensor:
        ends, T = (self.beta_start, self.beta_end), self.num_train_timesteps
        line = torch.linspace(*ends, T, dtype=torch.float64)
        if self.trained_betas:
            inner = torch.tensor(self.trained_betas, dtype=torch.float64)
        elif self.beta_schedule == "squaredcos_cap_v2":
            return CosineSchedule().beta(T)
        elif self.beta_schedule == "scaled_linear":
            inner = torch.linspace(ends[0] ** 0.5, ends[1] ** 0.5, T, dtype=torch.float64).square()
        elif self.beta_schedule == "sigmoid":
            u = torch.linspace(-6, 6, T, dtype=torch.float64)
            inner = ends[0] + (ends[1] - ends[0]) * u.sigmoid()
        else:
            inner = line
        return torch.cat((inner.new_zeros(1), inner))


def zero_terminal_snr(beta: Tensor) -> Tensor:
    """Shift the table so that alpha_bar_T = 0, float64 [T + 1]; see the module's docstring."""
    signal = alpha_bar(beta)[1:].sqrt()
    moved = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    kept = torch.cat((moved.new_ones(2), moved[:-1])).square()
    at = torch.cat((moved.new_ones(1), moved)).square()
    return 1 - at / kept


def scheduler_settings(
    process: GaussianConfig, beta: Tensor, prediction: PredictionKind, variance: VarianceKind
) -> dict[str, Any]:
    """The `scheduler_config.json` of a DDPMScheduler with this process.

    A schedule that diffusers has no name for is written as a table (`trained_betas`).

    Args:
        process: configuration of the process.
        beta: float64 [T + 1].
        prediction: one of `PREDICTIONS`.
        variance: one of `VARIANCES`.
    """
    theirs = {ours: name for name, ours in reversed(VARIANCES.items())}
    settings: dict[str, Any] = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": process.T,
        "prediction_type": {ours: name for name, ours in PREDICTIONS.items()}[prediction],
        "variance_type": theirs[variance],
        "clip_sample": True,
        "clip_sample_range": 1.0,
    }
    schedule = process.schedule
    if isinstance(schedule, LinearSchedule):
        return settings | {
            "beta_schedule": "linear",
            "beta_start": schedule.first,
            "beta_end": schedule.last,
        }
    if schedule == CosineSchedule():
        return settings | {"beta_schedule": "squaredcos_cap_v2"}
    return settings | {"trained_betas": beta[1:].tolist()}
