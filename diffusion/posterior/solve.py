"""Linear systems of many rows, each solved on its own."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.process import per_row


def conjugate_gradients(
    apply: Callable[[Tensor], tuple[Tensor, Tensor]], off: Tensor, pull: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """u of S u = off after so many steps from 0, each row on its own, and V A^T u.

    A row whose S turns out not to be positive stops where it is.
    """
    solved, left = torch.zeros_like(off), off
    towards, size = off, dot(off, off)
    for _ in range(steps):
        image, pulled = apply(towards)
        curve = dot(towards, image)
        good = (curve > 0) & (size > 1e-20)
        step = torch.where(good, size / torch.where(good, curve, 1.0), 0.0)
        solved = solved + per_row(step, off) * towards
        pull = pull + per_row(step, pull) * pulled
        left = left - per_row(step, off) * image
        before, size = size, dot(left, left)
        towards = left + per_row(size / before.clamp_min(1e-20), off) * towards
    return solved, pull


def dot(a: Tensor, b: Tensor) -> Tensor:
    """[B]."""
    return (a * b).flatten(1).sum(1)
