"""The profile of a model: its errors and bound terms at each step, measured on training data.

    error_t  = E |x_0 - x_0hat(x_t)|^2 / d
    last_t   = argmax over v of E log p(x_0 | x_t), for a step to x_0 of variance v
    mean_t   = E term_t,    spread_t^2 = E Var(term_t | x_0),    term_t of the bound, nats

It determines the best variance of the reverse kernel (`process.variance_terms`, "optimal"), the
best path of N steps, and the terms of the bound to evaluate (`strata`).
"""

from typing import final

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from diffusion.schedule import Tables


class ProfileConfig(BaseModel):
    """The configuration of a `Profile` and of its measurement.

    Attributes:
        rows: evaluations at each measured step: `rows / 2` data with two draws of noise each.
        points: how many of the T steps to measure, denser at small t, interpolating the others;
            None for all.
        longest: the most steps for which a path is stored.
        seed: of the noise.
        contrast: whether it has the table of that name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rows: int = Field(400, ge=4, multiple_of=2)
    points: int | None = Field(None, ge=2)
    longest: int = Field(256, ge=1, le=1024)
    seed: int = Field(0, ge=0)
    contrast: bool = False

    def build(self, T: int) -> "Profile":
        """Build a profile of T steps with empty tables."""
        return Profile(T, min(self.longest, T), self.contrast)


@final
class Profile(Tables):
    """The tables of a profile.

    Args:
        T: steps of the process.
        longest: the most steps for which a path is stored.
        contrast: whether there is a table of contrasts.

    Attributes:
        error: float64 [T + 1], model units squared; error[0] = 0. For bits x_0hat is a probability.
        last: float64 [T + 1], model units squared; last[0] = 0. Equal to `error` for real data;
            larger for data with levels, where an error within one level costs almost nothing and a
            few errors are much larger.
        contrast: float64 [T + 1], mean of (high - x_0hat)(x_0hat - low), model units squared, for
            data with a range; None if not measured.
        mean: float64 [T + 1], nats; mean[0] = 0. At t = 1 it is the last step's, in the data's own
            convention.
        spread: float64 [T + 1], nats; due to the noise alone, for one example; spread[0] = 0.
        paths: int32, the best path of each number of steps up to `longest`, stored by `pack`.
        strata: int32, the best division of 2..T into each number of strata, stored by `pack`.
        costs: float64 [longest], nats: the expected bound on a path is the prior's part minus this.
    """

    error: Tensor
    last: Tensor
    contrast: Tensor | None
    mean: Tensor
    spread: Tensor
    paths: Tensor
    strata: Tensor
    costs: Tensor

    def __init__(self, T: int, longest: int, contrast: bool = False) -> None:
        super().__init__()
        self.T, self.longest = T, longest
        for name in ("error", "last", "mean", "spread"):
            self.register_buffer(name, torch.zeros(T + 1, dtype=torch.float64))
        table = torch.zeros(T + 1, dtype=torch.float64) if contrast else None
        self.register_buffer("contrast", table)
        for name, most in (("paths", longest), ("strata", self.longest_strata)):
            self.register_buffer(name, torch.zeros(most * (most + 1) // 2, dtype=torch.int32))
        self.register_buffer("costs", torch.zeros(longest, dtype=torch.float64))

    @property
    def longest_strata(self) -> int:
        """The most strata for which a division is stored."""
        return min(self.longest, self.T - 1)

    def edges(self, count: int) -> Tensor:
        """Return the edges of the best `count` strata of 2..T, int64 [count + 1], on the CPU."""
        return unpack(self.strata.cpu(), count) + 1

    def path(self, steps: int) -> Tensor:
        """Return the best path 0 = t_0 < ... < t_N = T with N = `steps`, int64 [N + 1], on the CPU.

        Raises:
            ValueError: no path of this many steps is stored.
        """
        if steps == self.T:
            return torch.arange(self.T + 1)
        if not 1 <= steps <= self.longest:
            raise ValueError(
                f"the best paths of 1 to {self.longest} steps are known, and all {self.T} steps, "
                f"came {steps}: ask for one of these, or for even spacing"
            )
        return unpack(self.paths.cpu(), steps)

    def check(self) -> None:
        """Raise ValueError if a table holds impossible values."""
        positive = [self.error, self.last, *([] if self.contrast is None else [self.contrast])]
        if not bool((torch.stack(positive)[:, 1:] > 0).all()):
            raise ValueError("a profile's errors, variances and contrasts are above 0")
        if bool((self.spread < 0).any()):
            raise ValueError("a profile's spreads are not below 0")
        for packed, last, longest in (
            (self.paths, self.T, self.longest),
            (self.strata, self.T - 1, self.longest_strata),
        ):
            for steps in range(1, longest + 1):
                path = unpack(packed, steps)
                if int(path[-1]) != last or bool((path.diff() < 1).any()):
                    raise ValueError(f"a profile's path of {steps} steps ascends from 0 to {last}")


# ------------------------------------------------------------------------------------------ paths

# A path 0 = t_0 < t_1 < ... < t_N = T holds the steps that a shorter chain takes. The bound of that
# chain is a constant minus the sum of its jumps' costs, so dynamic programming finds the best path
# of every length (Watson, Ho, Norouzi and Chan 2021, Algorithm 1).


def even(T: int, steps: int) -> Tensor:
    """Return `steps + 1` distinct, evenly spaced times from 0 to T, int64 [steps + 1]."""
    return (T * torch.arange(steps + 1, dtype=torch.float64) / steps).ceil().long()


def shortest(cost: Tensor, longest: int) -> tuple[list[Tensor], Tensor]:
    """Find the path of least cost from 0 to the last node, for every number of jumps.

    It solves least(n, t) = min over s < t of least(n - 1, s) + cost[t, s], least(0, 0) = 0.

    Args:
        cost: float64 [K + 1, K + 1], cost of the jump t -> s at [t, s]; only s < t is read.
        longest: the most jumps, 1..K.

    Returns:
        The path of n jumps at index n - 1, int64 [n + 1], and the costs, float64 [longest].
    """
    nodes = len(cost)
    cost = torch.where(torch.ones_like(cost).tril(-1).bool(), cost, torch.inf)
    least, totals, before = cost[:, 0], [cost[-1, 0]], [torch.zeros(nodes, dtype=torch.long)]
    for _ in range(longest - 1):
        least, come_from = (cost + least).min(1)
        totals.append(least[-1])
        before.append(come_from)
    paths = []
    for jumps in range(1, longest + 1):
        path = [nodes - 1]
        for table in reversed(before[:jumps]):
            path.append(int(table[path[-1]]))
        paths.append(torch.tensor(path[::-1]))
    return paths, torch.stack(totals)


def pack(paths: list[Tensor]) -> Tensor:
    """Concatenate paths of 1, 2, ..., M jumps without their leading 0, int32 [M (M + 1) / 2]."""
    return torch.cat([path[1:] for path in paths]).int()


def unpack(packed: Tensor, steps: int) -> Tensor:
    """Extract the path of `steps` jumps, int64 [steps + 1]."""
    first = steps * (steps - 1) // 2
    path = packed[first : first + steps].long()
    return torch.cat((path.new_zeros(1), path))
