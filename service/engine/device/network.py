"""Calls of a model's network: chains and terms in one call, with precision and padding."""

from copy import deepcopy
from dataclasses import replace
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.model import DiffusionModel
from diffusion.networks import Network
from diffusion.observation import Observation
from diffusion.process import Prediction

Precision = Literal["float32", "tf32", "bfloat16"]


class Rows(NamedTuple):
    """What a call is made of: x_t [B, *event], model units, t int64 [B], and what was seen."""

    x_t: Tensor
    t: Tensor
    seen: Observation | None = None


@final
class NetworkCalls:
    """How a model's network is called.

    Args:
        model: the model, on its device; its weights get another memory layout, not other values.
        precision: in sampling: "bfloat16" weights, or products in TensorFloat-32 on GPUs that have
            it ("tf32"). Everything else is full float32.
        compiled: whether the network goes through torch.compile.

    Attributes:
        model: for terms.
        sampling: for chains: the same, or one that computes with fewer bits.
        pad_to: rows that every call is padded to, by repeating one; 0 for none. The bits of a row
            then no longer depend on how many others there are.
    """

    def __init__(
        self, model: DiffusionModel, precision: Precision = "float32", *, compiled: bool = False
    ) -> None:
        # In this layout convolutions are a sixth faster; other layers do not depend on it.
        # Gradients of x_t go through the weights, which inference tensors do not allow. Gradients
        # of the weights themselves are not needed, and a backward pass keeps much less without.
        with torch.inference_mode(False):
            model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            model.network.requires_grad_(False)
        _allow_tf32(allow=False)  # convolutions have it otherwise
        network = model.network
        if precision == "bfloat16":
            network = deepcopy(network).to(torch.bfloat16)
        if compiled:
            for each in {model.network, network}:
                each.compile(dynamic=True)
        if precision == "tf32" and isinstance(network, Network):
            network = _TensorFloat(network)
        model.tabulate()
        self.model = self.sampling = model
        if network is not model.network:
            kinds = model.space, model.prediction, model.variance, model.profile
            known = model.certified, model.calibration
            sampling = DiffusionModel(model.process, network, *kinds, *known)
            self.sampling = sampling.to(model.device).eval()
            self.sampling.tabulate()
        self.pad_to = 0

    def __call__(
        self, chains: Rows | None, terms: Rows | None
    ) -> tuple[Prediction | None, Prediction | None]:
        """The network's prediction for each, padded."""
        if chains is None or terms is None or self.sampling is not self.model:
            return self._apart(self.sampling, chains), self._apart(self.model, terms)
        n, m = len(chains.t), len(terms.t)
        x_t, t = torch.cat((chains.x_t, terms.x_t)), torch.cat((chains.t, terms.t))
        found = self._predict(self.model, x_t, t, self._told(chains, terms))
        return found.rows(self._places(0, n)), found.rows(self._places(n, m))

    def _apart(self, model: DiffusionModel, rows: Rows | None) -> Prediction | None:
        return None if rows is None else self._predict(model, rows.x_t, rows.t, self._told(rows))

    def _predict(
        self, model: DiffusionModel, x_t: Tensor, t: Tensor, told: Observation | None
    ) -> Prediction:
        seen = None if told is None else told.each(self._padded)
        return model.predict(self._padded(x_t), self._padded(t), observation=seen)

    def _told(self, *parts: Rows) -> Observation | None:
        """What the network is told of rows in turn; None where it is told nothing of any."""
        if not self.model.conditional or all(part.seen is None for part in parts):
            return None
        return Observation.joined(
            [
                nothing_told(self.model, len(part.t)) if part.seen is None else part.seen
                for part in parts
            ]
        )

    def _padded(self, rows: Tensor) -> Tensor:
        """The rows, the last of them repeated up to `pad_to`."""
        lacking = self.pad_to - len(rows)
        if lacking <= 0:
            return rows
        return torch.cat((rows, rows[-1:].expand(lacking, *rows.shape[1:])))

    def _places(self, first: int, count: int) -> slice | Tensor:
        """Where in a batch `count` rows are, the last of them repeated up to `pad_to`."""
        if self.pad_to <= count:
            return slice(first, first + count)
        places = torch.arange(first, first + self.pad_to, device=self.model.device)
        return places.clamp(max=first + count - 1)


def nothing_told(model: DiffusionModel, rows: int) -> Observation:
    """r = 1 of so many rows, and a conditional network is told nothing."""
    return as_held(model, model.process.nothing_seen(model.event, rows))


def as_held(model: DiffusionModel, seen: Observation) -> Observation:
    """What was seen in the form that all rows of a model share: who is told, and a table's gaps."""
    if not model.conditional:
        return seen
    told = seen.to_network(False) if seen.told is None else seen
    if model.space.table is None or told.gaps is not None:
        return told
    return replace(told, gaps=torch.zeros_like(told.known))


def something_seen(model: DiffusionModel, rows: int) -> Observation:
    """Zeros in some elements, of which a conditional network is told in every other row."""
    x_0 = torch.zeros(rows, *model.event, device=model.device)
    known = torch.arange(x_0.numel(), device=model.device).view(x_0.shape) % 3 == 0
    seen = model.process.saw(x_0, known, x_0)
    told = torch.arange(rows, device=model.device) % 2 == 0
    return as_held(model, replace(seen, told=told) if model.conditional else seen)


class _TensorFloat(Network):
    """A network whose products are in TensorFloat-32: ten bits, and several times as fast."""

    def __init__(self, inner: Network) -> None:
        super().__init__()
        self.inner, self.clock, self.conditional = inner, inner.clock, inner.conditional

    @override
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        return self.inner.condition(time)

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        _allow_tf32(allow=True)
        try:
            out: Tensor = self.inner(x_t, condition)
            return out
        finally:
            _allow_tf32(allow=False)


def _allow_tf32(*, allow: bool) -> None:
    """Whether the process's GPU products may be in TensorFloat-32; CPUs ignore it."""
    torch.backends.cuda.matmul.allow_tf32 = allow
    torch.backends.cudnn.allow_tf32 = allow
