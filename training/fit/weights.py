"""The weights that a fit keeps: their moving average, and the best of these by the held-out bound.

    average:  m <- m + (1 - d_n)(w - m),    d_n = min(decay, (1 + n) / (10 + n))
    better:   mean_n (K_n - best_n) > z * its standard error,    n = 1..N rows of valid

The warm-up of d_n forgets the first, random weights quickly. z is 1, and 2 against the first
weights: a fit that starts from a simple density looks many times, and stays there unless the
network has seen more in the data. Both bounds use the same noise, so that little of the error is
the draw's. The fit is over after `patience` looks without a better one.
"""

from collections.abc import Iterable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

FIRST = 2.0
"""Standard errors by which others have to be better than the first weights."""


class Looks(BaseModel):
    """What was seen so far: the best held-out bound in nats, its step, and looks made since.

    `values` are the rows' own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nats: float
    values: tuple[float, ...]
    step: int
    since: int = 0


class Best:
    """Keeps the best of the weights that it is shown.

    Args:
        network: of averaged weights.
        patience: looks without a better bound that end the fit.

    Attributes:
        looks: what was seen; None before the first look.
        weights: the best ones; empty before the first look.
    """

    def __init__(self, network: nn.Module, patience: int) -> None:
        self.network, self.patience = network, patience
        self.looks: Looks | None = None
        self.weights: dict[str, Tensor] = {}

    @property
    def turned(self) -> bool:
        """Whether the held-out bound has not grown for so long that the fit is over."""
        return self.looks is not None and self.looks.since >= self.patience

    @torch.no_grad()
    def show(self, step: int, values: Tensor) -> None:
        """After a look at the weights of `step`: the rows' bounds in nats, float64 [N]."""
        errors = 1.0 if self.looks and self.looks.step else FIRST
        if self.looks is None or _better(values, self.looks.values, errors):
            nats = float(values.mean())
            self.looks = Looks(nats=nats, values=tuple(values.tolist()), step=step)
            self.weights = {k: v.clone() for k, v in self.network.state_dict().items()}
        else:
            self.looks = self.looks.model_copy(update={"since": self.looks.since + 1})

    def load(self, looks: Looks | None, weights: dict[str, Tensor], anew: bool) -> None:
        """Go on from a checkpoint; `anew` where a fit that was over is to go on."""
        self.looks = looks
        if looks is not None and anew:
            self.looks = looks.model_copy(update={"since": 0})
        self.weights = weights


def _better(values: Tensor, best: tuple[float, ...], errors: float) -> bool:
    """Whether the gain is above so many standard errors; of one row, above 0. NaN is no better."""
    gain = values - torch.tensor(best, dtype=values.dtype)
    error = float(gain.std()) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
    return float(gain.mean()) > errors * error


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
