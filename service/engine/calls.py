"""Network calls: of chains and of terms, joined into one wherever one network serves both."""

from copy import deepcopy
from typing import Literal, final

import torch
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.prediction import Prediction

Precision = Literal["float32", "bfloat16"]
Rows = tuple[Tensor, Tensor]  # x_t [B, *event], model units, and t, int64 [B]


@final
class Calls:
    """How a model's network is called.

    Args:
        model: the model, on its device; its weights are laid out anew, their values stay.
        precision: of the weights in sampling.

    Attributes:
        model: what bounds are of.
        sampling: what chains are of; the same, or a copy with weights of fewer bits.
        fill: rows that every call is filled up to, by repeating one; 0 for none. What a row
            computes then no longer depends on how many others there are.
    """

    def __init__(self, model: DiffusionModel, precision: Precision = "float32") -> None:
        # Convolutions are a sixth faster so, at any number of rows; other layers do not see it.
        model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.tabulate()
        self.model = self.sampling = model
        if precision == "bfloat16":
            network = deepcopy(model.network).to(torch.bfloat16)
            kinds = model.space, model.prediction, model.variance, model.profile
            self.sampling = DiffusionModel(model.process, network, *kinds).to(model.device).eval()
            self.sampling.tabulate()
        self.fill = 0

    def __call__(
        self, chains: Rows | None, terms: Rows | None
    ) -> tuple[Prediction | None, Prediction | None]:
        """What the network says of each, filled."""
        if chains is None or terms is None or self.sampling is not self.model:
            return self._apart(self.sampling, chains), self._apart(self.model, terms)
        n, m = len(chains[0]), len(terms[0])
        x_t, t = (self._filled(torch.cat(parts)) for parts in zip(chains, terms, strict=True))
        found = self.model.predict(x_t, t)
        return found.rows(self._places(0, n)), found.rows(self._places(n, m))

    def _apart(self, model: DiffusionModel, rows: Rows | None) -> Prediction | None:
        if rows is None:
            return None
        x_t, t = rows
        return model.predict(self._filled(x_t), self._filled(t))

    def _filled(self, rows: Tensor) -> Tensor:
        """The rows, the last of them repeated up to `fill`."""
        lacking = self.fill - len(rows)
        if lacking <= 0:
            return rows
        return torch.cat((rows, rows[-1:].expand(lacking, *rows.shape[1:])))

    def _places(self, first: int, count: int) -> slice | Tensor:
        """Where in a batch `count` rows are, the last of them repeated up to `fill`."""
        if self.fill <= count:
            return slice(first, first + count)
        places = torch.arange(first, first + self.fill, device=self.model.device)
        return places.clamp(max=first + count - 1)
