"""What a network's output means: an estimate of x_0 given x_t, and the kernel p(x_s | x_t) of it.

    mean = c_0(t, s) x_0hat + c_t(t, s) x_t,     x_0hat from eps, x_0, v or the paper's own mean

Every choice is read here and nowhere else, and each becomes an estimate of x_0, so every sampler
and every stride s < t serves every model.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Self, final, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from diffusion.distributions import Bernoulli, Distribution, Normal
from diffusion.noise import Noise
from diffusion.observation import Observation
from diffusion.process import BinomialProcess, GaussianProcess, Process
from diffusion.profile import Profile
from diffusion.rows import Rows, blend, per_row
from diffusion.space import DataSpace

#: E[eps | x_t], the noise in x_t as it can be told, and its spread are within so many standard
#: deviations, whatever the data: P(E[eps^2 | x_t] > k^2) <= k exp(-(k^2 - 1) / 2) over x_t ~ q, by
#: Jensen and Chernoff, for eps is normal; 1.5e-7 an element here.
_FARTHEST = 6.0
#: Where x_t itself is far out, x_0hat may at least be in the middle of data of unit variance.
_MIDDLE = 3.0
#: Of z in Var(x_0 | x_t) = (1 - alpha_bar_t) e^z: below it a kernel would be a point.
_LEAST_LOG = -20.0
#: Of alpha_bar, where it is divided by.
_LEAST_SIGNAL = 1e-6

PredictionKind = Literal["eps", "x_0", "v", "perturbation"]
VarianceKind = Literal["lower", "upper", "interpolated", "moment", "optimal"]


class Prediction(Rows, ABC):
    """What one network call says of B rows.

    Attributes:
        x_0: the estimate of x_0, model units [B, *event]; for bits the probability of a one.
    """

    x_0: Tensor

    @abstractmethod
    def kernel(self, s: Tensor) -> Distribution:
        """p(x_s | x_t), s < t, int64 [B]."""

    @abstractmethod
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
        """x_s by a step of a plan, [B, *event].

        Args:
            x_t: [B, *event], as it was before it was rounded for the network.
            columns: of the plan's table, `per_row` of x_t.
            previous: the x_0hat of each row's step before, [B, *event].
            own: which rows draw from the network's own kernel, bool [B]; or all alike.
            s: int64 [B].
            noise: of this step.
            observation: what was seen, [B, *event]; None where nothing was, of any row.
        """

    @abstractmethod
    def carried(self, previous: Tensor) -> Tensor:
        """x_0hat as the next step's `previous`; NaN where a chain has ever been."""

    @abstractmethod
    def error(self, x_0: Tensor) -> Tensor:
        """The simple loss of each row, a mean over elements, [B]."""

    @abstractmethod
    def clipped(self, low: Tensor | None = None, high: Tensor | None = None) -> Self:
        """The same within what the data or, where they have no range, the process allows."""

    @abstractmethod
    def at(self, x_t: Tensor) -> "Prediction":
        """The same of x_t as it was before it was rounded for the network, [B, *event]."""


