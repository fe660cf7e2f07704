"""The base classes of networks and their configurations.

    forward(x_t, time) = given(x_t, *condition(time))

The condition depends on the time alone, so a loop over many steps computes it once per step for all
rows (`DiffusionModel.tabulate`).
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from typing_extensions import override

from diffusion.networks.embedding import Clock

#: Inputs by which a conditional network is told of an element (`Distribution.told`).
SEEN = 3


class NetworkSettings(BaseModel, ABC):
    """The settings that a network is built from; its weights are tensors of the artefact.

    Attributes:
        reads: the prediction and variance that the outputs mean, if they have one fixed meaning,
            else None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    reads: ClassVar[tuple[str, str | None] | None] = None

    @abstractmethod
    def check(self, event: tuple[int, ...], T: int) -> None:
        """Raise ValueError unless the network accepts data of this shape and T steps."""

    def conditioned(self) -> Self:
        """Return the settings of the same network told what was seen; the same if none is."""
        known = "conditional" in type(self).model_fields
        return self.model_copy(update={"conditional": True}) if known else self


class Network(nn.Module, ABC):
    """A network from [B, *event] and time [B] to [B, outputs * event[0], *event[1:]].

    Attributes:
        conditional: whether it also takes [B, 4 event[0], *event[1:]]: x_t, or for eps and v x_t
            and what was seen as one (`Output.fused`), then what was seen of x_0
            (`Distribution.told`), with zeros for nothing.
        clock: what `time` is: t - 1 ("step"), or log(alpha_bar / (1 - alpha_bar)) ("log_snr").
    """

    clock: Clock
    conditional: bool = False

    @abstractmethod
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        """Compute from the time [B] the tensors [B, ...] that `given` needs."""

    @abstractmethod
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        """Return the output for x_t; a condition has B rows, or one for all rows."""

    @override
    def forward(self, x_t: Tensor, time: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Return the output for each row at its own time.

        Args:
            x_t: [B, *event] in model units; with what was seen if the network is `conditional`.
            time: [B], by `clock`; or the `condition` computed from it.
        """
        return self.given(x_t, *(time if isinstance(time, tuple) else self.condition(time)))


def with_seen(x_t: Tensor, channels: int) -> Tensor:
    """Append zeros, for nothing seen, to x_t [B, C, ...] of a conditional network's C channels."""
    if x_t.shape[1] == (1 + SEEN) * channels:
        return x_t
    nothing = x_t.new_zeros(len(x_t), SEEN * channels, *x_t.shape[2:])
    return torch.cat((x_t, nothing), 1)


def check_vector(event: tuple[int, ...], features: int) -> None:
    """Raise ValueError unless an event is a vector of `features` elements."""
    if event != (features,):
        raise ValueError(
            f"this network takes vectors of {features} elements, the data have shape {list(event)}"
        )
