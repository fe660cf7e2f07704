"""Learn the noise schedule together with the network, by the gradient of K with fixed noise.

    learn = "beta":       beta_t = sigmoid(theta_t), t = 2..T; beta_1 is kept
    learn = "log_snr":    log SNR_t = l_1 - span * (w_2 + .. + w_t),  w = softmax(theta)

In both, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) n with n fixed, so the gradient of K
reaches the table through x_t, through every coefficient and through the network's clock. Any theta
gives a valid table: beta in (0, 1), log SNR decreasing in t.
Source: Sohl-Dickstein et al. 2015, Section 2.4.1; Kingma et al. 2021, Section 3.2 and appendix H.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from diffusion.model import DiffusionModel
from diffusion.schedule import alpha_bar, from_log_snr
from training.config import FitConfig, ScheduleConfig
from training.fit import checkpoint as state
from training.fit.weights import Average

#: Least share of the span, or of beta's range, per step: theta itself is unbounded.
FLOOR = 1e-12


class LearnedSchedule(nn.Module):
    """A table of beta as a function of learnable parameters.

    Args:
        config: what is learned.
        start: the initial beta, float64 [T + 1].
    """

    def __init__(self, config: ScheduleConfig, start: Tensor) -> None:
        super().__init__()
        if len(start) < 3 or not bool((start[1:] < 1).all()):
            raise ValueError(
                f"a schedule is learned from one of T >= 2 steps that leaves some signal (beta_T "
                f"< 1), came T = {len(start) - 1}, beta_T = {float(start[-1]):g}"
            )
        self.config = config
        ends: Tensor
        if config.learn == "beta":
            theta, ends = torch.logit(start[2:]), start[1:2]
        else:
            log_snr = torch.logit(alpha_bar(start)[1:])
            fall = log_snr[:-1] - log_snr[1:]
            theta, ends = fall.log(), torch.stack((log_snr[0], fall.sum().log()))
        self.theta = nn.Parameter(theta.clone())
        self.ends = nn.Parameter(ends.clone(), requires_grad=config.ends == "learned")

    def beta(self) -> Tensor:
        """beta_t for t = 0..T, float64 [T + 1]; differentiable."""
        if self.config.learn == "beta":
            learned = FLOOR + (1 - 2 * FLOOR) * self.theta.sigmoid()
            return torch.cat((torch.zeros_like(self.ends), self.ends, learned))
        share = FLOOR + (1 - FLOOR * len(self.theta)) * self.theta.softmax(0)
        fallen = torch.cat((torch.zeros_like(self.ends[:1]), share.cumsum(0)))
        return from_log_snr(self.ends[0] - self.ends[1].exp() * fallen)


class Learning:
    """The learned schedule of a fit and its moving average, applied to their two models.

    Args:
        config: what is learned.
        decay: decay of the average.
        model: the model that is fitted.
        averaged: the model that holds the averaged weights.
    """

    def __init__(
        self, config: ScheduleConfig, decay: float, model: DiffusionModel, averaged: DiffusionModel
    ) -> None:
        self.model, self.averaged = model, averaged
        self.now = LearnedSchedule(config, model.process.beta)
        self.mean = copy.deepcopy(self.now)
        self.average = Average(self.now, self.mean, decay)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trainable parameters, by name."""
        for name, parameter in self.now.named_parameters(prefix="schedule"):
            if parameter.requires_grad:
                yield name, parameter

    def begin(self) -> None:
        """Set the model's schedule to the current table, so that gradients reach it."""
        self.model.process.take(self.now.beta())

    def update(self, n: int) -> None:
        """Update the average after optimiser step n, and the averaged model's schedule."""
        self.average.update(n)
        self._settle()

    def tensors(self) -> dict[str, Tensor]:
        """The schedule's tensors in a checkpoint."""
        return {
            **state.named("schedule", self.now.state_dict()),
            **state.named("schedule_average", self.mean.state_dict()),
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state from a checkpoint's tensors."""
        self.now.load_state_dict(state.under("schedule", tensors))
        self.mean.load_state_dict(state.under("schedule_average", tensors))
        self._settle()

    def _settle(self) -> None:
        self.averaged.process.take(self.mean.beta().detach())


def averaged_table(config: FitConfig, tensors: dict[str, Tensor]) -> Tensor | None:
    """The learned table of a checkpoint's averaged model, float64 [T + 1], or None."""
    if config.schedule is None:
        return None
    schedule = LearnedSchedule(config.schedule, config.process.build().beta)
    schedule.load_state_dict(state.under("schedule_average", tensors))
    return schedule.beta().detach()
