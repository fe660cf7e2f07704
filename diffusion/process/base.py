"""The interface of a process: its trajectory q, its kernels and its reading of network outputs.

    q(x_t | x_0) has signal alpha_bar_t
    q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s | x_0)

`t` and `s` are int64 [B], one entry per row, s < t, at any stride; the paper has s = t - 1
(Sohl-Dickstein et al. 2015, Table App.1). Coefficients are computed in float64 and cast once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from diffusion.distributions import Distribution, Tilt
from diffusion.noise import Noise
from diffusion.observation import Observation
from diffusion.operators import LinearOperator
from diffusion.profile import Profile
from diffusion.rows import Rows
from diffusion.schedule import Tables, alpha_bar, check_beta
from diffusion.space import Space

PredictionKind = Literal["eps", "x_0", "v", "perturbation"]
VarianceKind = Literal["lower", "upper", "interpolated", "moment", "optimal", "contrast"]
#: Variances that are read from a profile; a fit uses "lower" in their place.
MEASURED: tuple[VarianceKind, ...] = ("optimal", "contrast")


class Config(BaseModel, ABC):
    """The configuration of a process; a subclass adds a `kind` and a schedule."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    T: int = Field(ge=1, le=100_000)

    @abstractmethod
    def build(self) -> "Process":
        """Build the process with the schedule's table."""


