"""A look at a running chain job: x_0hat of its first rows, copied between two ticks.

Nothing is copied unless somebody asks, and the engine's thread waits for no device: it takes a
snapshot there, and whoever asked brings it over.
"""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Peek:
    """The first rows of a chain job, those of them that have started.

    Attributes:
        done: network evaluations made so far, by all rows.
        finished: for each row from the first, whether it has ended.
        samples: x_0 [rows, *event] on the CPU, model units; of meaning where finished.
        estimates: x_0hat of the rows that have not ended, in order, on the model's device.
        taken: passes when an accelerator has taken the snapshot; None on the CPU.
    """

    done: int
    finished: list[bool]
    samples: Tensor
    estimates: Tensor
    taken: torch.cuda.Event | None

    @classmethod
    def of(cls, done: int, finished: list[bool], samples: Tensor, estimates: Tensor) -> "Peek":
        """A look at tensors that nobody else holds."""
        taken = None
        if estimates.is_cuda:
            taken = torch.cuda.Event()
            taken.record(torch.cuda.current_stream(estimates.device))
        return cls(done, finished, samples, estimates, taken)

    def x_0(self) -> Tensor:
        """Samples of the rows that ended, x_0hat of the others: [rows, *event], model units.

        It waits for the device, so not on the event loop.
        """
        if self.taken is not None:
            self.taken.synchronize()
        running = ~torch.tensor(self.finished, dtype=torch.bool)
        x_0 = self.samples.clone()
        x_0[running] = self.estimates.cpu()
        return x_0


class PeekRequest(NamedTuple):
    """Somebody asks for the first `rows` rows of job `key`; None is the answer once it is over."""

    key: int
    rows: int
    future: "Future[Peek | None]"
