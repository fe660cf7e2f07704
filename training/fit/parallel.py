"""Run a fit data-parallel over torchrun's ranks, and end it cleanly on a signal.

    gradient = (1 / world) sum over ranks of the gradient of the rank's own mean loss

Each rank takes rows rank, rank + world, ... of a batch, so the global batch size does not depend on
the number of ranks. A single rank runs the same code without a process group. SIGINT and SIGTERM
take effect after the current step.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this rank writes, prints and draws progress."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This rank's rows of a global batch, strided so that each rank stays stratified."""
        return rows[self.rank :: self.world]

    def check(self, batch: int) -> None:
        """Raise ValueError if the batch does not divide among the ranks."""
        if batch % self.world:
            raise ValueError(f"a batch of {batch} rows does not divide among {self.world} ranks")

    def mean_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average gradients over the ranks in one all-reduce."""
        if self.world == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= self.world
        offset = 0
        for grad in grads:
            grad.copy_(flat[offset : offset + grad.numel()].view_as(grad))
            offset += grad.numel()

    def gather(self, values: Tensor) -> Tensor:
        """Gather each rank's values [rows / world] in the global batch's order [rows]."""
        if self.world == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts, dim=1).flatten()

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank; all ranks get the same answer."""
        if self.world == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item() > 0)

    def wait(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device named by `--device`; "auto" picks a GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("--device cuda, but torch finds no GPU here; use --device cpu")
        return torch.device("cuda", local_rank)
    return torch.device(name)


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """Join torchrun's ranks, from its environment variables, or run as a single process."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = pick_device(device, local)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if world == 1:
        yield Ranks(0, 1, place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), world, place)
    finally:
        dist.destroy_process_group()


INTERRUPTED = 130


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM in a list; a second one acts as usual."""
    caught: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def catch(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        restore()

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, catch)
    except ValueError:  # not the main thread, which owns the signals
        before.clear()
    try:
        yield caught
    finally:
        restore()


def interrupted() -> int:
    """Print that the work is saved, and return the exit status for an interrupted command."""
    print("interrupted and saved; the same command goes on", file=sys.stderr)
    return INTERRUPTED