class Process(Tables, ABC):
    """The forward process q of T steps.

    Args:
        beta: float64 [T + 1], beta[0] = 0.
    """

    #: Whether x_t is real, so that x_0hat and twists are differentiable in it.
    continuous: ClassVar[bool] = True
    #: Whether particles are what `auto` takes where no family is certified. A row of several kinds
    #: has a twist of each part on its own, which misses how they depend on each other.
    by_particles: ClassVar[bool] = True
    beta: Tensor
    alpha_bar: Tensor

    def __init__(self, beta: Tensor) -> None:
        super().__init__()
        check_beta(beta)
        self.register_buffer("beta", beta.double())
        self.register_buffer("alpha_bar", alpha_bar(beta), persistent=False)

    def refresh(self) -> None:
        """Recompute alpha_bar after `beta` was loaded."""
        check_beta(self.beta)
        self.alpha_bar.copy_(alpha_bar(self.beta))

    def take(self, beta: Tensor) -> None:
        """Replace beta by a table, float64 [T + 1], that gradients pass through."""
        check_beta(beta)
        self.beta, self.alpha_bar = beta, alpha_bar(beta)

    @property
    def T(self) -> int:
        """The number of steps."""
        return len(self.beta) - 1

    def log_snr(self, t: Tensor) -> Tensor:
        """Return the log SNR, log(alpha_bar_t / (1 - alpha_bar_t)), float64 [B], maybe infinite."""
        return torch.logit(self.alpha_bar[t])

    def rate(self, t: Tensor, s: Tensor) -> Tensor:
        """Return the signal kept from s to t, alpha_bar_t / alpha_bar_s, float64 [B]."""
        return self.alpha_bar[t] / self.alpha_bar[s]

    @abstractmethod
    def prior(self, event: Sequence[int], rows: int) -> Distribution:
        """Return pi(x_T), [rows, *event]."""

    @abstractmethod
    def nothing_seen(self, event: Sequence[int], rows: int) -> Observation:
        """Return the observation r = 1, [rows, *event]."""

    @abstractmethod
    def observe(
        self, space: Space, operator: LinearOperator, y: Tensor, known: Tensor, noise: Tensor
    ) -> tuple[Observation, Tensor]:
        """Build r in model units, and the change of log p(y) from model to data units, nats [N].

        Args:
            space: the data space.
            operator: A; always a `Mask` for binary data.
            y: [N, *seen], data units.
            known: bool [N, *seen]; all True unless A is a `Mask`.
            noise: a standard deviation in data units, broadcastable to `y`; for binary data, a
                single flip probability.

        Raises:
            ValueError: the operator does not suit the data, or is singular and noise-free.
        """

    @abstractmethod
    def saw(self, y: Tensor, known: Tensor, noise: Tensor) -> Observation:
        """Build r from elements y [N, *event] in model units, seen where known with their noise."""

    def together(self, chosen: Tensor) -> Tensor:
        """Choose all elements of a column by its first one, bool [N, *event]."""
        return chosen

    @abstractmethod
    def noisy(self, x_0: Tensor, level: Tensor, u: Tensor) -> Tensor:
        """Add noise of a level, broadcastable to x_0, from uniform numbers u, [N, *event] both."""

    @property
    @abstractmethod
    def noise_levels(self) -> tuple[float, float]:
        """The least and most noise of observations that a network is trained for by default."""

    @abstractmethod
    def output(
        self,
        prediction: PredictionKind,
        variance: VarianceKind | None,
        profile: Profile | None = None,
    ) -> "Output":
        """Return the reader of a network's output under this process."""

    def check_signal(self, prediction: PredictionKind) -> None:
        """Raise ValueError if the prediction needs signal at t = T and the schedule leaves none."""
        if prediction == "eps" and float(self.alpha_bar[-1]) == 0:
            raise ValueError(
                "prediction 'eps' says nothing of x_0 at t = T, where this schedule leaves no "
                "signal (alpha_bar_T = 0): use 'v' or 'x_0', or a schedule that ends above 0"
            )

    @property
    @abstractmethod
    def most_noise(self) -> float:
        """The noise level below which a step can match an observation; 0 if none can."""

    @abstractmethod
    def matched_step(self, noise: float) -> tuple[int, float, float]:
        """Find the step t whose noise is nearest to that of an observation y.

        Returns:
            t, the factor c of x_t = c y, and the noise of that step.

        Raises:
            ValueError: no step can match.
        """

    @property
    @abstractmethod
    def power(self) -> float:
        """The mean square E x_T^2 of an element under pi."""

    @abstractmethod
    def step_noise(self, noise: Noise, event: Sequence[int]) -> Tensor:
        """Draw the random numbers that one step uses, [B, *event]."""

    @abstractmethod
    def likelihood(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tilt:
        """Return q(x_t | x_s) as a function of x_s."""

    @abstractmethod
    def guide(self, slope: Tensor, var: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return the slope by which to tilt p(x_s | x_t), from the slope of log r_t at x_t.

        Args:
            slope: float64 [B, *event].
            var: variance of p(x_s | x_t), float64, broadcastable to `slope`.
            t: int64 [B], or [1].
            s: int64, likewise.
        """

    @abstractmethod
    def marginal(self, x_0: Tensor, t: Tensor) -> Distribution:
        """Return q(x_t | x_0)."""

    @abstractmethod
    def forward_kernel(self, x_s: Tensor, t: Tensor, s: Tensor | None = None) -> Distribution:
        """Return q(x_t | x_s), s = t - 1 by default."""

    @abstractmethod
    def bridge(self, x_a: Tensor, x_t: Tensor, t: Tensor, s: Tensor, a: Tensor) -> Distribution:
        """Return q(x_s | x_t, x_a), proportional to q(x_t | x_s) q(x_s | x_a), a <= s < t.

        At s = a it is the point x_a. x_a and x_t are [B, *event]; t, s and a int64 [B].
        """

    def posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Distribution:
        """Return q(x_s | x_t, x_0), s < t, the bridge from 0; at s = 0 the point x_0."""
        return self.bridge(x_0, x_t, t, s, torch.zeros_like(s))


class Prediction(Rows, ABC):
    """The result of a network call on B rows: an estimate of x_0 and the kernel p(x_s | x_t).

    Attributes:
        x_0: the estimate of x_0, model units [B, *event]; for bits the probability of a one.
        fixed: which elements of x_0 are known, bool [B, *event]; None for none.
    """

    x_0: Tensor
    fixed: Tensor | None

    @abstractmethod
    def pinned(self, values: Tensor, fixed: Tensor) -> Self:
        """Return a copy whose x_0 is known to be `values` in elements `fixed`, bool [B, *event]."""

    @abstractmethod
    def kernel(self, s: Tensor) -> Distribution:
        """Return p(x_s | x_t) for s < t, int64 [B]."""

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
        """Draw x_s at one position of a plan, [B, *event].

        Args:
            x_t: [B, *event], before rounding for the network.
            columns: the plan's table, each column `per_row` of x_t.
            previous: x_0hat of each row's previous position, [B, *event].
            own: which rows draw from the network's own kernel, bool [B]; or one bool for all.
            s: int64 [B].
            noise: the noise of this position.
            observation: [B, *event]; None if nothing was seen of any row.
        """

    @abstractmethod
    def given(
        self, observation: Observation, s: Tensor, estimate: "Estimate"
    ) -> tuple[Distribution, Tensor]:
        """Return p(x_s | x_t, y) and log p(y | x_t), nats float64 [B], by Bayes' rule.

        Args:
            observation: y, [B, *seen].
            s: int64 [B], s < t.
            estimate: gives them of reals, where they have no closed form.
        """

    @abstractmethod
    def carried(self, previous: Tensor) -> Tensor:
        """Return x_0hat as the next `previous`; NaN stays NaN for the rest of the chain."""

    @abstractmethod
    def error(self, x_0: Tensor) -> Tensor:
        """Return the simple loss per row, a mean over elements, [B]."""

    @abstractmethod
    def clipped(self, low: Tensor | None = None, high: Tensor | None = None) -> Self:
        """Clamp to the data's range, or to what the process allows if the data have none."""

    def settled(self, space: Space) -> Self:
        """Return a copy whose x_0 is one that data can have, where the space knows of a lattice."""
        del space
        return self

    @abstractmethod
    def at(self, x_t: Tensor) -> Self:
        """Return a copy at x_t [B, *event] as it was before rounding for the network."""


#: Estimates p(x_s | x_t, y) and log p(y | x_t) as `Prediction.given` returns them.
Estimate = Callable[[Prediction, Observation, Tensor], tuple[Distribution, Tensor]]


@dataclass(frozen=True)
class Output(ABC):
    """How to read a network's output under one kind of process.

    Attributes:
        prediction: what the network predicts.
        variance: the reverse kernel's variance; None if the network or the data fix it.
        profile: the model's profile, if measured.
    """

    prediction: PredictionKind
    variance: VarianceKind | None
    profile: Profile | None = None

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of network outputs per element."""

    @abstractmethod
    def check(self, space: Space) -> None:
        """Raise ValueError unless prediction, variance and data fit each other."""

    @property
    def own(self) -> bool:
        """Whether steps are drawn from the prediction's own kernel, without a `table`."""
        return self.prediction == "perturbation"

    def affine(self, t: Tensor) -> Tensor | None:
        """Return (p, q) of x_0hat = p x_t + q output, float64 [B, 2]; None if not affine."""
        del t
        return None

    def fused(
        self, x_t: Tensor, t: Tensor, factor: Distribution
    ) -> tuple[Tensor, Sequence[Tensor] | None] | None:
        """Return x_t and what was seen as one x, and the (p, q) of x_0hat = p x + q output, if any.

        None where a network reads what was seen beside x_t alone.

        Args:
            x_t: [B, *event].
            t: int64 [B], or [1] for all rows.
            factor: what the network is told, [B, *event]; nothing of the other rows.
        """
        del x_t, t, factor
        return None

    @abstractmethod
    def read(
        self,
        output: Tensor,
        x_t: Tensor,
        t: Tensor,
        of_x_0: Tensor | Sequence[Tensor] | None = None,
    ) -> Prediction:
        """Read a network's output as a prediction.

        Args:
            output: [B, count * event[0], ...].
            x_t: [B, *event].
            t: int64 [B], or [1] for all rows.
            of_x_0: `affine` if already computed, [B, 2], two numbers [] for all rows, or each
                element's [B, *event].
        """

    @abstractmethod
    def table(self, t: Tensor, s: Tensor) -> Tensor:
        """Return the table of the ancestral steps t -> s, float64 [n, 6] (`samplers.Plan`)."""
