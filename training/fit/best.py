"""The best weights of a fit by their held-out bound, and whether it has turned.

    better:  mean_n (K_n - best_n) > its standard error,    n = 1..N rows of valid

The noise of both bounds is the same, so that little of the error is the draw's. A gain within its
error is none: a fit that starts from a simple density stays there if no more is seen in the data.
The fit is over after `patience` looks without a better one.
"""

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn


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
    """

    def __init__(self, network: nn.Module, patience: int) -> None:
        self.network, self.patience = network, patience
        self.looks: Looks | None = None
        self._weights: dict[str, Tensor] = {}

    @property
    def turned(self) -> bool:
        """Whether the held-out bound has not grown for so long that the fit is over."""
        return self.looks is not None and self.looks.since >= self.patience

    @torch.no_grad()
    def show(self, step: int, values: Tensor) -> None:
        """After a look at the weights of `step`: the rows' bounds in nats, float64 [N]."""
        if self.looks is None or _better(values, self.looks.values):
            nats = float(values.mean())
            self.looks = Looks(nats=nats, values=tuple(values.tolist()), step=step)
            self._weights = {k: v.clone() for k, v in self.network.state_dict().items()}
        else:
            self.looks = self.looks.model_copy(update={"since": self.looks.since + 1})

    def tensors(self) -> dict[str, Tensor]:
        """The best weights, for a checkpoint; empty before the first look."""
        return self._weights

    def load(self, looks: Looks | None, weights: dict[str, Tensor], anew: bool) -> None:
        """Go on from a checkpoint; `anew` where a fit that was over is to go on."""
        self.looks = looks
        if looks is not None and anew:
            self.looks = looks.model_copy(update={"since": 0})
        self._weights = weights


def _better(values: Tensor, best: tuple[float, ...]) -> bool:
    """Whether the gain is above its standard error; of one row, above 0. NaN is no better."""
    gain = values - torch.tensor(best, dtype=values.dtype)
    error = float(gain.std()) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
    return float(gain.mean()) > error
