"""How much of the device's memory the service holds, and how it holds it."""

import ctypes
import os
import sys
from pathlib import Path

import torch

_STATM = Path("/proc/self/statm")


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT = 2**30


def keep_freed_memory() -> None:
    """Have malloc keep what is freed, where that is glibc's.

    A network call frees what the next one takes again. By default large blocks go back to the
    system in between, and every call begins with thousands of page faults: a tenth of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _KEPT)


def memory_used(device: str) -> int:
    """Bytes: on CUDA what PyTorch has taken of the device, on a CPU the process's resident set."""
    if torch.device(device).type == "cuda":
        return torch.cuda.memory_reserved(device)
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource  # not everywhere, and nowhere but here

    # Elsewhere only the peak is known, on macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