@final
@dataclass(frozen=True)
class GaussianPrediction(Prediction):
    """x_0hat and the variance of the reverse kernel, elementwise.

    The variance is that of `variance_terms`; with `own` the paper's Sigma at s = t - 1 (2015,
    Equation 65) and its moment match elsewhere; where that leaves x_0 no variance, "lower".
    """

    process: GaussianProcess
    x_t: Tensor
    t: Tensor
    x_0: Tensor
    variance: VarianceKind | None
    extra: Tensor | None = None
    own: Tensor | None = None
    profile: Profile | None = None

    @property
    def most_variance(self) -> Tensor:
        """k^2 (1 - alpha_bar_t) / alpha_bar_t, k = 6: the most that Var(x_0 | x_t) may be, in any
        direction of length 1, but with probability 1.5e-7 over x_t; float64 [B].
        """
        at = self.process.alpha_bar[self.t].clamp_min(_LEAST_SIGNAL)
        return _FARTHEST**2 * (1 / at - 1)

    @override
    def clipped(self, low: Tensor | None = None, high: Tensor | None = None) -> Self:
        """The same within what the data or, where they have no range, the process allows.

        A network sent where it has never been may answer anything, e^z of it above all. x_0hat is
        kept between `low` and `high`; without these, where eps_hat is within k = 6 of 0 or x_0hat
        within 3, which no true E[x_0 | x_t] leaves but with probability 1.5e-7. z is kept within
        -1 and 1 of "interpolated"; of "moment" Var(x_0 | x_t) is at most k^2 (1 - alpha_bar_t) /
        alpha_bar_t, by the same bound.
        """
        at = self.process.alpha_bar[self.t].clamp_min(_LEAST_SIGNAL)
        if low is None or high is None:
            far = per_row(_FARTHEST * (1 / at - 1).sqrt(), self.x_t)
            centre = per_row(at.rsqrt(), self.x_t) * self.x_t
            low, high = (centre - far).clamp(max=-_MIDDLE), (centre + far).clamp(min=_MIDDLE)
        extra = self.extra
        if extra is not None:
            if self.variance == "moment":
                most = per_row(2 * math.log(_FARTHEST) - at.log(), self.x_t)
                extra = extra.clamp_min(_LEAST_LOG).minimum(most)
            else:
                extra = extra.clamp(-1.0, 1.0)
        return replace(self, x_0=self.x_0.clamp(low, high), extra=extra)

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
        """N(a x_t + b x_0hat + c previous, v_0 + v_1 exp(w z)), or the network's own kernel."""
        a, b, c, v_0, v_1, w = columns
        mean = torch.addcmul(blend(a, x_t, b, self.x_0), c, previous)
        var = self.var_of(v_0, v_1, w)
        if isinstance(own, bool):
            return Normal(mean, var)
        rows, kernel = per_row(own, x_t).bool(), self.kernel(s)
        return Normal(torch.where(rows, kernel.mean, mean), torch.where(rows, kernel.var, var))

    @override
    def carried(self, previous: Tensor) -> Tensor:
        return self.x_0

    @override
    def error(self, x_0: Tensor) -> Tensor:
        """snr_t |x_0hat - x_0|^2."""
        snr = torch.exp(self.process.log_snr(self.t))
        return (per_row(snr, x_0) * (self.x_0 - x_0).square()).flatten(1).mean(1)

    @override
    def kernel(self, s: Tensor) -> Normal:
        of_x_0, of_x_t, _ = self.process.posterior_coefficients(self.t, s)
        mean = per_row(of_x_0, self.x_t) * self.x_0 + per_row(of_x_t, self.x_t) * self.x_t
        return Normal(mean, self._var(s))

    @override
    def at(self, x_t: Tensor) -> "GaussianPrediction":
        return replace(self, x_t=x_t)

    def _var(self, s: Tensor) -> Tensor:
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
        assert self.variance is not None  # DiffusionModel sees to it
        terms = variance_terms(self.process, self.variance, self.t, s, self.profile)
        v_0, v_1, w = (per_row(term, self.x_t) for term in terms.unbind(1))
        return self.var_of(v_0, v_1, w)

    def var_of(self, v_0: Tensor, v_1: Tensor, w: Tensor) -> Tensor:
        """v_0 + v_1 exp(w z), z the network's second output where it has one."""
        return v_0 if self.extra is None else torch.addcmul(v_0, v_1, (w * self.extra).exp())


