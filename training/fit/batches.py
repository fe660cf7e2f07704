"""Which rows a step sees:

    p = step * batch + i,    row = order(seed, epoch = p // n)[p mod n]

A pure function of (seed, step), so a fit killed and resumed sees the same batches as one that was
not.
"""

import torch
from torch import Tensor

from training.data.dataset import stream_seed


class Batches:
    """Row numbers of each step's batch, every row once an epoch, in another order each epoch.

    Args:
        rows: n, how many rows there are.
        batch: rows of one step.
        seed: of the orders.
    """

    def __init__(self, rows: int, batch: int, seed: int) -> None:
        self.rows, self.batch, self.seed = rows, batch, seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def order(self, epoch: int) -> Tensor:
        """The permutation of one epoch, int64 [rows]."""
        if epoch != self._epoch:
            stream = torch.Generator().manual_seed(stream_seed(self.seed, "order", epoch))
            self._order, self._epoch = torch.randperm(self.rows, generator=stream), epoch
        return self._order

    def at(self, step: int) -> Tensor:
        """Row numbers of the batch of `step`, int64 [batch]; it may reach across an epoch's end."""
        position, parts, wanted = step * self.batch, [], self.batch
        while wanted:
            epoch, start = divmod(position, self.rows)
            part = self.order(epoch)[start : start + wanted]
            parts.append(part)
            position, wanted = position + len(part), wanted - len(part)
        return torch.cat(parts)
