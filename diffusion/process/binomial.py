"""The binomial process for binary data, and predictions under it.

q(x_t | x_{t-1}) = B(x_{t-1} (1 - beta_t) + rho beta_t),    pi = B(rho)
p(x_s | x_t) mixes q(x_s | x_t, x_0) over P(x_0 | x_t)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Self, final

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from diffusion.distributions import Bernoulli, Distribution, Tilt
from diffusion.noise import Noise
from diffusion.observation import Observation
from diffusion.operators import LinearOperator, Mask
from diffusion.process.base import (
    Config,
    Estimate,
    Output,
    Prediction,
    PredictionKind,
    Process,
    VarianceKind,
)
from diffusion.profile import Profile
from diffusion.rows import per_row, row_sum
from diffusion.schedule import InverseTimeSchedule, Schedule
from diffusion.space import Space


class BinomialConfig(Config):
    """A binomial process of T steps whose bits decay to B(`base_rate`)."""

    kind: Literal["binomial"] = "binomial"
    schedule: Schedule = InverseTimeSchedule()
    base_rate: float = Field(0.5, gt=0, lt=1)

    @override
    def build(self) -> "BinomialProcess":
        return BinomialProcess(self.schedule.beta(self.T), self.base_rate)


@final
class BinomialProcess(Process):
    """The process q(x_t | x_{t-1}) = B(x_{t-1} (1 - beta_t) + rho beta_t), pi = B(rho).

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
    def nothing_seen(self, event: Sequence[int], rows: int) -> Observation:
        return Observation(Bernoulli(torch.zeros(rows, *event, device=self.beta.device)))

    @override
    def observe(
        self, space: Space, operator: LinearOperator, y: Tensor, known: Tensor, noise: Tensor
    ) -> tuple[Observation, Tensor]:
        if not isinstance(operator, Mask):
            raise ValueError("bits can only be observed one by one: leave out `operator`")
        return self.saw(y, known, noise), torch.zeros(len(y)).double()

    @override
    def saw(self, y: Tensor, known: Tensor, noise: Tensor) -> Observation:
        return Observation.of_bits(y, known, noise)

    @override
    def noisy(self, x_0: Tensor, level: Tensor, u: Tensor) -> Tensor:
        return torch.where(u < level, 1 - x_0, x_0)

    @property
    @override
    def noise_levels(self) -> tuple[float, float]:
        return 0.01, 0.4

    @override
    def output(
        self,
        prediction: PredictionKind,
        variance: VarianceKind | None,
        profile: Profile | None = None,
    ) -> "BinomialOutput":
        return BinomialOutput(prediction, variance, profile, process=self)

    @property
    @override
    def most_noise(self) -> float:
        """1/2 for base rate 1/2, else 0: other rates flip zeros and ones unequally."""
        return 0.5 if self.base_rate == 0.5 else 0.0

    @override
    def matched_step(self, noise: float) -> tuple[int, float, float]:
        """Find the t with alpha_bar_t nearest to 1 - 2 noise; needs base rate 1/2."""
        if self.base_rate != 0.5:
            raise ValueError(
                "a matched start for flipped bits needs base rate 1/2, this process has "
                f"{self.base_rate:g} and flips zeros and ones unequally: use method 'product'"
            )
        if noise >= 0.5:
            raise ValueError(
                f"a flip probability is below 1/2, came {noise:g}: above 1/2 invert the bits"
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
        """Return the slope unchanged, taking log r_s as linear about x_t."""
        return slope

    @override
    def marginal(self, x_0: Tensor, t: Tensor) -> Bernoulli:
        """Return B(x_0 alpha_bar_t + rho (1 - alpha_bar_t))."""
        return self._decay(x_0, self.alpha_bar[t])

    @override
    def forward_kernel(self, x_s: Tensor, t: Tensor, s: Tensor | None = None) -> Bernoulli:
        """Return B(x_s r + rho (1 - r)), r = alpha_bar_t / alpha_bar_s."""
        return self._decay(x_s, self.rate(t, t - 1 if s is None else s))

    @override
    def bridge(self, x_a: Tensor, x_t: Tensor, t: Tensor, s: Tensor, a: Tensor) -> Bernoulli:
        """Apply Bayes' rule: logit q(x_s = 1 | x_a) + log q(x_t | x_s = 1) / q(x_t | x_s = 0)."""
        before = self._decay(x_a, self.rate(s, a)).logits
        return Bernoulli(before + self._likelihood_ratio(x_t, self.rate(t, s)))

    @override
    def posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Bernoulli:
        """Return the bridge from 0."""
        return self.bridge(x_0, x_t, t, s, torch.zeros_like(s))

    def mix(self, logits: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Bernoulli:
        """Return sum over x_0 of P(x_0 | x_t) q(x_s | x_t, x_0), exact at any stride.

        Args:
            logits: logits of P(x_0 = 1 | x_t), [B, *event].
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
        """Return (a, b, c, d) of `mix`'s mean, float64 [B, 4].

        mean = a + b x_t + (c + d x_t) P(x_0 = 1 | x_t)
        """
        none, one = (torch.full_like(t, bit, dtype=torch.float64) for bit in (0, 1))
        at_00, at_01 = (self.posterior(x_0, none, t, s).mean for x_0 in (none, one))
        at_10, at_11 = (self.posterior(x_0, one, t, s).mean for x_0 in (none, one))
        slope = at_01 - at_00
        return torch.stack((at_00, at_10 - at_00, slope, at_11 - at_10 - slope), 1)

    def unmix(self, kernel: Bernoulli, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return the P(x_0 = 1 | x_t) whose `mix` is `kernel`, clamped to [0, 1], [B, *event]."""
        ones = self.posterior(torch.ones_like(x_t), x_t, t, s).mean
        zeros = self.posterior(torch.zeros_like(x_t), x_t, t, s).mean
        return ((kernel.mean - zeros) / (ones - zeros)).clamp(0, 1)

    def _decay(self, x: Tensor, rate: Tensor) -> Bernoulli:
        """Return B(x rate + rho (1 - rate)) for bits x, from two float64 logits per row."""
        lost = self.base_rate * (1 - rate)
        of_one = torch.log(rate + lost) - torch.log((1 - self.base_rate) * (1 - rate))
        of_zero = torch.log(lost) - torch.log1p(-lost)
        return Bernoulli(torch.where(x > 0.5, per_row(of_one, x), per_row(of_zero, x)))

    def _likelihood_ratio(self, x_t: Tensor, rate: Tensor) -> Tensor:
        """Return log q(x_t | x_s = 1) - log q(x_t | x_s = 0), [B, *event]; rate in [0, 1)."""
        lost = self.base_rate * (1 - rate)
        of_one = torch.log(rate + lost) - torch.log(lost)
        of_zero = torch.log((1 - self.base_rate) * (1 - rate)) - torch.log1p(-lost)
        return torch.where(x_t > 0.5, per_row(of_one, x_t), per_row(of_zero, x_t))


@final
@dataclass(frozen=True)
class BinomialPrediction(Prediction):
    """A prediction of P(x_0 = 1 | x_t), mixed through q(x_s | x_t, x_0) to give the kernel.

    Attributes:
        logits: logits of P(x_0 = 1 | x_t), [B, *event].
        own: the paper's kernel p(x_{t-1} | x_t) if the network gives it, used at s = t - 1.
    """

    process: BinomialProcess
    x_t: Tensor
    t: Tensor
    logits: Tensor
    own: Bernoulli | None = None
    fixed: Tensor | None = None

    @override
    def pinned(self, values: Tensor, fixed: Tensor) -> Self:
        certain = torch.where(values > 0.5, torch.inf, -torch.inf).to(self.logits)
        return replace(self, logits=torch.where(fixed, certain, self.logits), fixed=fixed)

    @cached_property
    def x_0(self) -> Tensor:  # type: ignore[override]
        """The probability P(x_0 = 1 | x_t), [B, *event]."""
        return self.logits.sigmoid()

    @override
    def draw(
        self,
        x_t: Tensor,
        columns: Sequence[Tensor],
        previous: Tensor,
        own: Tensor | bool,
        s: Tensor,
        noise: Noise,
        observation: Observation | None,
    ) -> Tensor:
        """Draw x_s = 1 where u < a + b x_t + (c + d x_t) x_0hat; observed bits by their logits."""
        if own is not False:
            kernel = self.kernel(s)
            found = kernel if observation is None else observation.multiply(kernel)[0]
            return found.sample(noise)
        a, b, c, d, _, _ = columns
        ones = torch.addcmul(b * x_t + a, d * x_t + c, self.x_0)
        if observation is not None:
            restricted, _ = observation.multiply(self.kernel(s))
            assert isinstance(restricted, Bernoulli)
            ones = torch.where(observation.known, restricted.mean, ones)
        return (noise.uniform(x_t.shape[1:]).to(ones) < ones).to(x_t.dtype)

    @override
    def carried(self, previous: Tensor) -> Tensor:
        # A NaN probability draws a zero, so NaN has to be carried over by hand.
        return torch.add(self.x_0, previous, alpha=0.0)

    @override
    def clipped(self, low: Tensor | None = None, high: Tensor | None = None) -> Self:
        """Return it unchanged: a probability needs no clamping."""
        return self

    @override
    def error(self, x_0: Tensor) -> Tensor:
        """Return -log P(x_0 | x_t), a mean over elements."""
        each = F.binary_cross_entropy_with_logits(self.logits, x_0, reduction="none")
        if self.fixed is not None:
            each = torch.where(self.fixed, 0.0, each)
        return each.flatten(1).mean(1)

    @override
    def given(
        self, observation: Observation, s: Tensor, estimate: Estimate
    ) -> tuple[Bernoulli, Tensor]:
        """Apply Bayes' rule to x_0 element by element; unobserved ones keep p(x_s | x_t)."""
        found, log_r = observation.multiply(Bernoulli(self.logits))
        assert isinstance(found, Bernoulli)
        mixed = self.process.mix(found.logits, self.x_t, self.t, s)
        logits = torch.where(observation.known, mixed.logits, self.kernel(s).logits)
        return Bernoulli(logits), log_r

    @override
    def kernel(self, s: Tensor) -> Bernoulli:
        mixed = self.process.mix(self.logits, self.x_t, self.t, s)
        if self.own is None:
            return mixed
        adjacent = per_row(s == self.t - 1, self.x_t).bool()
        if self.fixed is not None:
            adjacent = adjacent & ~self.fixed
        return Bernoulli(torch.where(adjacent, self.own.logits, mixed.logits))

    @override
    def at(self, x_t: Tensor) -> Self:
        return replace(self, x_t=x_t)


@final
@dataclass(frozen=True)
class BinomialOutput(Output):
    """Reads the network's output as the logits of x_0, or as the paper's own kernel."""

    process: BinomialProcess = field(kw_only=True)

    @property
    @override
    def count(self) -> int:
        return 1

    @override
    def check(self, space: Space) -> None:
        if space.kind != "bits":
            raise ValueError(f"a binomial process models bits, came a space of kind {space.kind!r}")
        if self.prediction not in ("x_0", "perturbation") or self.variance is not None:
            raise ValueError(
                "a binomial model predicts 'x_0' or 'perturbation' and has no variance, came "
                f"prediction {self.prediction!r}, variance {self.variance!r}"
            )

    @override
    def fused(self, x_t: Tensor, t: Tensor, factor: Distribution) -> tuple[Tensor, None]:
        """Put what was seen exactly in place of x_t, which says nothing more of it."""
        return torch.where(factor.exact, factor.values.to(x_t), x_t), None

    @override
    def read(
        self,
        output: Tensor,
        x_t: Tensor,
        t: Tensor,
        of_x_0: Tensor | Sequence[Tensor] | None = None,
    ) -> BinomialPrediction:
        """Read the output according to `prediction`.

        "x_0": the logits of P(x_0 = 1 | x_t). "perturbation": f_b, the logits of p(x_{t-1} | x_t)
        minus those of x_t (1 - beta_t) + rho beta_t (Sohl-Dickstein et al. 2015, Table App.1).
        """
        output, process = output.to(x_t.dtype), self.process
        if self.prediction == "x_0":
            return BinomialPrediction(process, x_t, t, output)
        own = Bernoulli(output + process.forward_kernel(x_t, t).logits)
        x_0 = process.unmix(own, x_t, t, t - 1)
        return BinomialPrediction(process, x_t, t, torch.logit(x_0, eps=1e-6), own)

    @override
    def table(self, t: Tensor, s: Tensor) -> Tensor:
        return F.pad(self.process.mixing(t, s), (0, 2))