@final
@dataclass(frozen=True)
class BinomialPrediction(Prediction):
    """P(x_0 = 1 | x_t) mixed through q(x_s | x_t, x_0); the paper's own f_b at s = t - 1.

    Attributes:
        logits: of P(x_0 = 1 | x_t), [B, *event].
        own: the paper's kernel p(x_{t-1} | x_t) where the network gives that, else None.
    """

    process: BinomialProcess
    x_t: Tensor
    t: Tensor
    logits: Tensor
    own: Bernoulli | None = None

    @cached_property
    def x_0(self) -> Tensor:  # type: ignore[override]
        """P(x_0 = 1 | x_t), [B, *event]."""
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
        """x_s = 1 where u < a + b x_t + (c + d x_t) x_0hat; by logits what was seen."""
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
        # A NaN probability draws a zero: without a Gaussian's arithmetic it is kept by hand.
        return torch.add(self.x_0, previous, alpha=0.0)

    @override
    def clipped(self, low: Tensor | None = None, high: Tensor | None = None) -> Self:
        """The same: a probability has no other range."""
        return self

    @override
    def error(self, x_0: Tensor) -> Tensor:
        """-log P(x_0 | x_t)."""
        each = F.binary_cross_entropy_with_logits(self.logits, x_0, reduction="none")
        return each.flatten(1).mean(1)

    def given(self, observation: Observation, s: Tensor) -> tuple[Bernoulli, Tensor]:
        """p(x_s | x_t, y) by Bayes in x_0, element by element, and log of what y is worth, [B].

        Elements of which nothing was seen keep the kernel p(x_s | x_t).
        """
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
        return Bernoulli(torch.where(adjacent, self.own.logits, mixed.logits))

    @override
    def at(self, x_t: Tensor) -> "BinomialPrediction":
        return replace(self, x_t=x_t)


def as_gaussian(prediction: Prediction) -> GaussianPrediction:
    """The prediction of a Gaussian process's model, as what it is."""
    assert isinstance(prediction, GaussianPrediction)
    return prediction


def affine(process: GaussianProcess, kind: PredictionKind, t: Tensor) -> Tensor:
    """(p, q) of x_0hat = p x_t + q f, f the network's output, float64 [B, 2].

    - "eps": x_0hat = (x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar);
    - "x_0": f itself;
    - "v": x_0hat = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v (Salimans and Ho 2022).
    """
    signal, noise = process.alpha_bar[t].sqrt(), (1 - process.alpha_bar[t]).sqrt()
    if kind == "eps":
        return torch.stack((1 / signal, -noise / signal), 1)
    if kind == "v":
        return torch.stack((signal, -noise), 1)
    return torch.stack((torch.zeros_like(signal), torch.ones_like(signal)), 1)


def variance_terms(
    process: GaussianProcess,
    kind: VarianceKind,
    t: Tensor,
    s: Tensor,
    profile: Profile | None = None,
) -> Tensor:
    """(v_0, v_1, w) of the variance v_0 + v_1 exp(w z) of p(x_s | x_t), float64 [B, 3].

    With r = alpha_bar_t / alpha_bar_s, the posterior's own variance v and the network's z:

    - "lower": v, beta tilde (Ho, Jain and Abbeel 2020);
    - "upper": 1 - r, beta;
    - "interpolated": exp(f log(1 - r) + (1 - f) log v), f = (z + 1) / 2 (Nichol and Dhariwal 2021,
      Equation 15);
    - "moment": v + c_0^2 Var(x_0 | x_t), Var(x_0 | x_t) = (1 - alpha_bar_t) e^z: the moment match,
      exact as far as a Gaussian kernel goes;
    - "optimal": v + c_0^2 e_t, e_t the profile's mean square error of x_0hat, and at s = 0 its
      `last`: the one number for all elements that makes the expected bound greatest (Bao et al.
      2022b, Theorem 3; of a perfect score that of Bao et al. 2022a).

    At s = 0, where v is 0, the first three keep the step before's posterior variance, so that the
    last step stays a distribution.
    """
    of_x_0, _, posterior = process.posterior_coefficients(t, s)
    zero = torch.zeros_like(posterior)
    if kind == "moment":
        scale = of_x_0.square() * (1 - process.alpha_bar[t])
        return torch.stack((posterior, scale, torch.ones_like(zero)), 1)
    if kind == "optimal":
        assert profile is not None  # DiffusionModel sees to it
        var = posterior + of_x_0.square() * profile.error[t]
        return torch.stack((torch.where(s == 0, profile.last[t], var), zero, zero), 1)
    lower = torch.where(s == 0, _last(process, t), posterior)
    upper = 1 - process.rate(t, s)
    if kind == "interpolated":
        width = (upper.log() - lower.log()) / 2
        return torch.stack((zero, (upper * lower).sqrt(), width), 1)
    var = lower if kind == "lower" else torch.where(s == 0, lower, upper)
    return torch.stack((var, zero, zero), 1)


