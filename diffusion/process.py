"""Processes: the forward trajectory q, fixed, and the family of its reverse kernel.

    q(x_t | x_0) has signal alpha_bar_t,   q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s |
    x_0)

`t` and `s` are int64 [B], one entry a row, s < t: any stride is served; s = t - 1 is the paper's
(Sohl-Dickstein et al. 2015, Table App.1). Coefficients are worked out in float64 and cast once.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, Self, final

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from typing_extensions import override

from diffusion.distributions import LOG_2PI, Bernoulli, Distribution, Normal, Tilt
from diffusion.noise import Noise
from diffusion.rows import per_row, row_sum
from diffusion.schedule import InverseTimeSchedule, LogSnrSchedule, Schedule, alpha_bar, check_beta


class _ProcessConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    T: int = Field(ge=1, le=100_000)


class GaussianConfig(_ProcessConfig):
    """A Gaussian process of T steps under a schedule."""

    kind: Literal["gaussian"] = "gaussian"
    schedule: Schedule = LogSnrSchedule()

    def build(self) -> "GaussianProcess":
        """The process, with the schedule's table."""
        return GaussianProcess(self.schedule.beta(self.T))


class BinomialConfig(_ProcessConfig):
    """A binomial process of T steps: bits decay to ones with probability `base_rate`."""

    kind: Literal["binomial"] = "binomial"
    schedule: Schedule = InverseTimeSchedule()
    base_rate: float = Field(0.5, gt=0, lt=1)

    def build(self) -> "BinomialProcess":
        """The process, with the schedule's table."""
        return BinomialProcess(self.schedule.beta(self.T), self.base_rate)


ProcessConfig = Annotated[GaussianConfig | BinomialConfig, Field(discriminator="kind")]


class Tables(nn.Module):
    """Tables of float64, which move to a device and are never cast."""

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # .float() and .bfloat16() come through here as .to(device) does: only the device is obeyed.
        super()._apply(lambda x: x.to(fn(x).device), recurse)  # type: ignore[no-untyped-call]
        return self


