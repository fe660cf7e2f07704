"""Average a fit's weights, and keep the average with the best held-out bound.

    average:  m <- m + (1 - d_n)(w - m),    d_n = min(decay, (1 + n) / (10 + n))
    better:   mean_n (K_n - best_n) > z * its standard error,    n = 1..N rows of valid

The warm-up of d_n forgets the first, random weights quickly. z is 1, and 2 against the first
weights: a fit that starts from a simple density is checked many times, and should leave it only
for a real gain. Both bounds use the same noise, to keep the error of their difference small. The
fit ends after `patience` checks without improvement.
"""

from collections.abc import Iterable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

FIRST = 2.0
"""Standard errors by which later weights must beat the first ones."""


class Looks(BaseModel):
    """The best held-out bound so far.

    `nats` is its mean, `values` its rows, `step` its step, `since` the number of checks since then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nats: float
    values: tuple[float, ...]
    step: int
    since: int = 0


class Best:
    """Keeps the averaged weights with the best held-out bound.

    Args:
        network: the network with the averaged weights.
        patience: number of checks without improvement that ends the fit.

    Attributes:
        looks: the best bound; None before the first check.
        weights: the best weights; empty before the first check.
    """

    def __init__(self, network: nn.Module, patience: int) -> None:
        self.network, self.patience = network, patience
        self.looks: Looks | None = None
        self.weights: dict[str, Tensor] = {}

    @property
    def turned(self) -> bool:
        """Whether `patience` checks have passed without improvement, so that the fit is over."""
        return self.looks is not None and self.looks.since >= self.patience

    @torch.no_grad()
    def show(self, step: int, values: Tensor) -> None:
        """Take the held-out bounds (nats, float64 [N]) of step `step`; keep its weights if best."""
        errors = 1.0 if self.looks and self.looks.step else FIRST
        if self.looks is None or _better(values, self.looks.values, errors):
            nats = float(values.mean())
            self.looks = Looks(nats=nats, values=tuple(values.tolist()), step=step)
            self.weights = {k: v.clone() for k, v in self.network.state_dict().items()}
        else:
            self.looks = self.looks.model_copy(update={"since": self.looks.since + 1})

    def load(self, looks: Looks | None, weights: dict[str, Tensor], anew: bool) -> None:
        """Restore the state of a checkpoint; `anew` resets the patience, to extend a fit."""
        self.looks = looks
        if looks is not None and anew:
            self.looks = looks.model_copy(update={"since": 0})
        self.weights = weights


def _better(values: Tensor, best: tuple[float, ...], errors: float) -> bool:
    """Whether the mean gain exceeds `errors` standard errors (0 for one row); False for NaN."""
    gain = values - torch.tensor(best, dtype=values.dtype)
    error = float(gain.std()) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
    return float(gain.mean()) > errors * error


class Average:
    """Keeps the moving average of `source`'s parameters in `target`, a copy of it.

    Args:
        source: the network that is fitted.
        target: the network that holds the average; buffers are copied, not averaged.
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
        """Update the average with the weights after optimiser step n (0, 1, ...)."""
        keep = min(self.decay, (1.0 + n) / (10.0 + n))
        torch._foreach_lerp_(self._means, self._weights, 1.0 - keep)
        copy_buffers(self.source.buffers(), self.target.buffers())


def copy_buffers(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    """Copy buffers one by one."""
    for from_, to in zip(source, target, strict=True):
        to.copy_(from_)
