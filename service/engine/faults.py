"""What goes wrong in a batch: fail the fewest jobs, retry the rest.

- out of memory: the batch is halved, and both halves tried, down to one row;
- another exception: the batch is tried again job by job, and jobs that raise it alone fail;
- an error that leaves the device unusable passes through and ends the engine.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch

from service.engine.scheduling.batch import Batch
from service.errors import InternalError, OutOfMemory, Problem

_log = logging.getLogger(__name__)


def fatal(error: BaseException) -> bool:
    """Whether the device is of no further use (a fault in a kernel, a device lost)."""
    return isinstance(error, torch.AcceleratorError) and not out_of_memory(error)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on an accelerator or the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The host's allocator has no exception type of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def describe(error: BaseException) -> str:
    """An exception in a line."""
    text = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def problem_of(error: Exception) -> Problem:
    """The problem that the caller gets."""
    if isinstance(error, Problem):
        return error
    if out_of_memory(error):
        return OutOfMemory(
            "The device's memory does not hold one row of this request beside the models.",
            fix="Try again later; the operator may serve fewer models or lower NONEQ_SLOTS.",
        )
    return InternalError(
        f"The computation of this request failed: {describe(error)}",
        fix="Report it with the answer's x-request-id; the service's log has the rest.",
    )


@final
@dataclass(frozen=True)
class Attempt:
    """How to run a batch, and what to do when that fails.

    Args:
        run: runs it; may be called again with fewer entries after it has raised.
        live: whether a job is still wanted.
        fail: a job has failed.
        shrink: memory ran out; at most so many rows run at once from now on.
        at_once: rows that go through the network at once, of entries that go together or not at
            all, as many of them as there are; None where entries can be parted.
    """

    run: Callable[[Batch], None]
    live: Callable[[int], bool]
    fail: Callable[[int, Problem], None]
    shrink: Callable[[int], None]
    at_once: int | None = None

    def __call__(self, batch: Batch) -> int:
        """Run it, whole or in parts; afterwards each entry has run or its job has failed.

        Returns:
            The most rows that ran at once.
        """
        batch = batch.only(self.live)
        chains, terms = batch.chains, batch.terms
        rows, keys = len(batch), {entry.key for entry in (*chains, *terms)}
        if not rows:
            return 0
        problem = self._try(batch)
        # Outside the `except` block: there the traceback would keep the failed batch's tensors.
        if problem is None:
            return self.at_once or rows
        if isinstance(problem, OutOfMemory) and (self.at_once or rows) > 1:
            half = (self.at_once or rows) // 2
            _log.warning("out of memory at %d rows; trying %d", self.at_once or rows, half)
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            self.shrink(half)
            if self.at_once is not None:
                return replace(self, at_once=half)(batch)
            cut = max(0, half - len(chains))
            ran = max(
                self(replace(batch, chains=chains[:half], terms=terms[:cut])),
                self(replace(batch, chains=chains[half:], terms=terms[cut:])),
            )
            # A row that runs out of memory by itself says nothing of how many others may run.
            self.shrink(ran or half)
            return ran
        if len(keys) > 1:
            return max(self(batch.only(key.__eq__)) for key in sorted(keys))
        self.fail(keys.pop(), problem)
        return 0

    def _try(self, batch: Batch) -> Problem | None:
        try:
            self.run(batch)
        except Exception as error:
            if fatal(error):
                raise
            if not out_of_memory(error):
                _log.exception("a batch of %d rows failed", len(batch))
            return problem_of(error)
        return None
