"""The Gaussian process for real data, and predictions under it.

    q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t),    pi = N(0, 1)
    p(x_s | x_t) has the mean c_0(t, s) x_0hat + c_t(t, s) x_t

Every prediction (eps, x_0, v, or the paper's own mean) is turned into an estimate of x_0, so every
sampler and every stride s < t works with every model.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self, final, get_args

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.distributions import LOG_2PI, Distribution, Normal, Tilt
from diffusion.noise import Noise
from diffusion.observation import Observation, in_model_units
from diffusion.operators import LinearOperator
from diffusion.process.base import (
    MEASURED,
    Config,
    Estimate,
    Output,
    Prediction,
    PredictionKind,
    Process,
    VarianceKind,
)
from diffusion.profile import Profile
from diffusion.rows import blend, per_row, row_sum
from diffusion.schedule import LogSnrSchedule, Schedule
from diffusion.space import Space

#: Bound k, in standard deviations, on E[eps | x_t] and its spread, for any data: by Jensen and
#: Chernoff, P(E[eps^2 | x_t] > k^2) <= k exp(-(k^2 - 1) / 2) over x_t ~ q, 1.5e-7 per element here.
_FARTHEST = 6.0
#: x_0hat may always be this close to 0, however far out x_t is; data have unit variance.
_MIDDLE = 3.0
#: Lower limit of z in Var(x_0 | x_t) = (1 - alpha_bar_t) e^z, so that a kernel is no point.
_LEAST_LOG = -20.0
#: Lower limit of alpha_bar in divisions.
_LEAST_SIGNAL = 1e-6
#: Lower limit of a contrast, as a share of the largest: what seems certain still varies.
_LEAST_CONTRAST = 1e-4


class GaussianConfig(Config):
    """A Gaussian process of T steps under a schedule."""

    kind: Literal["gaussian"] = "gaussian"
    schedule: Schedule = LogSnrSchedule()

    @override
    def build(self) -> "GaussianProcess":
        return GaussianProcess(self.schedule.beta(self.T))


@final
class GaussianProcess(Process):
    """The process q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t), pi = N(0, 1)."""

    @override
    def prior(self, event: Sequence[int], rows: int) -> Normal:
        mean = torch.zeros(rows, *event, device=self.beta.device)
        return Normal(mean, torch.ones_like(mean))

    @override
    def nothing_seen(self, event: Sequence[int], rows: int) -> Observation:
        zero = torch.zeros(rows, *event, device=self.beta.device)
        return Observation(Normal(zero, torch.full_like(zero, torch.inf)))

    @override
    def observe(
        self, space: Space, operator: LinearOperator, y: Tensor, known: Tensor, noise: Tensor
    ) -> tuple[Observation, Tensor]:
        return in_model_units(space, operator, y, known, noise)

    @override
    def saw(self, y: Tensor, known: Tensor, noise: Tensor) -> Observation:
        return Observation.of_reals(y, known, noise)

    @override
    def noisy(self, x_0: Tensor, level: Tensor, u: Tensor) -> Tensor:
        n: Tensor = torch.special.ndtri(u)
        return x_0 + level * n

    @property
    @override
    def noise_levels(self) -> tuple[float, float]:
        """From what is hardly seen to twice the data's own spread."""
        return 0.02, 2.0

    @override
    def output(
        self,
        prediction: PredictionKind,
        variance: VarianceKind | None,
        profile: Profile | None = None,
    ) -> "GaussianOutput":
        return GaussianOutput(prediction, variance, profile, process=self)

    @property
    @override
    def most_noise(self) -> float:
        return math.inf

    @override
    def matched_step(self, noise: float) -> tuple[int, float, float]:
        """Find the t with (1 - alpha_bar_t) / alpha_bar_t nearest to noise^2 on a log scale."""
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
        """Apply Tweedie's formula at x_t and at x_s; 0 where x_t has no signal."""
        rate = self.rate(t, s)
        gain = torch.where(rate > 0, (1 - rate) / rate.sqrt(), 0.0)
        return per_row(gain, slope) * slope / var

    @override
    def marginal(self, x_0: Tensor, t: Tensor) -> Normal:
        """Return N(sqrt(alpha_bar_t) x_0, 1 - alpha_bar_t)."""
        signal = self.alpha_bar[t]
        return Normal(per_row(signal.sqrt(), x_0) * x_0, per_row(1 - signal, x_0))

    @override
    def forward_kernel(self, x_s: Tensor, t: Tensor, s: Tensor | None = None) -> Normal:
        """Return N(sqrt(alpha_bar_t / alpha_bar_s) x_s, 1 - alpha_bar_t / alpha_bar_s)."""
        rate = self.rate(t, t - 1 if s is None else s)
        return Normal(per_row(rate.sqrt(), x_s) * x_s, per_row(1 - rate, x_s))

    @override
    def bridge(self, x_a: Tensor, x_t: Tensor, t: Tensor, s: Tensor, a: Tensor) -> Normal:
        """Return N(c_a x_a + c_t x_t, var), with `bridge_coefficients`."""
        of_x_a, of_x_t, var = self.bridge_coefficients(t, s, a)
        mean = per_row(of_x_a, x_t) * x_a + per_row(of_x_t, x_t) * x_t
        return Normal(mean, per_row(var, x_t))

    def posterior_coefficients(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return c_0, c_t and the variance of q(x_s | x_t, x_0), float64 [B] each.

        With r = alpha_bar_t / alpha_bar_s: c_0 = sqrt(alpha_bar_s) (1 - r) / (1 - alpha_bar_t),
        c_t = sqrt(r) (1 - alpha_bar_s) / (1 - alpha_bar_t), var = (1 - r) (1 - alpha_bar_s) /
        (1 - alpha_bar_t) (Ho, Jain and Abbeel 2020, Equation 7, at any stride).
        """
        return self.bridge_coefficients(t, s, torch.zeros_like(s))

    def bridge_coefficients(self, t: Tensor, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return c_a, c_t and the variance of q(x_s | x_t, x_a), float64 [B] each.

        With k_ts = alpha_bar_t / alpha_bar_s: c_a = sqrt(k_sa) (1 - k_ts) / (1 - k_ta), c_t =
        sqrt(k_ts) (1 - k_sa) / (1 - k_ta), var = (1 - k_ts) (1 - k_sa) / (1 - k_ta). This is the
        Brownian bridge of x / sqrt(alpha_bar) in time (1 - alpha_bar) / alpha_bar.
        """
        after, before, whole = self.rate(t, s), self.rate(s, a), self.rate(t, a)
        of_x_a = before.sqrt() * (1 - after) / (1 - whole)
        of_x_t = after.sqrt() * (1 - before) / (1 - whole)
        return of_x_a, of_x_t, (1 - after) * (1 - before) / (1 - whole)


@final
@dataclass(frozen=True)
class GaussianPrediction(Prediction):
    """A prediction of x_0 and of the reverse kernel's variance, elementwise.

    The variance follows `variance_terms`. With `own` it is the paper's Sigma at s = t - 1 (2015,
    Equation 65) and its moment match at other s, or "lower" where that leaves x_0 no variance.
    """

    process: GaussianProcess
    x_t: Tensor
    t: Tensor
    x_0: Tensor
    variance: VarianceKind | None
    extra: Tensor | None = None
    own: Tensor | None = None
    profile: Profile | None = None
    fixed: Tensor | None = None

    @override
    def pinned(self, values: Tensor, fixed: Tensor) -> Self:
        return replace(self, x_0=torch.where(fixed, values, self.x_0), fixed=fixed)

    @property
    def most_variance(self) -> Tensor:
        """The bound k^2 (1 - alpha_bar_t) / alpha_bar_t, k = 6, on Var(x_0 | x_t), float64 [B].

        Along any unit vector the variance exceeds it with probability 1.5e-7 over x_t.
        """
        at = self.process.alpha_bar[self.t].clamp_min(_LEAST_SIGNAL)
        return _FARTHEST**2 * (1 / at - 1)

    @override
    def clipped(self, low: Tensor | None = None, high: Tensor | None = None) -> Self:
        """Clamp to the data's range, or to what the process allows if the data have none.

        Far from its data a network may return anything, especially in e^z. x_0hat is clamped to
        `low` and `high`, or else to where |eps_hat| <= k = 6 or |x_0hat| <= 3, which a true
        E[x_0 | x_t] leaves with probability 1.5e-7. z is clamped to -1..1 for "interpolated", and
        Var(x_0 | x_t) to `most_variance` for "moment"; for "contrast" it is made of x_0hat.
        """
        at = self.process.alpha_bar[self.t].clamp_min(_LEAST_SIGNAL)
        if low is None or high is None:
            far = per_row(_FARTHEST * (1 / at - 1).sqrt(), self.x_t)
            centre = per_row(at.rsqrt(), self.x_t) * self.x_t
            low, high = (centre - far).clamp(max=-_MIDDLE), (centre + far).clamp(min=_MIDDLE)
        x_0, extra = self.x_0.clamp(low, high), self.extra
        if self.variance == "contrast":
            most = (high - low).square() / 4
            extra = ((high - x_0) * (x_0 - low)).maximum(_LEAST_CONTRAST * most).log()
            return replace(self, x_0=x_0, extra=extra)
        if extra is not None:
            if self.variance == "moment":
                most = per_row(2 * math.log(_FARTHEST) - at.log(), self.x_t)
                extra = extra.clamp_min(_LEAST_LOG).minimum(most)
            else:
                extra = extra.clamp(-1.0, 1.0)
        return replace(self, x_0=x_0, extra=extra)

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
        kernel = self.kernel(s) if own is True else self._moved(x_t, columns, previous, own, s)
        return (kernel if observation is None else observation.multiply(kernel)[0]).sample(noise)

    def _moved(
        self,
        x_t: Tensor,
        columns: Sequence[Tensor],
        previous: Tensor,
        own: Tensor | bool,
        s: Tensor,
    ) -> Normal:
        """Return N(a x_t + b x_0hat + c previous, v_0 + v_1 exp(w z)), or `kernel` where `own`."""
        a, b, c, v_0, v_1, w = columns
        mean = torch.addcmul(blend(a, x_t, b, self.x_0), c, previous)
        var = self.var_of(v_0, v_1, w)
        if self.fixed is not None:
            var = torch.where(self.fixed, var.minimum(self._bridge_var(s)), var)
        if isinstance(own, bool):
            return Normal(mean, var)
        rows, kernel = per_row(own, x_t).bool(), self.kernel(s)
        return Normal(torch.where(rows, kernel.mean, mean), torch.where(rows, kernel.var, var))

    @override
    def given(
        self, observation: Observation, s: Tensor, estimate: Estimate
    ) -> tuple[Distribution, Tensor]:
        if bool(observation.count.any()):
            return estimate(self, observation, s)
        return self.kernel(s), self.x_t.new_zeros(len(self.x_t), dtype=torch.float64)

    @override
    def carried(self, previous: Tensor) -> Tensor:
        return self.x_0

    @override
    def error(self, x_0: Tensor) -> Tensor:
        """Return snr_t |x_0hat - x_0|^2, a mean over elements."""
        snr = torch.exp(self.process.log_snr(self.t))
        return (per_row(snr, x_0) * (self.x_0 - x_0).square()).flatten(1).mean(1)

    def on_lattice(self, act: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Self:
        """Return a copy whose E[x_0 | x_t] and Var[x_0 | x_t] are what `act` makes of them.

        Only for variance "moment", which knows the variance.
        """
        assert self.extra is not None  # "moment" has it
        noise = per_row((1 - self.process.alpha_bar[self.t]), self.x_0.double())
        mean, var = act(self.x_0.double(), noise * self.extra.double().exp())
        extra = (var / noise).log()
        return replace(self, x_0=mean.to(self.x_0), extra=extra.to(self.extra))

    @override
    def kernel(self, s: Tensor) -> Normal:
        of_x_0, of_x_t, _ = self.process.posterior_coefficients(self.t, s)
        mean = per_row(of_x_0, self.x_t) * self.x_0 + per_row(of_x_t, self.x_t) * self.x_t
        return Normal(mean, self._var(s))

    @override
    def at(self, x_t: Tensor) -> Self:
        return replace(self, x_t=x_t)

    def _var(self, s: Tensor) -> Tensor:
        if self.fixed is None:
            return self._free_var(s)
        return torch.where(self.fixed, self._bridge_var(s), self._free_var(s))

    def _bridge_var(self, s: Tensor) -> Tensor:
        """Return the variance of q(x_s | x_t, x_0), where x_0 is known."""
        return per_row(self.process.posterior_coefficients(self.t, s)[2], self.x_t)

    def _free_var(self, s: Tensor) -> Tensor:
        if self.own is not None:
            of_x_0, _, posterior = self.process.posterior_coefficients(self.t, s)
            lower = torch.where(s == 0, _last(self.process, self.t), posterior)
            before = self.t - 1
            own_of_x_0, _, own_posterior = self.process.posterior_coefficients(self.t, before)
            var_x_0 = (self.own - per_row(own_posterior, self.own)).clamp_min(0)
            most = per_row(self.most_variance, self.own)
            var_x_0 = (var_x_0 / per_row(own_of_x_0.square(), self.own)).minimum(most)
            match = per_row(posterior, self.own) + per_row(of_x_0.square(), self.own) * var_x_0
            match = torch.where(var_x_0 > 0, match, per_row(lower, self.own))
            return torch.where(per_row(s == before, self.own).bool(), self.own, match)
        assert self.variance is not None  # DiffusionModel ensures it
        terms = variance_terms(self.process, self.variance, self.t, s, self.profile)
        v_0, v_1, w = (per_row(term, self.x_t) for term in terms.unbind(1))
        return self.var_of(v_0, v_1, w)

    def var_of(self, v_0: Tensor, v_1: Tensor, w: Tensor) -> Tensor:
        """Return v_0 + v_1 exp(w z), with z the network's second output if it has one."""
        return v_0 if self.extra is None else torch.addcmul(v_0, v_1, (w * self.extra).exp())


def as_gaussian(prediction: Prediction) -> GaussianPrediction:
    """Narrow the type of a prediction of a Gaussian process's model."""
    assert isinstance(prediction, GaussianPrediction)
    return prediction


def variance_terms(
    process: GaussianProcess,
    kind: VarianceKind,
    t: Tensor,
    s: Tensor,
    profile: Profile | None = None,
) -> Tensor:
    """Return (v_0, v_1, w) of the variance v_0 + v_1 exp(w z) of p(x_s | x_t), float64 [B, 3].

    With r = alpha_bar_t / alpha_bar_s, the posterior variance v and the network's output z:

    - "lower": v, beta tilde (Ho, Jain and Abbeel 2020);
    - "upper": 1 - r, beta;
    - "interpolated": exp(f log(1 - r) + (1 - f) log v), f = (z + 1) / 2 (Nichol and Dhariwal 2021,
      Equation 15);
    - "moment": v + c_0^2 Var(x_0 | x_t), Var(x_0 | x_t) = (1 - alpha_bar_t) e^z: the moment match,
      with the kernel's true second moment;
    - "optimal": v + c_0^2 e_t, with e_t the profile's mean square error of x_0hat, or its `last`
      at s = 0: the single number that maximises the expected bound (Bao et al. 2022b, Theorem 3;
      for a perfect score the same as Bao et al. 2022a);
    - "contrast": v + c_0^2 e_t C / m_t, with C = (high - x_0hat)(x_0hat - low) of each element and
      m_t the profile's mean of it: for data with a range, where no variance of x_0 exceeds C
      (Bhatia and Davis 2000) and that of two values, low and high, is C. z = log C.

    At s = 0, where v is 0, the first three use the previous step's posterior variance, so that the
    last step is still a distribution.
    """
    of_x_0, _, posterior = process.posterior_coefficients(t, s)
    zero = torch.zeros_like(posterior)
    if kind == "moment":
        scale = of_x_0.square() * (1 - process.alpha_bar[t])
        return torch.stack((posterior, scale, torch.ones_like(zero)), 1)
    if kind in MEASURED:
        assert profile is not None  # DiffusionModel ensures it
        more = of_x_0.square() * profile.error[t]
        if kind == "optimal":
            var = torch.where(s == 0, profile.last[t], posterior + more)
            return torch.stack((var, zero, zero), 1)
        assert profile.contrast is not None  # GaussianOutput ensures it
        var = torch.where(s == 0, profile.last[t], posterior)
        each = torch.where(s == 0, zero, more / profile.contrast[t])
        return torch.stack((var, each, torch.ones_like(zero)), 1)
    lower = torch.where(s == 0, _last(process, t), posterior)
    upper = 1 - process.rate(t, s)
    if kind == "interpolated":
        width = (upper.log() - lower.log()) / 2
        return torch.stack((zero, (upper * lower).sqrt(), width), 1)
    var = lower if kind == "lower" else torch.where(s == 0, lower, upper)
    return torch.stack((var, zero, zero), 1)


def _last(process: GaussianProcess, t: Tensor) -> Tensor:
    """Return the posterior variance one stride earlier, 2t -> t, for rows that step to 0."""
    earlier = (2 * t).clamp(max=process.T)
    _, _, var = process.posterior_coefficients(earlier, t)
    return torch.where(earlier > t, var, 1 - process.alpha_bar[t])


@final
@dataclass(frozen=True)
class GaussianOutput(Output):
    """Reads the network's output as eps, x_0, v or the paper's mean, perhaps with a variance."""

    process: GaussianProcess = field(kw_only=True)

    @property
    @override
    def count(self) -> int:
        """The outputs per element: 2 if the network also gives a variance, else 1."""
        own = self.prediction == "perturbation" or self.variance in ("interpolated", "moment")
        return 2 if own else 1

    @override
    def check(self, space: Space) -> None:
        if space.kind == "bits":
            raise ValueError("bits need a binomial process, came a Gaussian one")
        if self.prediction == "perturbation":
            if self.variance is not None:
                raise ValueError(
                    "prediction 'perturbation' has a variance of its own: leave out "
                    f"{self.variance!r}"
                )
            return
        if self.variance not in get_args(VarianceKind):
            raise ValueError(f"variance is one of {get_args(VarianceKind)}, came {self.variance!r}")
        if self.variance == "contrast":
            if space.bounds is None:
                raise ValueError(
                    "variance 'contrast' is of data with a range, these have none: use 'optimal'"
                )
            if self.profile is None or self.profile.contrast is None:
                raise ValueError(
                    "variance 'contrast' is read from a profile that has measured it: measure one "
                    "with `python -m training profile --variance contrast`"
                )
        self.process.check_signal(self.prediction)

    @override
    def affine(self, t: Tensor) -> Tensor | None:
        """Return p and q of x_0hat = p x_t + q output, for eps and v.

        eps: x_0hat = (x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar).
        v: x_0hat = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v (Salimans and Ho 2022).
        """
        alpha_bar = self.process.alpha_bar[t]
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        if self.prediction == "eps":
            return torch.stack((1 / signal, -noise / signal), 1)
        return torch.stack((signal, -noise), 1) if self.prediction == "v" else None

    @override
    def fused(
        self, x_t: Tensor, t: Tensor, factor: Distribution
    ) -> tuple[Tensor, Sequence[Tensor]] | None:
        """Combine x_t and y, two observations of x_0, element by element, for eps and v.

            P = snr_t + 1 / var,    alpha = P / (1 + P),
            x = sqrt(alpha) (snr_t x_t / sqrt(alpha_bar_t) + y / var) / P

        x is distributed as q(x_t | x_0) at a step with alpha for alpha_bar, and x_0hat is read as
        at that step: noise that y has removed is no longer for the network to remove.
        """
        if self.prediction not in ("eps", "v"):
            return None
        y, var = (part.double() for part in factor.tensors)
        at = per_row(self.process.alpha_bar[t], y)
        snr, seen, exact = at / (1 - at), 1 / var, var == 0
        total = snr + seen
        share = torch.where(exact, 1.0, seen / total.clamp_min(1e-300))
        mean = (1 - share) * x_t / at.clamp_min(1e-12).sqrt() + share * y
        # Elements of which nothing was seen keep their bits.
        alpha = torch.where(seen == 0, at, torch.where(exact, 1.0, total / (1 + total)))
        noise = torch.where(seen == 0, 1 - at, 1 / (1 + total)).sqrt()
        signal = alpha.sqrt()
        x = torch.where(seen == 0, x_t, (signal * mean).to(x_t))
        pair = (signal, -noise) if self.prediction == "v" else (1 / signal, -noise / signal)
        return x, [part.to(x_t) for part in pair]

    @override
    def read(
        self,
        output: Tensor,
        x_t: Tensor,
        t: Tensor,
        of_x_0: Tensor | Sequence[Tensor] | None = None,
    ) -> GaussianPrediction:
        """Read x_0hat by `affine`, or by the paper's Equation 65 for "perturbation".

        Sigma = sigmoid(z_Sigma + logit beta_t), mean = (x_t - z)(1 - Sigma) + z, and x_0hat is the
        x_0 whose posterior has that mean.
        """
        process, variance, profile = self.process, self.variance, self.profile
        parts = output.to(x_t.dtype).split(x_t.shape[1], dim=1)
        first, extra = parts[0], parts[1] if len(parts) > 1 else None
        if self.prediction == "perturbation":
            assert extra is not None  # DiffusionModel asks the network for it
            own = (extra + per_row(torch.logit(process.beta[t]), x_t)).sigmoid()
            mean = (x_t - first) * (1 - own) + first
            c_0, c_t, _ = process.posterior_coefficients(t, t - 1)
            x_0 = (mean - per_row(c_t, x_t) * x_t) / per_row(c_0, x_t)
            return GaussianPrediction(process, x_t, t, x_0, variance, own=own)
        of = self.affine(t) if of_x_0 is None else of_x_0
        if of is None:
            return GaussianPrediction(process, x_t, t, first, variance, extra, profile=profile)
        p, q = (per_row(part, x_t) for part in of.unbind(1)) if isinstance(of, Tensor) else of
        x_0 = blend(p, x_t, q, first)
        return GaussianPrediction(process, x_t, t, x_0, variance, extra, profile=profile)

    @override
    def table(self, t: Tensor, s: Tensor) -> Tensor:
        assert self.variance is not None  # only "perturbation" has none, and it has no table
        b, a, _ = self.process.posterior_coefficients(t, s)
        mean = torch.stack((a, b, torch.zeros_like(a)), 1)
        variance = variance_terms(self.process, self.variance, t, s, self.profile)
        return torch.cat((mean, variance), 1)
