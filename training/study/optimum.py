"""The best table of T steps on the Swiss roll: of all of them, for a kernel that makes no mistake.

With V(l) the variances of x_0 given x_t at log SNR l, a step from l up to l' costs the ideal
diagonal kernel

    E KL = 1/2 E sum_i log(1 + (e^l' - e^l) V_i(l)),

for SNR_s - SNR_t is c_0^2 / v of q(x_s | x_t, x_0). So K is a sum over the jumps of a path through
levels, from the last step's part to the prior's, and the best path through a grid of them is found
by dynamic programming.
Source: Kingma et al. 2021, Equation 14; Watson, Ho, Norouzi and Chan 2021, Algorithm 1.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from diffusion.profile import shortest
from diffusion.schedule import from_log_snr
from training.data.swissroll import SwissRoll
from training.study import ideal

LOWEST = -8.0  # log SNR: what is left of x_0 there is worth less than .001 nats
ABOVE = 4.0  # how far over the first log SNR that is given a learned one may lie


def best_table(
    roll: SwissRoll,
    T: int,
    first: float,
    *,
    ends: Literal["fixed", "learned"] = "fixed",
    levels: int = 160,
    rows: int = 300,
    seed: int = 0,
) -> Tensor:
    """beta, float64 [T + 1], of the greatest K in the convention "density".

    With the first level fixed it is the best in the convention "paper" too, whose last step's part
    is a function of that level alone.

    Args:
        roll: the data.
        T: steps.
        first: log SNR at t = 1.
        ends: whether it stays there, or may be learned.
        levels: of the grid, in equal steps of log SNR: a coarse one loses a little of K.
        rows: draws at each level, the same at all of them, so that K is smooth in the path.
        seed: of the draws.
    """
    highest = first if ends == "fixed" else first + ABOVE
    log_snr = torch.linspace(highest, LOWEST, levels, dtype=torch.float64)
    snr = log_snr.exp()
    # Node 0 is the data, levels + 1 the prior: T + 1 jumps, through T levels.
    cost = torch.full((levels + 2, levels + 2), math.inf, dtype=torch.float64)
    for node, level in enumerate((1 / snr.sqrt()).tolist(), 1):
        left = ideal.left(roll, level, rows, seed, 0).diagonal(dim1=-2, dim2=-1)  # [rows, 2]
        if ends == "learned" or node == 1:
            cost[node, 0] = 0.5 * (2 * math.pi * math.e * left).log().sum(1).mean()
        gained = snr[: node - 1] - snr[node - 1]
        cost[node, 1:node] = 0.5 * torch.log1p(gained * left[..., None]).sum(1).mean(0)
    cost[-1, 1:-1] = torch.nn.functional.softplus(log_snr)  # -log(1 - alpha_bar), two elements
    path = shortest(cost, T + 1)[0][T]
    return from_log_snr(log_snr[path[1:-1] - 1])