def _last(process: GaussianProcess, t: Tensor) -> Tensor:
    """The posterior's variance one equal stride earlier, 2t -> t, for rows that step to 0."""
    earlier = (2 * t).clamp(max=process.T)
    _, _, var = process.posterior_coefficients(earlier, t)
    return torch.where(earlier > t, var, 1 - process.alpha_bar[t])


def read_gaussian(
    process: GaussianProcess,
    kind: PredictionKind,
    variance: VarianceKind | None,
    output: Tensor,
    x_t: Tensor,
    t: Tensor,
    of_x_0: Tensor | Sequence[Tensor] | None = None,
    profile: Profile | None = None,
) -> GaussianPrediction:
    """A Gaussian network's output as a prediction.

    x_0hat is that of `affine`; for "perturbation" Sigma = sigmoid(z_Sigma + logit beta_t), mean =
    (x_t - z)(1 - Sigma) + z (Sohl-Dickstein et al. 2015, Equation 65), and the x_0 whose posterior
    has that mean.

    Args:
        process: the forward process.
        kind: what the network predicts.
        variance: which variance the reverse kernel has; None with "perturbation", which has its
            own.
        output: [B, outputs * event[0], ...].
        x_t: [B, *event].
        t: int64 [B], or [1] for all rows.
        of_x_0: `affine` where it has been worked out, [B, 2], or two numbers [] for all rows.
        profile: of `variance_terms`.
    """
    parts = output.to(x_t.dtype).split(x_t.shape[1], dim=1)
    first, extra = parts[0], parts[1] if len(parts) > 1 else None
    if kind == "perturbation":
        assert extra is not None  # DiffusionModel asks the network for it
        own = (extra + per_row(torch.logit(process.beta[t]), x_t)).sigmoid()
        mean = (x_t - first) * (1 - own) + first
        c_0, c_t, _ = process.posterior_coefficients(t, t - 1)
        x_0 = (mean - per_row(c_t, x_t) * x_t) / per_row(c_0, x_t)
        return GaussianPrediction(process, x_t, t, x_0, variance, own=own)
    if kind == "x_0":
        return GaussianPrediction(process, x_t, t, first, variance, extra, profile=profile)
    of = affine(process, kind, t) if of_x_0 is None else of_x_0
    p, q = (per_row(part, x_t) for part in of.unbind(1)) if isinstance(of, Tensor) else of
    x_0 = blend(p, x_t, q, first)
    return GaussianPrediction(process, x_t, t, x_0, variance, extra, profile=profile)


def read_binomial(
    process: BinomialProcess, kind: PredictionKind, output: Tensor, x_t: Tensor, t: Tensor
) -> BinomialPrediction:
    """A binomial network's output as a prediction.

    - "x_0": the logits of P(x_0 = 1 | x_t);
    - "perturbation": f_b, logits of p(x_{t-1} | x_t) beside those of the forward kernel's
      x_t (1 - beta_t) + rho beta_t (Sohl-Dickstein et al. 2015, Table App.1).

    Args:
        process: the forward process.
        kind: what the network predicts.
        output: [B, *event].
        x_t: bits [B, *event].
        t: int64 [B].
    """
    output = output.to(x_t.dtype)
    if kind == "x_0":
        return BinomialPrediction(process, x_t, t, output)
    own = Bernoulli(output + process.forward_kernel(x_t, t).logits)
    x_0 = process.unmix(own, x_t, t, t - 1)
    return BinomialPrediction(process, x_t, t, torch.logit(x_0, eps=1e-6), own)


