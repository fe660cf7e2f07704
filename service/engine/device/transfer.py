"""Copies between host and device that do not make the host wait for the device's work.

A copy from or to ordinary memory waits until everything queued before it is done; one from or to
pinned memory does not. Results leave on a stream of their own, while the next batch runs. As the
host does not wait for a batch that it has queued, `BatchTimer` measures batches on the device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from service.engine.results import FrameRows
from service.engine.scheduling.batch import Batch, Entry


def upload(host: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device; on a GPU it is there for whatever is queued next."""
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def slots_of(entries: Sequence[Entry], device: torch.device) -> Tensor:
    """Their slots, int64 on the device."""
    return upload(torch.tensor([entry.slot for entry in entries], dtype=torch.int64), device)


@final
@dataclass(frozen=True)
class Collected:
    """The results of a batch, on their way to the host.

    Attributes:
        batch: without the entries of jobs that had ended.
        ends: keys and entries of the rows that it finished, by job.
        finite: whether each of the batch's chains was finite, bool [len(chains)].
        parts: the results of `ends`, in their order, and the states of `frames`; of particle
            systems what their wave found.
        arrived: waits until everything is there; None where it is.
        frames: which frames of its chains were taken.
    """

    batch: Batch
    ends: list[tuple[int, list[Entry]]]
    finite: Tensor
    parts: list[Tensor]
    arrived: Callable[[], None] | None = None
    frames: list[FrameRows] = field(default_factory=list)

    def wait(self) -> None:
        """Until all of it is on the host."""
        if self.arrived is not None:
            self.arrived()


@final
class HostCopies:
    """Copies tensors from the device to the host.

    Args:
        device: where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Callable[[], None] | None]:
        """The same on the host, and how to wait until they are there; None where they are now.

        Args:
            tensors: which nothing writes to from here on.
        """
        stream = self._stream
        if stream is None:
            return list(tensors), None
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            found = []
            for tensor in tensors:
                host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                found.append(host.copy_(tensor, non_blocking=True))
                tensor.record_stream(stream)  # its memory is taken until then
            arrived = torch.cuda.Event()
            arrived.record(stream)
        return found, arrived.synchronize


@final
class BatchTimer:
    """Measures the batches of one runner on its device.

    Args:
        device: where they run; on a CPU the host's own time is right.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._running: tuple[torch.cuda.Event, torch.cuda.Event, int] | None = None
        self._pace: float | None = None  # seconds per step of the latest that is done

    def begin(self) -> torch.cuda.Event | None:
        """Mark that a batch is about to be queued; pass what this returns to `end`."""
        return self._mark() if self._device.type == "cuda" else None

    def end(self, begun: torch.cuda.Event | None, steps: int) -> None:
        """Mark that a batch of `steps` steps has been queued; wait for the one before it."""
        if begun is None:
            return
        before, self._running = self._running, (begun, self._mark(), steps)
        if before is not None:
            first, last, its_steps = before
            last.synchronize()
            self._pace = first.elapsed_time(last) / 1000 / its_steps

    def seconds(self, steps: int, spent: float) -> float:
        """Estimated device seconds of a batch just queued.

        The latest measured pace times `steps`, or `spent` (host time) before any was measured.
        """
        return spent if self._pace is None else steps * self._pace

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
