"""What every network's configuration has."""

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class NetworkSettings(BaseModel, ABC):
    """A network's sizes; its values are tensors of the artefact.

    Attributes:
        reads: the prediction and variance of a network whose outputs have one meaning; None where
            training gives them theirs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    reads: ClassVar[tuple[str, str | None] | None] = None

    @abstractmethod
    def check(self, event: tuple[int, ...], T: int) -> None:
        """Raise ValueError unless the network takes data of this shape and T steps."""


def check_vector(event: tuple[int, ...], features: int) -> None:
    """Raise ValueError unless an event is a vector of so many elements."""
    if event != (features,):
        raise ValueError(
            f"this network takes vectors of {features} elements, the data have shape {list(event)}"
        )