@dataclass(frozen=True)
class Output(ABC):
    """What a network's output means under one kind of process.

    Attributes:
        prediction: what the network predicts.
        variance: the reverse kernel's variance, if that is chosen.
        profile: what was measured of the model, if anything was.
    """

    prediction: PredictionKind
    variance: VarianceKind | None
    profile: Profile | None = None

    @property
    @abstractmethod
    def count(self) -> int:
        """How many numbers an element the network gives."""

    @abstractmethod
    def check(self, space: DataSpace) -> None:
        """Raise ValueError unless prediction, variance and data fit each other."""

    @abstractmethod
    def affine(self, t: Tensor) -> Tensor | None:
        """(p, q) of x_0hat = p x_t + q f, float64 [B, 2]; None where it is no such combination."""

    @abstractmethod
    def read(
        self, output: Tensor, x_t: Tensor, t: Tensor, of_x_0: Tensor | Sequence[Tensor] | None
    ) -> Prediction:
        """The output [B, ...] as a prediction; `of_x_0` is `affine`, worked out before."""

    @abstractmethod
    def table(self, t: Tensor, s: Tensor) -> Tensor:
        """The ancestral steps of a plan, float64 [n, 6]."""


@final
@dataclass(frozen=True)
class GaussianOutput(Output):
    """eps, x_0, v or the paper's own mean, with or without a variance."""

    process: GaussianProcess = field(kw_only=True)

    @property
    @override
    def count(self) -> int:
        """2 where the network gives a variance too, else 1."""
        own = self.prediction == "perturbation" or self.variance in ("interpolated", "moment")
        return 2 if own else 1

    @override
    def check(self, space: DataSpace) -> None:
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
        check_signal(self.process, self.prediction)

    @override
    def affine(self, t: Tensor) -> Tensor | None:
        return (
            None if self.prediction == "perturbation" else affine(self.process, self.prediction, t)
        )

    @override
    def read(
        self, output: Tensor, x_t: Tensor, t: Tensor, of_x_0: Tensor | Sequence[Tensor] | None
    ) -> GaussianPrediction:
        kinds = self.prediction, self.variance
        return read_gaussian(self.process, *kinds, output, x_t, t, of_x_0, self.profile)

    @override
    def table(self, t: Tensor, s: Tensor) -> Tensor:
        assert self.variance is not None  # only "perturbation" has none, whose kernel is its own
        b, a, _ = self.process.posterior_coefficients(t, s)
        mean = torch.stack((a, b, torch.zeros_like(a)), 1)
        variance = variance_terms(self.process, self.variance, t, s, self.profile)
        return torch.cat((mean, variance), 1)


@final
@dataclass(frozen=True)
class BinomialOutput(Output):
    """The logits of x_0, or the paper's own kernel."""

    process: BinomialProcess = field(kw_only=True)

    @property
    @override
    def count(self) -> int:
        return 1

    @override
    def check(self, space: DataSpace) -> None:
        if space.kind != "bits":
            raise ValueError(f"a binomial process models bits, came a space of kind {space.kind!r}")
        if self.prediction not in ("x_0", "perturbation") or self.variance is not None:
            raise ValueError(
                "a binomial model predicts 'x_0' or 'perturbation' and has no variance, came "
                f"prediction {self.prediction!r}, variance {self.variance!r}"
            )

    @override
    def affine(self, t: Tensor) -> None:
        return None

    @override
    def read(
        self, output: Tensor, x_t: Tensor, t: Tensor, of_x_0: Tensor | Sequence[Tensor] | None
    ) -> BinomialPrediction:
        return read_binomial(self.process, self.prediction, output, x_t, t)

    @override
    def table(self, t: Tensor, s: Tensor) -> Tensor:
        return F.pad(self.process.mixing(t, s), (0, 2))


def output_of(
    process: Process,
    prediction: PredictionKind,
    variance: VarianceKind | None,
    profile: Profile | None = None,
) -> Output:
    """What a network's output means under a process."""
    if isinstance(process, BinomialProcess):
        return BinomialOutput(prediction, variance, profile, process=process)
    assert isinstance(process, GaussianProcess)  # there are two
    return GaussianOutput(prediction, variance, profile, process=process)


def check_signal(process: Process, prediction: PredictionKind) -> None:
    """Raise ValueError where a schedule leaves no signal at t = T, and the prediction needs it."""
    if prediction == "eps" and float(process.alpha_bar[-1]) == 0:
        raise ValueError(
            "prediction 'eps' says nothing of x_0 at t = T, where this schedule leaves no signal "
            "(alpha_bar_T = 0): use 'v' or 'x_0', or a schedule that ends above 0"
        )
