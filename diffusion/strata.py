"""Strata of 2..T: which terms of the bound are evaluated, and what each counts for.

    K = prior + sum over the chosen of weight * term

Unbiased whatever the choice, for each stratum stands for all its steps by one of them.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from diffusion.noise import CounterNoise, Stream, counter_noise
from diffusion.space import Convention

_LAST_DRAWS = 8


@final
@dataclass(frozen=True)
class Steps:
    """Which terms of each datum's bound are evaluated.

    Attributes:
        t: int64 [N, n]: each row the last step's draws (t = 1) first, then ascending strata of
            2..T.
        draw: int64 [N, n]: the noise's step, distinct within a row.
        weight: float64 [n]: the bound's estimate is the prior's part + sum of weight times term.
        last: how many of the n are draws of the last step.
    """

    t: Tensor
    draw: Tensor
    weight: Tensor
    last: int

    @property
    def count(self) -> int:
        """Network evaluations a datum."""
        return len(self.weight)

    @property
    def nbytes(self) -> int:
        """Of host memory."""
        return self.t.nbytes + self.draw.nbytes

    def at(self, row: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """t and the noise's step of terms, int64 [B] each."""
        return self.t[row, unit], self.draw[row, unit]


def choose_steps(
    T: int, rows: Tensor, seed: int, convention: Convention, terms: int | None = None
) -> Steps:
    """All T steps, or an unbiased, stratified choice of `terms` of them for each datum.

    The strata split 2..T evenly and one t is drawn in each. The last step, t = 1, is always there
    and has several draws (up to 8), for one draw would hide its own error; "paper" needs none.

    Args:
        T: steps of the process.
        rows: int64 [N], which data of the request: the noise's rows.
        seed: of the request.
        convention: of the bound.
        terms: network evaluations a datum, at least 4; None for all steps.

    Raises:
        ValueError: too few terms.
    """
    least = min_terms(T, convention)
    if terms is not None and terms < least:
        raise ValueError(f"`terms` is at least {least} for this model, came {terms}")
    last = 0 if convention == "paper" else _LAST_DRAWS
    if terms is not None and terms < T - 1 + last:
        last = min(last, max(2, terms // 4, terms - (T - 1)))
        strata = terms - last
    else:
        strata = T - 1
    edges = torch.arange(strata + 1, dtype=torch.float64) * (T - 1) / max(strata, 1)
    edges = edges.round().long() + 2
    size = edges.diff()
    noise = counter_noise(seed, rows.cpu(), 0, Stream.TERM)
    inside = (noise.uniform((strata,)).double() * size).long() if strata else torch.empty(0)
    t = edges[:-1] + inside.long() if strata else torch.empty(len(rows), 0, dtype=torch.long)
    ones = torch.ones(len(rows), last, dtype=torch.long)
    # Draws of the last step are numbered past T, so that no two terms of a datum share noise.
    draws = T + 1 + torch.arange(last).expand(len(rows), last)
    each = torch.full((last,), 1 / max(last, 1), dtype=torch.float64)
    weight = torch.cat((each, size.double()))
    return Steps(torch.cat((ones, t), 1), torch.cat((draws, t), 1), weight, last)


def min_terms(T: int, convention: Convention) -> int:
    """The fewest terms that give an estimate and its error."""
    return min(T - 1, 2) + (0 if convention == "paper" else 2)


def term_noise(seed: Tensor, row: Tensor, draw: Tensor) -> CounterNoise:
    """The noise of terms: of the forward draw x_t given x_0, int64 [B] each."""
    return CounterNoise(seed, row, draw, Stream.TERM)
