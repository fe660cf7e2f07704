"""Samplers as plans: which steps, and how x_s follows from x_t at each.

    x_s ~ N(a x_t + b x_0hat + c x_0hat_previous, v_0 + v_1 exp(w z)),    of reals
    x_s ~ B(a + b x_t + (c + d x_t) x_0hat),                              of bits

with z the network's second output: ancestral steps, DDIM and DPM-Solver++(2M) alike, so one update
serves any rows. Only where the network gives the kernel itself (the paper's perturbation) an
ancestral step draws from that.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, final

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from typing_extensions import override

from diffusion.model import DiffusionModel
from diffusion.process import Process, per_row


@final
@dataclass(frozen=True)
class Update:
    """One step of B rows, or k of them in turn, of any plans: their entries, gathered.

    B = 1 stands for all rows.

    Attributes:
        t: int64 [B], or [k, B].
        s: int64 [B], or [k, B].
        table: float64 [B, 6], or [k, B, 6].
        own: which rows draw from the network's own kernel, bool [B]; or of all rows alike.
        shared: the columns of one step's table where B = 1, a number each: float [].
    """

    t: Tensor
    s: Tensor
    table: Tensor
    own: Tensor | bool
    shared: Sequence[Tensor] | None = None

    def step(self, i: int) -> "Update":
        """The i-th of k steps."""
        return Update(self.t[i], self.s[i], self.table[i], self.own)

    def steps(self, dtype: torch.dtype) -> list["Update"]:
        """All k in turn, for rows of that type."""
        columns = zip(self.t.unbind(), self.s.unbind(), self.table.unbind(), strict=True)
        if self.t.shape[1] > 1:
            return [Update(t, s, table, self.own) for t, s, table in columns]
        # Tensors with no axes fit rows of any shape, and cost less than Python's numbers.
        flat, width = self.table.to(dtype).flatten().unbind(), self.table.shape[2]
        return [
            Update(t, s, table, self.own, flat[width * i : width * (i + 1)])
            for i, (t, s, table) in enumerate(columns)
        ]

    def columns(self, like: Tensor) -> Sequence[Tensor]:
        """The table's columns for one step of the rows of `like` [B, *event]."""
        return self.shared or [per_row(column, like) for column in self.table.unbind(1)]


@final
@dataclass(frozen=True)
class Plan:
    """A sampler's steps, worked out once when a request is admitted.

    Attributes:
        t: int64 [n], descending.
        s: int64 [n]: where each step ends; the last at 0.
        table: float64 [n, 6]: a, b, c, v_0, v_1, w; of bits a, b, c, d, 0, 0.
        own: whether the steps draw from the network's own kernel; `table` is then not used.
        points: whether the steps have no noise.
    """

    t: Tensor
    s: Tensor
    table: Tensor
    own: bool
    points: bool = False

    def __len__(self) -> int:
        """The number of steps, each one network evaluation a row."""
        return len(self.t)

    def until(self, stop: int) -> int:
        """How many steps there are up to the first at t <= stop, it included; all where stop = 0.

        Raises:
            ValueError: no such step.
        """
        if not 0 <= stop <= int(self.t[0]):
            raise ValueError(
                f"chains stop at a step from 1 to {int(self.t[0])}, came {stop}: 0 goes all the way"
            )
        return min(int((self.t > stop).sum()) + 1, len(self))

    @cached_property
    def joined(self) -> Tensor:
        """t, s and the table side by side, float64 [n, 8]: looked up at once."""
        return torch.cat((self.t[:, None], self.s[:, None], self.table), 1)

    def at(self, step: int, device: torch.device) -> Update:
        """One step, for all rows."""
        return self.whole(device, slice(step, step + 1)).step(0)

    def whole(self, device: torch.device, part: slice = slice(None)) -> Update:
        """All the steps in turn, or some, for all rows."""
        t, s, table = (x[part, None].to(device) for x in (self.t, self.s, self.table))
        return Update(t, s, table, self.own)


class _Sampler(BaseModel, ABC):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def plan(self, model: DiffusionModel, start: int | None = None) -> Plan:
        """The steps from `start` (T where it is not given) down to 0.

        Raises:
            ValueError: more steps than there are, or a sampler that the process does not have.
        """
        start = model.T if start is None else start
        t = _spaced(start, self._count(model.T, start))
        s = torch.cat((t[1:], t.new_zeros(1)))
        return self._plan(model, t, s)

    @abstractmethod
    def _count(self, T: int, start: int) -> int: ...

    @abstractmethod
    def _plan(self, model: DiffusionModel, t: Tensor, s: Tensor) -> Plan: ...


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
    def _plan(self, model: DiffusionModel, t: Tensor, s: Tensor) -> Plan:
        at = t.to(model.device), s.to(model.device)
        if model.prediction == "perturbation":
            return Plan(t, s, torch.zeros(len(t), 6, dtype=torch.float64), own=True)
        return Plan(t, s, model.output.table(*at).cpu(), own=False)


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
    def _plan(self, model: DiffusionModel, t: Tensor, s: Tensor) -> Plan:
        at_t, at_s = _signal(model.process, t, s, self.name)
        d = self.eta * ((1 - at_s) / (1 - at_t) * (1 - at_t / at_s)).sqrt()
        a = ((1 - at_s - d.square()).clamp_min(0) / (1 - at_t)).sqrt()
        b = at_s.sqrt() - a * at_t.sqrt()
        table = _table(a, b, torch.zeros_like(a), d.square())
        return Plan(t, s, table, own=False, points=not bool((d > 0).any()))


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
    def _plan(self, model: DiffusionModel, t: Tensor, s: Tensor) -> Plan:
        at_t, at_s = _signal(model.process, t, s, self.name)
        sigma_t, sigma_s = (1 - at_t).sqrt(), (1 - at_s).sqrt()
        a = sigma_s / sigma_t
        change = at_s.sqrt() - at_t.sqrt() * a  # sqrt(alpha_bar_s) (1 - e^-h), with no infinity
        h = (torch.logit(at_s) - torch.logit(at_t)) / 2
        half_inverse = torch.zeros_like(a)
        half_inverse[1:] = h[1:] / (2 * h[:-1])
        half_inverse[-1] = 0.0
        b, c = change * (1 + half_inverse), -change * half_inverse
        return Plan(t, s, _table(a, b, c, torch.zeros_like(a)), own=False, points=True)


Sampler = Annotated[Ancestral | DDIM | DPMSolver, Field(discriminator="name")]


def _share(steps: int, T: int, start: int) -> int:
    """The part of `steps` that a chain from `start` takes, at least 1."""
    if steps > T:
        raise ValueError(f"this model has {T} steps, came {steps}: ask for {T} or fewer")
    return max(1, round(steps * start / T))


def _spaced(start: int, count: int) -> Tensor:
    """`count` distinct steps from `start` down, evenly spaced, the last stride ending at 0."""
    return (start * torch.arange(count, 0, -1, dtype=torch.float64) / count).ceil().long()


def _table(a: Tensor, b: Tensor, c: Tensor, var: Tensor) -> Tensor:
    """The columns of a plan whose variance is known beforehand."""
    zero = torch.zeros_like(a)
    return torch.stack((a, b, c, var, zero, zero), 1)


def _signal(process: Process, t: Tensor, s: Tensor, name: str) -> tuple[Tensor, Tensor]:
    process.check_sampler(name)
    alpha_bar = process.alpha_bar.cpu()
    return alpha_bar[t], alpha_bar[s]
