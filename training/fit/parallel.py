"""The processes of a fit: data parallel over torchrun's ranks, and how a signal ends them.

    gradient = (1 / world) sum over ranks of the gradient of the rank's own mean loss

Each rank takes rows rank, rank + world, ... of a batch, so the global batch is what the
configuration says, whatever the number of ranks. One rank needs no process group and takes the same
path. SIGINT and SIGTERM take effect after the current step.
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
        """This rank's rows of a global batch: strided, so that strata stay strata on each rank."""
        return rows[self.rank :: self.world]

    def check(self, batch: int) -> None:
        """Raise ValueError if the batch does not divide among the ranks."""
        if batch % self.world:
            raise ValueError(f"a batch of {batch} rows does not divide among {self.world} ranks")

    def mean_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average gradients over the ranks, as one flat array."""
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
        """Values [rows / world] of each rank, put back into the global batch's order [rows]."""
        if self.world == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts, dim=1).flatten()

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank; all ranks get the same answer."""
        if self.world == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item() > 0)

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            dist.barrier()


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `--device` names; "auto" takes a GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("--device cuda, but torch finds no GPU here; use --device cpu")
        return torch.device("cuda", local_rank)
    return torch.device(name)


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """The ranks of this run: those of torchrun's variables, or this process alone."""
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
    """Collects SIGINT and SIGTERM in a list instead of dying; a second one gets its usual way."""
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
    """Say that the work is saved; the exit status of a command that a signal ended."""
    print("interrupted and saved; the same command goes on", file=sys.stderr)
    return INTERRUPTED
