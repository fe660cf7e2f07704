"""Samplers: the steps that a chain takes from x_T to x_0, and how each draws x_s given x_t.

    x_s ~ N(a x_t + b x_0hat + c x_0hat_previous, v_0 + v_1 exp(w z)),    reals
    x_s ~ B(a + b x_t + (c + d x_t) x_0hat),                              bits

z is the network's second output. A sampler writes these coefficients into a table with a row per
network evaluation, so one update can mix rows of different samplers. If the network gives the
kernel itself (the paper's perturbation), draws come from it directly. An observation multiplies
the kernel of each step:

    p~(x_s | x_t) proportional to p(x_s | x_t) r(x_s)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal, final, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from typing_extensions import override

from diffusion.model import DiffusionModel
from diffusion.noise import CounterNoise, DrawnNoise, Noise, Stream, counter_noise
from diffusion.observation import Observation
from diffusion.process import Prediction, Process
from diffusion.rows import per_row

_NUMBERS = 2**18  # random numbers drawn at once: a few MB


@final
@dataclass(frozen=True)
class Update:
    """One plan position for B rows, or k positions in turn; B = 1 stands for all rows.

    Attributes:
        t: int64 [B], or [k, B].
        s: int64 [B], or [k, B].
        table: float64 [B, 6], or [k, B, 6].
        own: which rows draw from the network's own kernel, bool [B]; or one bool for all.
        shared: for one position with B = 1, the table's columns, float [] each.
    """

    t: Tensor
    s: Tensor
    table: Tensor
    own: Tensor | bool
    shared: Sequence[Tensor] | None = None

    def step(self, i: int) -> "Update":
        """Select the i-th of k positions."""
        return Update(self.t[i], self.s[i], self.table[i], self.own)

    def steps(self, dtype: torch.dtype) -> list["Update"]:
        """Split into k single positions, for rows of type `dtype`."""
        columns = zip(self.t.unbind(), self.s.unbind(), self.table.unbind(), strict=True)
        if self.t.shape[1] > 1:
            return [Update(t, s, table, self.own) for t, s, table in columns]
        # Scalar tensors broadcast to rows of any shape and cost less than Python numbers.
        flat, width = self.table.to(dtype).flatten().unbind(), self.table.shape[2]
        return [
            Update(t, s, table, self.own, flat[width * i : width * (i + 1)])
            for i, (t, s, table) in enumerate(columns)
        ]

    def columns(self, like: Tensor) -> Sequence[Tensor]:
        """Return the table's columns at one position, broadcastable to `like` [B, *event]."""
        return self.shared or [per_row(column, like) for column in self.table.unbind(1)]


@final
@dataclass(frozen=True)
class Plan:
    """The positions of a chain, one per network evaluation, computed when a request is admitted.

    Most samplers use one position per step. One that evaluates the network twice per step uses two:
    the second starts from the result of the first and gets its x_0hat as `previous`.

    Attributes:
        t: int64 [n], never ascending: where the network is evaluated.
        s: int64 [n], s <= t: where the position ends; the last is 0.
        table: float64 [n, 6]: a, b, c, v_0, v_1, w; for bits a, b, c, d, 0, 0.
        own: whether to draw from the network's own kernel and ignore `table`.
        points: whether every position is free of noise.
    """

    t: Tensor
    s: Tensor
    table: Tensor
    own: bool
    points: bool = False

    def __len__(self) -> int:
        """The number of positions, which is the network evaluations per row."""
        return len(self.t)

    def until(self, stop: int) -> int:
        """Count the positions up to and including the first at t <= stop; all if stop is 0.

        Raises:
            ValueError: `stop` is outside the chain.
        """
        if not 0 <= stop <= int(self.t[0]):
            raise ValueError(
                f"chains stop at a step from 1 to {int(self.t[0])}, came {stop}: 0 goes all the way"
            )
        return min(int((self.t > stop).sum()) + 1, len(self))

    @cached_property
    def joined(self) -> Tensor:
        """The columns t, s and the table side by side, float64 [n, 8]."""
        return torch.cat((self.t[:, None], self.s[:, None], self.table), 1)

    def at(self, step: int, device: torch.device) -> Update:
        """Return one position as an update for all rows."""
        return self.whole(device, slice(step, step + 1)).step(0)

    def whole(self, device: torch.device, part: slice = slice(None)) -> Update:
        """Return all positions, or a slice of them, as an update for all rows."""
        t, s, table = (x[part, None].to(device) for x in (self.t, self.s, self.table))
        return Update(t, s, table, self.own)


