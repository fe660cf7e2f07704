"""The base classes of networks and their configurations.

    forward(x_t, time) = given(x_t, *condition(time))

The condition depends on the time alone, so a loop over many steps computes it once per step for all
rows (`DiffusionModel.tabulate`).
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from typing_extensions import override

from diffusion.networks.embedding import Clock


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


class Network(nn.Module, ABC):
    """A network from [B, *event] and time [B] to [B, outputs * event[0], *event[1:]].

    Attributes:
        clock: what `time` is: t - 1 ("step"), or log(alpha_bar / (1 - alpha_bar)) ("log_snr").
    """

    clock: Clock

    @abstractmethod
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        """Compute from the time [B] the tensors [B, ...] that `given` needs."""

    @abstractmethod
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        """Return the output for x_t [B, *event]; a condition has B rows, or one for all rows."""

    @override
    def forward(self, x_t: Tensor, time: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Return the output for each row at its own time.

        Args:
            x_t: [B, *event] in model units.
            time: [B], by `clock`; or the `condition` computed from it.
        """
        return self.given(x_t, *(time if isinstance(time, tuple) else self.condition(time)))


def check_vector(event: tuple[int, ...], features: int) -> None:
    """Raise ValueError unless an event is a vector of `features` elements."""
    if event != (features,):
        raise ValueError(
            f"this network takes vectors of {features} elements, the data have shape {list(event)}"
        )
