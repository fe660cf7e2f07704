"""Mixtures, what the two oracles share: components with weights, known in closed form.

With alpha_bar = sigmoid(log_snr) and responsibilities p(k | x_t), E[x_0 | x_t] is the mean over
components of their own E[x_0 | x_t, k]. They are networks like any other, so that all likelihoods,
posteriors and evidences can be held against the exact answer.
"""

from abc import ABC
from collections.abc import Callable
from typing import Self

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from diffusion.networks.base import Network, NetworkSettings, check_vector
from diffusion.networks.embedding import Clock


class MixtureConfig(NetworkSettings):
    """A mixture's sizes."""

    components: int = Field(ge=1)
    features: int = Field(ge=1)

    @override
    def check(self, event: tuple[int, ...], T: int) -> None:
        check_vector(event, self.features)


class Mixture(Network, ABC):
    """sum_k weights_k p(x_0 | k), with buffers in float64 whatever the module is cast to."""

    clock: Clock = "log_snr"
    weights: Tensor

    def __init__(self, components: int) -> None:
        super().__init__()
        uniform = torch.full((components,), 1.0 / components, dtype=torch.float64)
        self.register_buffer("weights", uniform)

    @override
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        """The log-SNR as it is."""
        return (time,)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # .float() and .bfloat16() come through here as .to(device) does: only the device is obeyed.
        super()._apply(lambda x: x.to(fn(x).device), recurse)  # type: ignore[no-untyped-call]
        return self

    def choose(self, uniform: Tensor) -> Tensor:
        """The component of each uniform number, int64 [B]."""
        edges = self.weights.cumsum(0)[:-1]
        return torch.searchsorted(edges, uniform.double(), right=True)


def check_components(weights: Tensor, values: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless weights [K] lie on the simplex and values have the shape."""
    if weights.ndim != 1 or not bool((weights > 0).all()) or abs(float(weights.sum()) - 1) > 1e-6:
        raise ValueError(
            f"weights [K] are positive and sum to 1, came {weights.tolist()}: divide by their sum"
        )
    if values.shape != shape:
        raise ValueError(
            f"for {shape[0]} weights and {shape[1]} features a tensor of shape {list(shape)} is "
            f"wanted, came {list(values.shape)}"
        )
