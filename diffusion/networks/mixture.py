"""The base of mixture networks, whose weighted components are known in closed form.

With alpha_bar = sigmoid(log_snr) and responsibilities p(k | x_t), E[x_0 | x_t] is the weighted mean
of E[x_0 | x_t, k] over components. They are networks like any other, so likelihoods, posteriors and
evidences can be compared with exact answers.
"""

from abc import ABC
from collections.abc import Callable
from typing import Self

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from diffusion.networks.base import SEEN, Network, NetworkSettings, check_vector
from diffusion.networks.embedding import Clock


class MixtureConfig(NetworkSettings):
    """The sizes of a mixture."""

    components: int = Field(ge=1)
    features: int = Field(ge=1)

    @override
    def check(self, event: tuple[int, ...], T: int) -> None:
        check_vector(event, self.features)


class Mixture(Network, ABC):
    """A mixture sum_k weights_k p(x_0 | k) whose buffers stay float64 when the module is cast."""

    clock: Clock = "log_snr"
    conditional = True
    weights: Tensor

    def __init__(self, components: int) -> None:
        super().__init__()
        uniform = torch.full((components,), 1.0 / components, dtype=torch.float64)
        self.register_buffer("weights", uniform)

    @override
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        """Return the log-SNR unchanged."""
        return (time,)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # .float(), .bfloat16() and .to(device) all call this: change only the device.
        super()._apply(lambda x: x.to(fn(x).device), recurse)  # type: ignore[no-untyped-call]
        return self

    def choose(self, uniform: Tensor) -> Tensor:
        """Map each uniform number to a component, int64 [B]."""
        edges = self.weights.cumsum(0)[:-1]
        return torch.searchsorted(edges, uniform.double().contiguous(), right=True)


def split_seen(x_t: Tensor, features: int) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """Split what a conditional network takes into x_t [B, D] and what it is told, [B, D] each.

    None if it is told nothing of any row, which only the width says: reading the values would wait
    for the device.
    """
    if x_t.shape[1] == features:
        return x_t, None
    x, *told = x_t.split(features, 1)
    assert len(told) == SEEN  # as `DiffusionModel.predict` makes it
    return x.contiguous(), tuple(told)


def check_components(weights: Tensor, values: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless weights [K] lie on the simplex and values have this shape."""
    if weights.ndim != 1 or not bool((weights > 0).all()) or abs(float(weights.sum()) - 1) > 1e-6:
        raise ValueError(
            f"weights [K] are positive and sum to 1, came {weights.tolist()}: divide by their sum"
        )
    if values.shape != shape:
        raise ValueError(
            f"for {shape[0]} weights and {shape[1]} features a tensor of shape {list(shape)} is "
            f"wanted, came {list(values.shape)}"
        )
