"""Samplers as plans: which steps, and how x_s follows from x_t at each.

    x_s = a x_t + b x_0hat + c x_0hat_previous + d n

holds for DDIM and DPM-Solver++(2M); an ancestral step draws from the model's own reverse kernel.
Both are a kernel over x_s, so both can be multiplied by an observation, and one update serves any
rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from typing_extensions import override

from diffusion.distributions import Distribution, Normal
from diffusion.model import DiffusionModel
from diffusion.noise import Noise, Stream, counter_noise
from diffusion.posterior import Observation, restrict
from diffusion.prediction import Prediction
from diffusion.process import GaussianProcess, Process, per_row


@final
@dataclass(frozen=True)
class Plan:
    """A sampler's steps, worked out once when a request is admitted.

    Attributes:
        t: int64 [n], descending.
        s: int64 [n]: where each step ends; the last at 0.
        linear: float64 [n, 4]: a, b, c, d.
        ancestral: whether the steps draw from the model's own kernel; `linear` is then not used.
    """

    t: Tensor
    s: Tensor
    linear: Tensor
    ancestral: bool

    def __len__(self) -> int:
        """The number of steps, each one network evaluation a row."""
        return len(self.t)


class _Sampler(BaseModel, ABC):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def plan(self, process: Process, start: int | None = None) -> Plan:
        """The steps from `start` (T where it is not given) down to 0.

        Raises:
            ValueError: more steps than there are, or a sampler that the process does not have.
        """
        start = process.T if start is None else start
        t = _spaced(start, self._count(process.T, start))
        s = torch.cat((t[1:], t.new_zeros(1)))
        return self._plan(process, t, s)

    @abstractmethod
    def _count(self, T: int, start: int) -> int: ...

    @abstractmethod
    def _plan(self, process: Process, t: Tensor, s: Tensor) -> Plan: ...


@final
class Ancestral(_Sampler):
    """x_s ~ p(x_s | x_t), the model's own kernel, at any number of steps.

    Attributes:
        steps: of a whole chain, T where it is not given; a chain that starts at t < T takes its
            share.
    """

    name: Literal["ancestral"] = "ancestral"
    steps: int | None = Field(None, ge=1)

    @override
    def _count(self, T: int, start: int) -> int:
        return _share(T if self.steps is None else self.steps, T, start)

    @override
    def _plan(self, process: Process, t: Tensor, s: Tensor) -> Plan:
        return Plan(t, s, torch.zeros(len(t), 4, dtype=torch.float64), ancestral=True)


@final
class DDIM(_Sampler):
    """Song, Meng and Ermon 2021, Equation 12: eta = 0 draws no noise, eta = 1 is ancestral's lower.

    d = eta sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t) (1 - alpha_bar_t / alpha_bar_s)),
    a = sqrt((1 - alpha_bar_s - d^2) / (1 - alpha_bar_t)), b = sqrt(alpha_bar_s) - a
    sqrt(alpha_bar_t).
    """

    name: Literal["ddim"] = "ddim"
    steps: int = Field(50, ge=1)
    eta: float = Field(0.0, ge=0, le=1)

    @override
    def _count(self, T: int, start: int) -> int:
        return _share(self.steps, T, start)

    @override
    def _plan(self, process: Process, t: Tensor, s: Tensor) -> Plan:
        at_t, at_s = _signal(process, t, s, self.name)
        d = self.eta * ((1 - at_s) / (1 - at_t) * (1 - at_t / at_s)).sqrt()
        a = ((1 - at_s - d.square()).clamp_min(0) / (1 - at_t)).sqrt()
        b = at_s.sqrt() - a * at_t.sqrt()
        return Plan(t, s, torch.stack((a, b, torch.zeros_like(a), d), 1), ancestral=False)


@final
class DPMSolver(_Sampler):
    """DPM-Solver++(2M), Lu et al. 2022, Algorithm 2, first order at both ends.

    With lambda = log(sqrt(alpha_bar) / sigma), h = lambda_s - lambda_t and r = h_previous / h:
    x_s = (sigma_s / sigma_t) x_t + sqrt(alpha_bar_s) (1 - e^-h) ((1 + 1/2r) x_0hat - (1/2r)
    previous).
    """

    name: Literal["dpmpp_2m"] = "dpmpp_2m"
    steps: int = Field(20, ge=1)

    @override
    def _count(self, T: int, start: int) -> int:
        return _share(self.steps, T, start)

    @override
    def _plan(self, process: Process, t: Tensor, s: Tensor) -> Plan:
        at_t, at_s = _signal(process, t, s, self.name)
        sigma_t, sigma_s = (1 - at_t).sqrt(), (1 - at_s).sqrt()
        a = sigma_s / sigma_t
        change = at_s.sqrt() - at_t.sqrt() * a  # sqrt(alpha_bar_s) (1 - e^-h), with no infinity
        h = (torch.logit(at_s) - torch.logit(at_t)) / 2
        half_inverse = torch.zeros_like(a)
        half_inverse[1:] = h[1:] / (2 * h[:-1])
        half_inverse[-1] = 0.0
        b, c = change * (1 + half_inverse), -change * half_inverse
        return Plan(t, s, torch.stack((a, b, c, torch.zeros_like(a)), 1), ancestral=False)


Sampler = Annotated[Ancestral | DDIM | DPMSolver, Field(discriminator="name")]


def _share(steps: int, T: int, start: int) -> int:
    """The part of `steps` that a chain from `start` takes, at least 1."""
    if steps > T:
        raise ValueError(f"this model has {T} steps, came {steps}: ask for {T} or fewer")
    return max(1, round(steps * start / T))


def _spaced(start: int, count: int) -> Tensor:
    """`count` distinct steps from `start` down, evenly spaced, the last stride ending at 0."""
    return (start * torch.arange(count, 0, -1, dtype=torch.float64) / count).ceil().long()


def _signal(process: Process, t: Tensor, s: Tensor, name: str) -> tuple[Tensor, Tensor]:
    if not isinstance(process, GaussianProcess):
        raise ValueError(f"sampler '{name}' is for real data: bits have 'ancestral'")
    alpha_bar = process.alpha_bar.cpu()
    return alpha_bar[t], alpha_bar[s]


@final
@dataclass(frozen=True)
class Update:
    """One step of B rows, of any plans: their entries, gathered.

    Attributes:
        t: int64 [B].
        s: int64 [B].
        linear: float64 [B, 4].
        ancestral: bool [B].
    """

    t: Tensor
    s: Tensor
    linear: Tensor
    ancestral: Tensor

    @classmethod
    def of(cls, plan: Plan, step: int, rows: int, device: torch.device) -> "Update":
        """Step number `step` of one plan, for all rows."""
        at = torch.full((rows,), step)
        kernel = torch.full((rows,), plan.ancestral)
        return cls(
            plan.t[at].to(device),
            plan.s[at].to(device),
            plan.linear[at].to(device),
            kernel.to(device),
        )


def advance(
    prediction: Prediction,
    x_t: Tensor,
    previous: Tensor,
    update: Update,
    noise: Noise,
    observation: Observation,
) -> Tensor:
    """x_s of B rows from a network call already made, [B, *event].

    Args:
        prediction: `model.predict(x_t, update.t)`.
        x_t: [B, *event].
        previous: the x_0hat of each row's step before, [B, *event]; not used by a first step.
        update: each row's step.
        noise: of this step.
        observation: what was seen, [B, *event]; `Observation.nothing` where nothing was.
    """
    kernel: Distribution = prediction.kernel(update.s)
    if isinstance(kernel, Normal):
        a, b, c, d = (per_row(column, x_t) for column in update.linear.unbind(1))
        own = per_row(update.ancestral, x_t).bool()
        mean = torch.where(own, kernel.mean, a * x_t + b * prediction.x_0 + c * previous)
        kernel = Normal(mean, torch.where(own, kernel.var, d.square()))
    return restrict(kernel, observation.factor).sample(noise)


def begin(model: DiffusionModel, noise: Noise, observation: Observation, rows: int) -> Tensor:
    """x_T of new chains, drawn from pi(x_T) r(x_T), [rows, *event]."""
    prior = model.process.prior(model.event, rows)
    return restrict(prior, observation.factor).sample(noise)


def step(
    model: DiffusionModel,
    x_t: Tensor,
    previous: Tensor,
    update: Update,
    noise: Noise,
    observation: Observation,
) -> tuple[Tensor, Tensor]:
    """Advance any rows by one step: x_s and x_0hat, [B, *event] each; one network call."""
    prediction = model.predict(x_t, update.t)
    return advance(prediction, x_t, previous, update, noise, observation), prediction.x_0


@torch.inference_mode()
def sample(
    model: DiffusionModel,
    rows: int,
    *,
    seed: int,
    sampler: Ancestral | DDIM | DPMSolver | None = None,
    observation: Observation | None = None,
    start: tuple[int, Tensor] | None = None,
    progress: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Draw from p(x_0) r(x_0) with one plan for all rows, model units [rows, *event].

    The noise of a step is numbered by its t, and that of x_T by T + 1, so an answer depends on the
    seed and the row alone.

    Args:
        model: the model.
        rows: how many chains.
        seed: of the noise.
        sampler: ancestral at all T steps where it is not given.
        observation: what was seen, [rows, *event]; nothing where it is not given.
        start: (t, x_t [rows, *event]) to go on from, in place of x_T.
        progress: called after each step with the number of steps made and x_0hat.

    Raises:
        ValueError: a sampler that the model or the observation cannot have.
    """
    device = model.device
    row = torch.arange(rows, device=device)
    seen = observation or Observation.nothing(model.process, model.event, rows)
    plan = (sampler or Ancestral()).plan(model.process, None if start is None else start[0])
    _check_observation(plan, seen)
    if start is None:
        x = begin(model, counter_noise(seed, row, model.T + 1, Stream.CHAIN), seen, rows)
    else:
        x = start[1].to(device)
    x_0 = torch.zeros_like(x)
    for number in range(len(plan)):
        update = Update.of(plan, number, rows, device)
        noise = counter_noise(seed, row, update.t, Stream.CHAIN)
        x, x_0 = step(model, x, x_0, update, noise, seen)
        if progress is not None:
            progress(number + 1, x_0)
    return x


def _check_observation(plan: Plan, observation: Observation) -> None:
    """Raise ValueError where a factor would be ignored: a step that is a point cannot follow it."""
    factor = observation.factor
    if not isinstance(factor, Normal) or plan.ancestral or bool((plan.linear[:, 3] > 0).any()):
        return
    if bool((torch.isfinite(factor.var) & (factor.var > 0)).any()):
        raise ValueError(
            "steps without noise are points, which an observation with noise does not move: use "
            "'ancestral', or 'ddim' with eta above 0"
        )
