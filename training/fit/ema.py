"""Exponential moving average of weights,

    m <- m + (1 - d_n)(w - m),    d_n = min(decay, (1 + n) / (10 + n))

The warm-up forgets the first, random weights quickly, so that the average is of use from early on.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Average:
    """Keeps the average of `source`'s parameters in the parameters of `target`, a copy of it.

    Args:
        source: the network that is fitted.
        target: the network that holds the average; buffers are copied as they are.
        decay: d, the limit of d_n.
    """

    def __init__(self, source: nn.Module, target: nn.Module, decay: float) -> None:
        self.decay = decay
        self.source, self.target = source, target
        self._weights: list[Tensor] = list(source.parameters())
        self._means: list[Tensor] = list(target.parameters())
        target.requires_grad_(False)

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Take the weights after optimiser step n (0, 1, ...) into the average."""
        keep = min(self.decay, (1.0 + n) / (10.0 + n))
        torch._foreach_lerp_(self._means, self._weights, 1.0 - keep)
        copy_buffers(self.source.buffers(), self.target.buffers())


def copy_buffers(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    """Copy buffers one by one."""
    for from_, to in zip(source, target, strict=True):
        to.copy_(from_)
