"""Paths: the best of every length, against all there are."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from diffusion.profile import even, pack, shortest, unpack

K = 7


def test_the_shortest_paths_are_the_best_of_all() -> None:
    """Against every path there is, with costs that no formula made; some jumps cannot be made."""
    cost = torch.rand(K + 1, K + 1, generator=torch.Generator().manual_seed(3)).double() * 5
    cost[6, 2] = cost[3, 0] = torch.inf
    paths, totals = shortest(cost, K)
    for jumps in range(1, K + 1):
        every = [(0, *inner, K) for inner in itertools.combinations(range(1, K), jumps - 1)]
        costs = [sum(float(cost[t, s]) for s, t in itertools.pairwise(path)) for path in every]
        assert_close(float(totals[jumps - 1]), min(costs))
        assert tuple(paths[jumps - 1].tolist()) == every[costs.index(min(costs))]


def test_what_is_no_jump_is_not_read() -> None:
    cost = torch.rand(K + 1, K + 1, generator=torch.Generator().manual_seed(0)).double()
    odd = cost.clone()
    odd[torch.ones_like(cost).triu().bool()] = torch.nan
    for path, other in zip(shortest(cost, K)[0], shortest(odd, K)[0], strict=True):
        assert torch.equal(path, other)


def test_packed_paths_come_back() -> None:
    paths = [even(40, steps) for steps in range(1, 12)]
    for steps in range(1, 12):
        assert torch.equal(unpack(pack(paths), steps), paths[steps - 1])


@pytest.mark.parametrize("T", [1, 2, 9, 1000])
def test_even_paths_have_even_strides(T: int) -> None:
    for steps in {1, 2, T // 3 + 1, T}:
        path = even(T, min(steps, T))
        assert (int(path[0]), int(path[-1])) == (0, T)
        assert int(path.diff().min()) >= 1
        assert int(path.diff().max() - path.diff().min()) <= 1
