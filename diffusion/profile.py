"""The profile: a model's errors and terms at each step, measured in one pass over training data.

    error_t  = E |x_0 - x_0hat(x_t)|^2 / d
    last_t   = argmax over v of E log p(x_0 | x_t), a step to x_0 of variance v
    mean_t   = E term_t,    spread_t^2 = E Var(term_t | x_0),    term_t of the bound, nats

From it follow the best variance of the reverse kernel (`process.variance_terms`, "optimal"), the
best path of N steps, and which terms of the bound to evaluate (`strata`).
"""

from typing import final

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from diffusion.schedule import Tables


class ProfileConfig(BaseModel):
    """How a profile is measured, and what a `Profile` is built from.

    Attributes:
        rows: at each step that is measured, half as many data with two draws of noise each.
        points: how many of the T steps are measured, closer where t is small, the others
            interpolated; None for all.
        longest: most steps of the paths that are kept.
        seed: of the noise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rows: int = Field(400, ge=4, multiple_of=2)
    points: int | None = Field(None, ge=2)
    longest: int = Field(256, ge=1, le=1024)
    seed: int = Field(0, ge=0)

    def build(self, T: int) -> "Profile":
        """A profile of T steps, its tables still empty."""
        return Profile(T, min(self.longest, T))


@final
class Profile(Tables):
    """The tables of a profile.

    Args:
        T: steps of the process.
        longest: most steps of the paths that are kept.

    Attributes:
        error: float64 [T + 1], model units squared; error[0] = 0. For bits x_0hat is a probability.
        last: float64 [T + 1], likewise; last[0] = 0. `error` itself where data are reals; greater
            where they are levels, for a level's width of error costs next to nothing, and a few
            errors are much greater than that.
        mean: float64 [T + 1], nats; mean[0] = 0. At t = 1 the last step's, in the data's own
            convention.
        spread: float64 [T + 1], nats; of the noise alone, for one example; spread[0] = 0.
        paths: int32, `paths.pack` of the best path of each number of steps up to `longest`.
        strata: int32, likewise, the best division of 2..T into each number of strata.
        costs: float64 [longest], nats: the expected bound on a path is the prior's part less that.
    """

    error: Tensor
    last: Tensor
    mean: Tensor
    spread: Tensor
    paths: Tensor
    strata: Tensor
    costs: Tensor

    def __init__(self, T: int, longest: int) -> None:
        super().__init__()
        self.T, self.longest = T, longest
        for name in ("error", "last", "mean", "spread"):
            self.register_buffer(name, torch.zeros(T + 1, dtype=torch.float64))
        for name, most in (("paths", longest), ("strata", self.longest_strata)):
            self.register_buffer(name, torch.zeros(most * (most + 1) // 2, dtype=torch.int32))
        self.register_buffer("costs", torch.zeros(longest, dtype=torch.float64))

    @property
    def longest_strata(self) -> int:
        """Most strata of the divisions that are kept."""
        return min(self.longest, self.T - 1)

    def edges(self, count: int) -> Tensor:
        """The best `count` strata of 2..T, as in `strata.Strata`, int64 [count + 1], on the CPU."""
        return unpack(self.strata.cpu(), count) + 1

    def path(self, steps: int) -> Tensor:
        """The best 0 = t_0 < ... < t_N = T of N = `steps`, int64 [N + 1], on the CPU.

        Raises:
            ValueError: a number of steps for which no path is kept.
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
        """Raise ValueError if a table holds values that cannot have been measured."""
        if not bool((torch.stack((self.error, self.last))[:, 1:] > 0).all()):
            raise ValueError("a profile's errors and variances are above 0")
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

# Which of the T steps a shorter chain takes, 0 = t_0 < t_1 < ... < t_N = T. The bound of that chain
# is a constant less a sum of costs of its jumps, so the best path of every length comes from
# dynamic programming (Watson, Ho, Norouzi and Chan 2021, Algorithm 1).


def even(T: int, steps: int) -> Tensor:
    """N + 1 distinct places from 0 to T, evenly spaced, int64 [steps + 1]."""
    return (T * torch.arange(steps + 1, dtype=torch.float64) / steps).ceil().long()


def shortest(cost: Tensor, longest: int) -> tuple[list[Tensor], Tensor]:
    """The path of least cost from 0 to the last node, for every number of jumps.

    With least(n, t) = min over s < t of least(n - 1, s) + cost[t, s], least(0, 0) = 0.

    Args:
        cost: float64 [K + 1, K + 1], of the jump t -> s at [t, s]; what is not s < t is not read.
        longest: most jumps, 1..K.

    Returns:
        The path of n jumps at n - 1, int64 [n + 1], and its cost, float64 [longest].
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
    """Paths of 1, 2, ..., M jumps one behind the other without their 0, int32 [M (M + 1) / 2]."""
    return torch.cat([path[1:] for path in paths]).int()


def unpack(packed: Tensor, steps: int) -> Tensor:
    """The path of `steps` jumps, int64 [steps + 1]."""
    first = steps * (steps - 1) // 2
    path = packed[first : first + steps].long()
    return torch.cat((path.new_zeros(1), path))
