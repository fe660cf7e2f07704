"""What every network has: a configuration, and its condition on the time, computed apart from x_t.

    forward(x_t, time) = given(x_t, *condition(time))

The condition is the same for every row at the same step, so a loop over many steps computes it once
for all of them (`DiffusionModel.tabulate`).
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from typing_extensions import override

from diffusion.networks.embedding import Clock


class NetworkSettings(BaseModel, ABC):
    """A network's sizes; its values are tensors of the artefact.

    Attributes:
        reads: the prediction and variance of a network whose outputs have one fixed meaning, else
            None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    reads: ClassVar[tuple[str, str | None] | None] = None

    @abstractmethod
    def check(self, event: tuple[int, ...], T: int) -> None:
        """Raise ValueError unless the network takes data of this shape and T steps."""


class Network(nn.Module, ABC):
    """[B, *event] and time [B] to [B, outputs * event[0], *event[1:]].

    Attributes:
        clock: what `time` is: t - 1 ("step"), or log(alpha_bar / (1 - alpha_bar)) ("log_snr").
    """

    clock: Clock

    @abstractmethod
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        """The network's condition on the time [B]: tensors [B, ...]."""

    @abstractmethod
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        """The output for x_t [B, *event]; a condition has B rows, or one that holds for all."""

    @override
    def forward(self, x_t: Tensor, time: Tensor | tuple[Tensor, ...]) -> Tensor:
        """The output for each row at its own time.

        Args:
            x_t: [B, *event] in model units.
            time: [B], by `clock`; or the `condition` computed from it.
        """
        return self.given(x_t, *(time if isinstance(time, tuple) else self.condition(time)))


def check_vector(event: tuple[int, ...], features: int) -> None:
    """Raise ValueError unless an event is a vector of so many elements."""
    if event != (features,):
        raise ValueError(
            f"this network takes vectors of {features} elements, the data have shape {list(event)}"
        )
