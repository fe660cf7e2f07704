"""What to do when a batch raises: the problem that callers get, and what to run instead.

- out of memory: half the rows at once, down to one: of chains and terms the batch is cut in two, of
  particle systems the same batch is run with smaller network calls;
- another exception: the batch is tried again job by job, and jobs that raise by themselves fail;
- an error that leaves the device unusable ends the engine.

A result that is not finite is no exception: `Engine._receive` ends its job.
"""

import logging
from dataclasses import replace

import torch

from service.engine.scheduling.batch import Batch
from service.errors import InternalError, OutOfMemory, Problem

_log = logging.getLogger(__name__)


def fatal(error: BaseException) -> bool:
    """Whether the device can no longer be used: a fault in a kernel, a device lost."""
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


def problem_unless_fatal(error: Exception, what: str) -> Problem:
    """Log that `what` has failed, and return the problem that callers get.

    Raises:
        AcceleratorError: the error itself, where the device can no longer be used.
    """
    if isinstance(error, Problem):
        return error
    if fatal(error):
        raise error
    if out_of_memory(error):
        return OutOfMemory(
            "The device's memory does not hold one row of this request beside the models.",
            fix="Try again later; the operator may serve fewer models or lower NONEQ_SLOTS.",
        )
    _log.error("%s failed", what, exc_info=error)
    return InternalError(
        f"The computation of this request failed: {describe(error)}",
        fix="Report it with the answer's x-request-id; the service's log has the rest.",
    )


def retries(batch: Batch, problem: Problem, rows: int) -> list[Batch]:
    """What to run instead of a batch that failed with `rows` rows in the network at once.

    Returns:
        Halves, or jobs; or the same batch, where it is the network's calls that get smaller. Empty
        where one job has failed by itself. These parts are only run: the whole batch is retired and
        collected, so their `shares` and a half's `ends` stay those of the whole.
    """
    if isinstance(problem, OutOfMemory) and rows > 1:
        _log.warning("out of memory at %d rows; trying %d", rows, rows // 2)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if batch.lane.systems:
            return [batch]
        chains, terms, half = batch.chains, batch.terms, rows // 2
        cut = max(0, half - len(chains))
        return [
            replace(batch, chains=chains[:half], terms=terms[:cut]),
            replace(batch, chains=chains[half:], terms=terms[cut:]),
        ]
    keys = sorted({entry.key for entry in (*batch.chains, *batch.terms)})
    return [batch.only(key.__eq__) for key in keys] if len(keys) > 1 else []