def share_of(steps: int, start: int, T: int) -> int:
    """Return how many of a whole chain's steps one that starts at `start`, 1..T, takes."""
    return max(1, round(steps * start / T))


class Sampler(BaseModel, ABC):
    """The configuration of a sampler, which makes plans.

    To add one, write a subclass here and add it to `SamplerConfig`, from which requests, the page,
    the commands and the generated documentation read the samplers.

    Attributes:
        bits: whether it also serves binary data.
        name: the sampler's name.
        steps: steps of a whole chain; None for T. A chain that starts at t < T takes its share.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    bits: ClassVar[bool] = False
    name: str
    steps: int | None

    @classmethod
    def serves(cls, process: Process) -> bool:
        """Return whether it can draw chains of that process."""
        return cls.bits or process.continuous

    def plan(self, model: DiffusionModel, start: int | None = None) -> Plan:
        """Plan the positions from `start` (default T) down to 0.

        Raises:
            ValueError: more steps than the model has, or a process that it does not serve.
        """
        if not self.serves(model.process):
            raise ValueError(f"sampler '{self.name}' is for real data: bits have 'ancestral'")
        T = model.T
        start, steps = T if start is None else start, T if self.steps is None else self.steps
        if steps > T:
            raise ValueError(f"this model has {T} steps, came {steps}: ask for {T} or fewer")
        count = share_of(steps, start, T)
        t = (start * torch.arange(count, 0, -1, dtype=torch.float64) / count).ceil().long()
        return self.plan_of(model, t, torch.cat((t[1:], t.new_zeros(1))))

    @abstractmethod
    def plan_of(self, model: DiffusionModel, t: Tensor, s: Tensor) -> Plan:
        """Plan the steps t -> s, int64 [n] each, evenly spaced and descending."""


@final
class Ancestral(Sampler):
    """Draw x_s from the model's own kernel p(x_s | x_t), with any number of steps."""

    bits: ClassVar[bool] = True
    name: Literal["ancestral"] = "ancestral"
    steps: int | None = Field(None, ge=1)

    @override
    def plan_of(self, model: DiffusionModel, t: Tensor, s: Tensor) -> Plan:
        at = t.to(model.device), s.to(model.device)
        if model.output.own:
            return Plan(t, s, torch.zeros(len(t), 6, dtype=torch.float64), own=True)
        return Plan(t, s, model.output.table(*at).cpu(), own=False)


@final
class DDIM(Sampler):
    """DDIM: no noise at eta = 0, ancestral at eta = 1 (Song, Meng and Ermon 2021, Equation 12).

    d = eta sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t) (1 - alpha_bar_t / alpha_bar_s)),
    a = sqrt((1 - alpha_bar_s - d^2) / (1 - alpha_bar_t)), b = sqrt(alpha_bar_s) - a
    sqrt(alpha_bar_t).
    """

    name: Literal["ddim"] = "ddim"
    steps: int = Field(50, ge=1)
    eta: float = Field(0.0, ge=0, le=1)

    @override
    def plan_of(self, model: DiffusionModel, t: Tensor, s: Tensor) -> Plan:
        at_t, at_s = _signal(model.process, t, s)
        d = self.eta * ((1 - at_s) / (1 - at_t) * (1 - at_t / at_s)).sqrt()
        a = ((1 - at_s - d.square()).clamp_min(0) / (1 - at_t)).sqrt()
        b = at_s.sqrt() - a * at_t.sqrt()
        table = _table(a, b, torch.zeros_like(a), d.square())
        return Plan(t, s, table, own=False, points=not bool((d > 0).any()))


