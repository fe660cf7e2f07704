"""Paths: which of the T steps a shorter chain takes, 0 = t_0 < t_1 < ... < t_N = T.

    cost of a path = sum over its jumps of cost[t_i, t_{i-1}]

The bound of the chain that takes them is a constant less such a sum, so the best path of every
length comes from dynamic programming (Watson, Ho, Norouzi and Chan 2021, Algorithm 1).
"""

import torch
from torch import Tensor


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
