"""Choose the data rows of each training step and the diffusion step t of each row.

    p = step * batch + i,    row = order(seed, epoch = p // n)[p mod n]
    sum_t term_t = T E_{t ~ p}[w_t term_t],    w_t = 1 / (T p_t)

Rows are a pure function of (seed, step), so a resumed fit sees the same batches as an uninterrupted
one. The weight w_t keeps the loss unbiased. "uniform" draws each row's t independently.
"stratified" spreads one uniform draw over the batch, u_i = (u + i / B) mod 1, which removes most of
the loss's variance due to t (Kingma et al. 2021, Appendix I.1). "importance" does the same through
the inverse distribution function of p_t proportional to sqrt(E[term_t^2]) (Nichol and Dhariwal
2021, Equation 18).
"""

import torch
from torch import Tensor

from diffusion.noise import Stream, counter_noise
from training.data.dataset import stream_seed


class Batches:
    """The row numbers of each step's batch: each row once per epoch, reshuffled every epoch.

    Args:
        rows: n, the number of rows.
        batch: rows per step.
        seed: seed of the shuffles.
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
        """Row numbers of the batch of `step`, int64 [batch]; a batch may span two epochs."""
        position, parts, wanted = step * self.batch, [], self.batch
        while wanted:
            epoch, start = divmod(position, self.rows)
            part = self.order(epoch)[start : start + wanted]
            parts.append(part)
            position, wanted = position + len(part), wanted - len(part)
        return torch.cat(parts)


HISTORY = 10
"""Terms remembered per t, as in Nichol and Dhariwal 2021."""
UNIFORM_SHARE = 1e-3
"""Share of p that stays uniform, so that the weights are bounded."""


class Steps:
    """Draw the diffusion steps t of a batch from (seed, step) and, for importance, past losses.

    Args:
        T: number of diffusion steps.
        kind: "uniform", "stratified" or "importance".
        seed: seed of the draws.
    """

    def __init__(self, T: int, kind: str, seed: int) -> None:
        self.T, self.kind, self.seed = T, kind, seed
        self.history = torch.zeros(T, HISTORY)
        self.seen = torch.zeros(T, dtype=torch.int64)

    def probabilities(self) -> Tensor:
        """p_t for t = 1..T, float64 [T]; uniform until each t has been seen HISTORY times."""
        flat = torch.full((self.T,), 1.0 / self.T, dtype=torch.float64)
        if self.kind != "importance" or bool((self.seen < HISTORY).any()):
            return flat
        size = self.history.double().square().mean(1).sqrt()
        total = size.sum()
        if not bool(total > 0):
            return flat
        return (1.0 - UNIFORM_SHARE) * size / total + UNIFORM_SHARE * flat

    def draw(self, step: int, batch: int) -> tuple[Tensor, Tensor]:
        """t (int64 [batch], 1..T) and w_t (float32 [batch]) for the batch of `step`."""
        # Row numbers above those of any batch, so these draws are independent of the rows' noise.
        if self.kind == "uniform":
            rows = (1 << 31) + torch.arange(batch)
            u = counter_noise(self.seed, rows, step, Stream.TRAINING).uniform(())
            u = u.double()
        else:
            row = torch.tensor([1 << 31])
            offset = counter_noise(self.seed, row, step, Stream.TRAINING).uniform(()).double()
            u = (offset + torch.arange(batch, dtype=torch.float64) / batch) % 1.0
        p = self.probabilities()
        edges = p.cumsum(0)
        index = torch.searchsorted(edges / edges[-1], u, right=True).clamp_(max=self.T - 1)
        return index + 1, (1.0 / (self.T * p[index])).float()

    def record(self, t: Tensor, terms: Tensor) -> None:
        """Store the latest terms (nats [batch]) at t, replacing the oldest of each t."""
        if self.kind != "importance":
            return
        for place, term in zip((t - 1).tolist(), terms.tolist(), strict=True):
            self.history[place, int(self.seen[place]) % HISTORY] = term
            self.seen[place] += 1