@final
class DPMSolver(Sampler):
    """DPM-Solver++(2M), first order at both ends (Lu et al. 2022, Algorithm 2).

    With lambda = log(sqrt(alpha_bar) / sigma), h = lambda_s - lambda_t and r = h_previous / h:
    x_s = (sigma_s / sigma_t) x_t + sqrt(alpha_bar_s) (1 - e^-h) ((1 + 1/2r) x_0hat - (1/2r)
    previous).
    """

    name: Literal["dpmpp_2m"] = "dpmpp_2m"
    steps: int = Field(20, ge=1)

    @override
    def plan_of(self, model: DiffusionModel, t: Tensor, s: Tensor) -> Plan:
        at_t, at_s = _signal(model.process, t, s)
        sigma_t, sigma_s = (1 - at_t).sqrt(), (1 - at_s).sqrt()
        a = sigma_s / sigma_t
        change = at_s.sqrt() - at_t.sqrt() * a  # sqrt(alpha_bar_s) (1 - e^-h), always finite
        h = (torch.logit(at_s) - torch.logit(at_t)) / 2
        half_inverse = torch.zeros_like(a)
        half_inverse[1:] = h[1:] / (2 * h[:-1])
        half_inverse[-1] = 0.0
        b, c = change * (1 + half_inverse), -change * half_inverse
        return Plan(t, s, _table(a, b, c, torch.zeros_like(a)), own=False, points=True)


SamplerConfig = Annotated[Ancestral | DDIM | DPMSolver, Field(discriminator="name")]

#: The samplers of `SamplerConfig`, by name.
SAMPLERS: dict[str, type[Sampler]] = {
    kind.model_fields["name"].default: kind for kind in get_args(get_args(SamplerConfig)[0])
}


def _table(a: Tensor, b: Tensor, c: Tensor, var: Tensor) -> Tensor:
    """Build the table of a plan whose variances do not depend on the network."""
    zero = torch.zeros_like(a)
    return torch.stack((a, b, c, var, zero, zero), 1)


