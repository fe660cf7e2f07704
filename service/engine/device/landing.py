"""What the end of a tick brings, on its way from the device to the host."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from service.engine.frames import Shot
from service.engine.scheduling.batch import Entry


@final
@dataclass(frozen=True)
class Landing:
    """What a tick's end brings.

    Attributes:
        chains: entries of its chains.
        ends: keys and entries of the rows that it finished, by job.
        length: steps that each chain made.
        finite: whether each of the chains was finite, bool [len(chains)].
        parts: the results of `ends`, in their order; of systems, what their wave found.
        arrived: waits until everything is there; None where it is.
        shots: frames of its chains, with their states.
    """

    chains: list[Entry]
    ends: list[tuple[int, list[Entry]]]
    length: int
    finite: Tensor
    parts: list[Tensor]
    arrived: Callable[[], None] | None
    shots: list[tuple[Shot, Tensor]] = field(default_factory=list)

    def wait(self) -> None:
        """Until all of it is on the host."""
        if self.arrived is not None:
            self.arrived()
