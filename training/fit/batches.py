"""What a step of a fit sees: which rows, and which t each of them is fitted at.

    p = step * batch + i,    row = order(seed, epoch = p // n)[p mod n]
    sum_t term_t = T E_{t ~ p}[w_t term_t],    w_t = 1 / (T p_t)

Rows are a pure function of (seed, step), so a fit that was killed and resumed sees the same batches
as one that was not. The weight w_t keeps the loss unbiased. "uniform" draws each row's t on its
own. "stratified" spreads one uniform draw over the batch, u_i = (u + i / B) mod 1, which takes most
of the noise of t out of the loss (Kingma et al. 2021, Appendix I.1). "importance" does the same
through the inverse distribution function of p_t proportional to sqrt(E[term_t^2]) (Nichol and
Dhariwal 2021, Equation 18).
"""

import torch
from torch import Tensor

from diffusion.noise import Stream, counter_noise
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


HISTORY = 10
"""Terms remembered of each t, as in Nichol and Dhariwal 2021."""
UNIFORM_SHARE = 1e-3
"""Share of p left uniform, so that no weight is unbounded."""


class Steps:
    """Draws t for whole batches: a function of (seed, step) and, for importance, of the history.

    Args:
        T: steps of the process.
        kind: "uniform", "stratified" or "importance".
        seed: of the draws.
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
        # Row numbers above any batch's, so that these draws meet no row's own noise.
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
        """Remember the terms (nats [batch]) just seen at t; the oldest of each t is forgotten."""
        if self.kind != "importance":
            return
        for place, term in zip((t - 1).tolist(), terms.tolist(), strict=True):
            self.history[place, int(self.seen[place]) % HISTORY] = term
            self.seen[place] += 1