def _signal(process: Process, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha_bar_t and alpha_bar_s, on the CPU."""
    alpha_bar = process.alpha_bar.cpu()
    return alpha_bar[t], alpha_bar[s]


# --------------------------------------------------------------------------------------- sampling


def advance(
    prediction: Prediction,
    x_t: Tensor,
    previous: Tensor,
    update: Update,
    noise: Noise,
    observation: Observation | None,
) -> Tensor:
    """Draw x_s of B rows from a finished network call, [B, *event].

    Args:
        prediction: `model.predict(x_t, update.t, observation=observation)`.
        x_t: [B, *event].
        previous: x_0hat of each row's previous step, [B, *event]; unused by a first step.
        update: each row's step.
        noise: the noise of this step.
        observation: what was seen, [B, *event]; None if nothing was seen of any row.
    """
    columns = () if update.own is True else update.columns(x_t)
    seen = None if observation is None else observation.multiplied
    return prediction.draw(x_t, columns, previous, update.own, update.s, noise, seen)


def begin(
    model: DiffusionModel, noise: Noise, observation: Observation | None, rows: int
) -> Tensor:
    """Draw x_T of new chains from pi(x_T) r(x_T), [rows, *event]."""
    prior = model.process.prior(model.event, rows)
    return (prior if observation is None else observation.multiplied.multiply(prior)[0]).sample(
        noise
    )


def step(
    model: DiffusionModel,
    x_t: Tensor,
    previous: Tensor,
    update: Update,
    noise: Noise,
    observation: Observation | None = None,
) -> tuple[Tensor, Tensor]:
    """Advance rows by one step with one network call; returns x_s and x_0hat, [B, *event] each."""
    prediction = model.predict(x_t, update.t, observation=observation)
    return advance(prediction, x_t, previous, update, noise, observation), prediction.x_0


@torch.inference_mode()
def sample(
    model: DiffusionModel,
    rows: int,
    *,
    seed: int,
    sampler: Sampler | None = None,
    observation: Observation | None = None,
    start: tuple[int, Tensor] | None = None,
    stop: int = 0,
    progress: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Draw from p(x_0) r(x_0) with one plan for all rows, model units [rows, *event].

    Noise is numbered by a step's t, or T + 1 for x_T, so a sample depends on the seed and its row
    alone.

    Args:
        model: the model.
        rows: how many chains.
        seed: the seed of the noise.
        sampler: the sampler (default: ancestral at all T steps).
        observation: what was seen, [rows, *event] (default: nothing).
        start: (t, x_t [rows, *event]) to start from instead of x_T.
        stop: if above 0, end the chains after their first step at t <= stop and return x_0hat
            there, the mean of where they could have ended.
        progress: called after each step with the number of steps made and x_0hat.

    Raises:
        ValueError: the sampler does not fit the model or the observation, or `stop` is outside the
            chain.
    """
    device = model.device
    row = torch.arange(rows, device=device)
    plan = (sampler or Ancestral()).plan(model, None if start is None else start[0])
    _check_observation(plan, observation)
    if start is None:
        noise = counter_noise(seed, row, model.T + 1, Stream.CHAIN)
        x = begin(model, noise, observation, rows)
    else:
        x = start[1].to(device)
    seeds, x_0 = torch.full_like(row, seed), torch.zeros_like(x)

    def watch(made: int, _: Tensor, estimate: Tensor) -> None:
        if progress is not None:
            progress(made, estimate)

    update = plan.whole(device, slice(plan.until(stop)))
    end, estimate = burst(model, x, x_0, update, seeds, row, observation, watch)
    return estimate if stop else end


def burst(
    model: DiffusionModel,
    x_t: Tensor,
    previous: Tensor,
    update: Update,
    seed: Tensor,
    row: Tensor,
    observation: Observation | None = None,
    watch: Callable[[int, Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Make several steps in turn; returns x_s and x_0hat after the last.

    Noise is drawn for many steps at once, and times that all rows share are computed up front.

    Args:
        model: the model.
        x_t: [B, *event].
        previous: x_0hat of the previous step, [B, *event].
        update: the steps, [k, B].
        seed: seeds of the noise, int64 [B].
        row: row numbers in the noise, int64 [B].
        observation: what was seen, [B, *event].
        watch: called after each step with the number of steps made, x_s and x_0hat.
    """
    rows = len(x_t)
    times = model.times(update.t[:, 0]).each() if update.t.shape[1] == 1 else None
    together = max(1, _NUMBERS // x_t.numel())
    for i, here in enumerate(update.steps(x_t.dtype)):
        if i % together == 0:
            t = update.t[i : i + together]
            noise = CounterNoise(
                seed.repeat(len(t)), row.repeat(len(t)), t.expand(-1, rows).flatten()
            )
            drawn = model.process.step_noise(noise, model.event)
            draws = drawn.unflatten(0, (len(t), rows)).unbind()
        at = here.t if times is None else times[i]
        prediction = model.predict(x_t, at, observation=observation)
        drawn_here = DrawnNoise(draws[i % together])
        x_t = advance(prediction, x_t, previous, here, drawn_here, observation)
        previous = prediction.carried(previous)
        if watch is not None:
            watch(i + 1, x_t, previous)
    return x_t, previous


def _check_observation(plan: Plan, observation: Observation | None) -> None:
    """Raise ValueError if noise-free steps would ignore a noisy observation."""
    if observation is not None and plan.points and observation.multiplied.factor.noisy:
        raise ValueError(
            "steps without noise cannot follow an observation with noise: use "
            "'ancestral', or 'ddim' with eta above 0"
        )