class Process(Tables, ABC):
    """The forward process q of T steps.

    Args:
        beta: float64 [T + 1], beta[0] = 0.
    """

    #: Whether x_t is real, so that x_0hat and twists have gradients in it.
    continuous: ClassVar[bool] = True
    beta: Tensor
    alpha_bar: Tensor

    def __init__(self, beta: Tensor) -> None:
        super().__init__()
        check_beta(beta)
        self.register_buffer("beta", beta.double())
        self.register_buffer("alpha_bar", alpha_bar(beta), persistent=False)

    def refresh(self) -> None:
        """Work alpha_bar out again after `beta` was loaded."""
        check_beta(self.beta)
        self.alpha_bar.copy_(alpha_bar(self.beta))

    def take(self, beta: Tensor) -> None:
        """Run under another table, float64 [T + 1]; gradients reach through it where it has any."""
        check_beta(beta)
        self.beta, self.alpha_bar = beta, alpha_bar(beta)

    @property
    def T(self) -> int:
        """The number of steps."""
        return len(self.beta) - 1

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_bar_t / (1 - alpha_bar_t)), float64 [B]; infinite at the ends of the signal."""
        return torch.logit(self.alpha_bar[t])

    def rate(self, t: Tensor, s: Tensor) -> Tensor:
        """The signal kept from s to t, alpha_bar_t / alpha_bar_s, float64 [B]."""
        return self.alpha_bar[t] / self.alpha_bar[s]

    @abstractmethod
    def prior(self, event: Sequence[int], rows: int) -> Distribution:
        """pi(x_T), rows of shape [rows, *event]."""

    @abstractmethod
    def nothing_seen(self, like: Tensor) -> Distribution:
        """The factor 1 over rows like `like` [B, *event], of the process's family."""

    @property
    @abstractmethod
    def most_noise(self) -> float:
        """Observations with independent noise below this look like x_t of some step; 0: none do."""

    @abstractmethod
    def matched_step(self, noise: float) -> tuple[int, float, float]:
        """The step t whose x_t looks most like an observation y with that noise.

        Returns:
            t; the number c with which x_t = c y; and the noise of that step.

        Raises:
            ValueError: no step does.
        """

    @property
    @abstractmethod
    def power(self) -> float:
        """E x_T^2 of an element, under pi."""

    @abstractmethod
    def step_noise(self, noise: Noise, event: Sequence[int]) -> Tensor:
        """The numbers that a draw of one step takes, [B, *event]."""

    @abstractmethod
    def likelihood(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tilt:
        """q(x_t | x_s) as a function of x_s."""

    @abstractmethod
    def guide(self, slope: Tensor, var: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The slope by which p(x_s | x_t) is tilted, of the slope of log r_t at x_t.

        Args:
            slope: float64 [B, *event].
            var: of p(x_s | x_t), float64, broadcastable to `slope`.
            t: int64 [B], or [1].
            s: int64, likewise.
        """

    @abstractmethod
    def marginal(self, x_0: Tensor, t: Tensor) -> Distribution:
        """q(x_t | x_0)."""

    @abstractmethod
    def forward_kernel(self, x_s: Tensor, t: Tensor, s: Tensor | None = None) -> Distribution:
        """q(x_t | x_s); s = t - 1 where it is not given."""

    @abstractmethod
    def bridge(self, x_a: Tensor, x_t: Tensor, t: Tensor, s: Tensor, a: Tensor) -> Distribution:
        """q(x_s | x_t, x_a), proportional to q(x_t | x_s) q(x_s | x_a), a <= s < t.

        The process is Markov, so no other point outside a..t adds to it. At s = a it is x_a for
        certain.

        Args:
            x_a: [B, *event].
            x_t: [B, *event].
            t: int64 [B].
            s: int64 [B].
            a: int64 [B].
        """

    @abstractmethod
    def posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Distribution:
        """q(x_s | x_t, x_0), s < t, the bridge from 0; at s = 0 it is x_0 for certain."""


@final
class GaussianProcess(Process):
    """q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t), pi = N(0, 1)."""

    @override
    def prior(self, event: Sequence[int], rows: int) -> Normal:
        mean = torch.zeros(rows, *event, device=self.beta.device)
        return Normal(mean, torch.ones_like(mean))

    @override
    def nothing_seen(self, like: Tensor) -> Normal:
        return Normal(like, torch.full_like(like, torch.inf))

    @property
    @override
    def most_noise(self) -> float:
        return math.inf

    @override
    def matched_step(self, noise: float) -> tuple[int, float, float]:
        """(1 - alpha_bar_t) / alpha_bar_t = noise^2, the nearest such t on a logarithmic scale."""
        alpha_bar = self.alpha_bar[1:]
        log_ratio = torch.log1p(-alpha_bar) - torch.log(alpha_bar)
        t = int((log_ratio - 2 * math.log(noise)).abs().argmin()) + 1
        at = float(alpha_bar[t - 1])
        return t, math.sqrt(at), math.sqrt((1 - at) / at)

    @property
    @override
    def power(self) -> float:
        return 1.0

    @override
    def step_noise(self, noise: Noise, event: Sequence[int]) -> Tensor:
        return noise.normal(event)

    @override
    def likelihood(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tilt:
        rate, x = per_row(self.rate(t, s), x_t.double()), x_t.double()
        var = 1 - rate
        each = x.square() / var + (var.log() + LOG_2PI).expand_as(x)
        constant = -0.5 * row_sum(each)
        return Tilt(constant, rate.sqrt() * x / var, (rate / var).expand_as(x))

    @override
    def guide(self, slope: Tensor, var: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """By Tweedie's formula at x_t and at x_s; 0 where x_t has no signal."""
        rate = self.rate(t, s)
        gain = torch.where(rate > 0, (1 - rate) / rate.sqrt(), 0.0)
        return per_row(gain, slope) * slope / var

    @override
    def marginal(self, x_0: Tensor, t: Tensor) -> Normal:
        """N(sqrt(alpha_bar_t) x_0, 1 - alpha_bar_t)."""
        signal = self.alpha_bar[t]
        return Normal(per_row(signal.sqrt(), x_0) * x_0, per_row(1 - signal, x_0))

    @override
    def forward_kernel(self, x_s: Tensor, t: Tensor, s: Tensor | None = None) -> Normal:
        """N(sqrt(alpha_bar_t / alpha_bar_s) x_s, 1 - alpha_bar_t / alpha_bar_s)."""
        rate = self.rate(t, t - 1 if s is None else s)
        return Normal(per_row(rate.sqrt(), x_s) * x_s, per_row(1 - rate, x_s))

    @override
    def bridge(self, x_a: Tensor, x_t: Tensor, t: Tensor, s: Tensor, a: Tensor) -> Normal:
        """N(c_a x_a + c_t x_t, var), of `bridge_coefficients`."""
        of_x_a, of_x_t, var = self.bridge_coefficients(t, s, a)
        mean = per_row(of_x_a, x_t) * x_a + per_row(of_x_t, x_t) * x_t
        return Normal(mean, per_row(var, x_t))

    @override
    def posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Normal:
        """N(c_0 x_0 + c_t x_t, var), of `posterior_coefficients`."""
        return self.bridge(x_0, x_t, t, s, torch.zeros_like(s))

    def posterior_coefficients(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_0, c_t and the variance of q(x_s | x_t, x_0), float64 [B] each: the bridge from 0.

        With r = alpha_bar_t / alpha_bar_s: c_0 = sqrt(alpha_bar_s) (1 - r) / (1 - alpha_bar_t),
        c_t = sqrt(r) (1 - alpha_bar_s) / (1 - alpha_bar_t), var = (1 - r) (1 - alpha_bar_s) /
        (1 - alpha_bar_t) (Ho, Jain and Abbeel 2020, Equation 7, at any stride).
        """
        return self.bridge_coefficients(t, s, torch.zeros_like(s))

    def bridge_coefficients(self, t: Tensor, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_a, c_t and the variance of q(x_s | x_t, x_a), float64 [B] each.

        With k_ts = alpha_bar_t / alpha_bar_s: c_a = sqrt(k_sa) (1 - k_ts) / (1 - k_ta), c_t =
        sqrt(k_ts) (1 - k_sa) / (1 - k_ta), var = (1 - k_ts) (1 - k_sa) / (1 - k_ta): the Brownian
        bridge of x / sqrt(alpha_bar) in the time (1 - alpha_bar) / alpha_bar.
        """
        after, before, whole = self.rate(t, s), self.rate(s, a), self.rate(t, a)
        of_x_a = before.sqrt() * (1 - after) / (1 - whole)
        of_x_t = after.sqrt() * (1 - before) / (1 - whole)
        return of_x_a, of_x_t, (1 - after) * (1 - before) / (1 - whole)


@final
class BinomialProcess(Process):
    """q(x_t | x_{t-1}) = B(x_{t-1} (1 - beta_t) + rho beta_t), pi = B(rho).

    Args:
        beta: float64 [T + 1].
        base_rate: rho, the probability of a one once all signal is gone.
    """

    continuous = False

    def __init__(self, beta: Tensor, base_rate: float = 0.5) -> None:
        super().__init__(beta)
        if not 0 < base_rate < 1:
            raise ValueError(f"base_rate is a probability above 0 and below 1, came {base_rate}")
        self.base_rate = base_rate

    @override
    def prior(self, event: Sequence[int], rows: int) -> Bernoulli:
        shape = (rows, *event)
        return Bernoulli.of(torch.full(shape, self.base_rate, device=self.beta.device))

    @override
    def nothing_seen(self, like: Tensor) -> Bernoulli:
        return Bernoulli(torch.zeros_like(like))

    @property
    @override
    def most_noise(self) -> float:
        """Flips as often as not leave nothing; other base rates flip zeros and ones unequally."""
        return 0.5 if self.base_rate == 0.5 else 0.0

    @override
    def matched_step(self, noise: float) -> tuple[int, float, float]:
        """alpha_bar_t = 1 - 2 noise, the nearest t; the base rate is 1/2."""
        if self.base_rate != 0.5:
            raise ValueError(
                "a matched start for flipped bits needs base rate 1/2, this process has "
                f"{self.base_rate:g} and flips zeros and ones unequally: use method 'product'"
            )
        if noise >= 0.5:
            raise ValueError(
                f"flips of probability 1/2 or more leave nothing to go by, came {noise:g}: "
                "for more than 1/2 invert the bits"
            )
        alpha_bar = self.alpha_bar[1:]
        t = int((alpha_bar - (1 - 2 * noise)).abs().argmin()) + 1
        return t, 1.0, float(1 - alpha_bar[t - 1]) / 2

    @property
    @override
    def power(self) -> float:
        return self.base_rate

    @override
    def step_noise(self, noise: Noise, event: Sequence[int]) -> Tensor:
        return noise.uniform(event)

    @override
    def likelihood(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tilt:
        zero, one = (
            self.forward_kernel(torch.full_like(x_t, bit), t, s).log_each(x_t) for bit in (0.0, 1.0)
        )
        return Tilt(row_sum(zero), one - zero, torch.zeros_like(zero))

    @override
    def guide(self, slope: Tensor, var: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The same slope: log r_s is taken as linear about x_t."""
        return slope

    @override
    def marginal(self, x_0: Tensor, t: Tensor) -> Bernoulli:
        """B(x_0 alpha_bar_t + rho (1 - alpha_bar_t))."""
        return self._decay(x_0, self.alpha_bar[t])

    @override
    def forward_kernel(self, x_s: Tensor, t: Tensor, s: Tensor | None = None) -> Bernoulli:
        """B(x_s r + rho (1 - r)), r = alpha_bar_t / alpha_bar_s."""
        return self._decay(x_s, self.rate(t, t - 1 if s is None else s))

    @override
    def bridge(self, x_a: Tensor, x_t: Tensor, t: Tensor, s: Tensor, a: Tensor) -> Bernoulli:
        """Bayes in logits: logit q(x_s = 1 | x_a) + log q(x_t | x_s = 1) / q(x_t | x_s = 0)."""
        before = self._decay(x_a, self.rate(s, a)).logits
        return Bernoulli(before + self._likelihood_ratio(x_t, self.rate(t, s)))

    @override
    def posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Bernoulli:
        """Of `bridge`, from 0."""
        return self.bridge(x_0, x_t, t, s, torch.zeros_like(s))

    def mix(self, logits: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Bernoulli:
        """sum over x_0 of P(x_0 | x_t) q(x_s | x_t, x_0), exactly, at any stride.

        Args:
            logits: of P(x_0 = 1 | x_t), [B, *event].
            x_t: bits [B, *event].
            t: int64 [B].
            s: int64 [B], s < t.
        """
        of_one, of_zero = F.logsigmoid(logits), F.logsigmoid(-logits)
        ones = self.posterior(torch.ones_like(x_t), x_t, t, s).logits
        zeros = self.posterior(torch.zeros_like(x_t), x_t, t, s).logits
        up = torch.logaddexp(of_one + F.logsigmoid(ones), of_zero + F.logsigmoid(zeros))
        down = torch.logaddexp(of_one + F.logsigmoid(-ones), of_zero + F.logsigmoid(-zeros))
        return Bernoulli(up - down)

    def mixing(self, t: Tensor, s: Tensor) -> Tensor:
        """(a, b, c, d) of `mix`'s mean a + b x_t + (c + d x_t) P(x_0 = 1 | x_t), float64 [B, 4]."""
        none, one = (torch.full_like(t, bit, dtype=torch.float64) for bit in (0, 1))
        at_00, at_01 = (self.posterior(x_0, none, t, s).mean for x_0 in (none, one))
        at_10, at_11 = (self.posterior(x_0, one, t, s).mean for x_0 in (none, one))
        slope = at_01 - at_00
        return torch.stack((at_00, at_10 - at_00, slope, at_11 - at_10 - slope), 1)

    def unmix(self, kernel: Bernoulli, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The P(x_0 = 1 | x_t) whose `mix` is `kernel`, clamped to probabilities, [B, *event]."""
        ones = self.posterior(torch.ones_like(x_t), x_t, t, s).mean
        zeros = self.posterior(torch.zeros_like(x_t), x_t, t, s).mean
        return ((kernel.mean - zeros) / (ones - zeros)).clamp(0, 1)

    def _decay(self, x: Tensor, rate: Tensor) -> Bernoulli:
        """B(x rate + rho (1 - rate)) for bits x, from two logits a row worked out in float64."""
        lost = self.base_rate * (1 - rate)
        of_one = torch.log(rate + lost) - torch.log((1 - self.base_rate) * (1 - rate))
        of_zero = torch.log(lost) - torch.log1p(-lost)
        return Bernoulli(torch.where(x > 0.5, per_row(of_one, x), per_row(of_zero, x)))

    def _likelihood_ratio(self, x_t: Tensor, rate: Tensor) -> Tensor:
        """log q(x_t | x_s = 1) - log q(x_t | x_s = 0), [B, *event]; rate in [0, 1)."""
        lost = self.base_rate * (1 - rate)
        of_one = torch.log(rate + lost) - torch.log(lost)
        of_zero = torch.log((1 - self.base_rate) * (1 - rate)) - torch.log1p(-lost)
        return torch.where(x_t > 0.5, per_row(of_one, x_t), per_row(of_zero, x_t))
