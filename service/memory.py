"""How much of the device's memory the service holds."""

import os
import sys
from pathlib import Path

import torch

_STATM = Path("/proc/self/statm")


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
