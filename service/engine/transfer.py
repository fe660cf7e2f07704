"""Between host and device, without the host waiting for a device that works.

A copy from ordinary memory waits until everything queued before it is done; one from pinned memory
does not. So that the host does not run ahead for ever, it waits for the tick before the last.
"""

from typing import final

import torch
from torch import Tensor


def upload(host: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's, on the device; on a GPU it is there when what is queued next runs."""
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


@final
class Fence:
    """Keeps the host at most one tick ahead of the device, so that it knows how long ticks take.

    Args:
        device: where ticks run; where that is the CPU there is nothing to wait for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: torch.cuda.Event | None = None

    def wait(self) -> None:
        """A tick has been queued: wait for the one before it."""
        if self._device.type != "cuda":
            return
        before, self._last = self._last, torch.cuda.Event()
        self._last.record(torch.cuda.current_stream(self._device))
        if before is not None:
            before.synchronize()
