"""Manages the process's memory, and reads the limits of its container."""

import contextlib
import ctypes
import gc
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import final

import torch

from service.errors import NoDeviceMemory
from service.settings import Settings

_STATM = Path("/proc/self/statm")
_CGROUP, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_KEPT, _BLOCK = 2**28, 2**25
_IDLE = 5.0  # seconds


def keep_freed_memory() -> None:
    """Have glibc's malloc keep freed memory while there is work.

    A network call allocates what the previous one freed. By default that memory returns to the
    system in between, so every call starts with thousands of page faults: a tenth of its time.
    Blocks of 32 MiB and more, such as answers, still return at once. Threads share two arenas, so
    that each does not keep its own peak.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _BLOCK)
        mallopt(_ARENA_MAX, 2)


def give_back() -> None:
    """Return freed memory to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def give_back_when_idle(work: Callable[[], int | None], ended: threading.Event) -> None:
    """Return freed memory a few seconds after each period of work, until `ended`.

    Args:
        work: returns a count that grows with the work done; None while work is in progress.
        ended: stops the loop when set.
    """
    seen = given = work()
    while not ended.wait(_IDLE):
        before, seen = seen, work()
        if seen is not None and seen == before != given:
            given = seen
            give_back()


def container_memory(root: Path = _CGROUP) -> int | None:
    """Return the lowest memory limit of the process's control groups, bytes; None without one."""
    limits = [
        int(text)
        for name in ("memory.max", "memory/memory.limit_in_bytes")
        for text in _settings_of(root, name)
        if text.isdecimal() and int(text) < 2**60  # version 1 writes no limit as a huge number
    ]
    return min(limits, default=None)


def container_cpus(root: Path = _CGROUP) -> int | None:
    """Return how many CPUs the control groups allow, rounded up; None without a limit."""
    shares = [text.split() for text in _settings_of(root, "cpu.max")]
    cpus = [int(quota) / int(period) for quota, period in shares if quota.isdecimal()]
    return max(1, math.ceil(min(cpus))) if cpus else None


def fit(settings: Settings, root: Path = _CGROUP) -> Settings:
    """Lower the settings' defaults to the container's limits."""
    found: dict[str, int] = {}
    memory, cpus = container_memory(root), container_cpus(root)
    if memory is not None and "max_queue_bytes" not in settings.model_fields_set:
        least = 2 * settings.max_body_bytes
        found["max_queue_bytes"] = max(least, min(settings.max_queue_bytes, memory // 4))
    in_memory = settings.jobs is None and "max_jobs_bytes" not in settings.model_fields_set
    if memory is not None and in_memory:
        found["max_jobs_bytes"] = max(2**20, min(settings.max_jobs_bytes, memory // 8))
    if cpus is not None and settings.threads == 0:
        found["threads"] = min(cpus, torch.get_num_threads())
    return settings.model_copy(update=found)


def _settings_of(root: Path, name: str) -> Iterator[str]:
    """Yield a setting's value in the process's control group and in each parent."""
    own = Path("/")
    with contextlib.suppress(OSError):
        own = Path(_OWN.read_text().rpartition("::")[2].strip() or "/")
    base, _, leaf = name.rpartition("/")
    for group in (own, *own.parents):
        with contextlib.suppress(OSError):
            yield (root / base / group.relative_to("/") / leaf).read_text().strip()


@final
class DeviceMemory:
    """The device's memory: on CUDA what PyTorch's tensors take, on a CPU the resident set.

    Args:
        device: cpu, cuda or cuda:N.
        limit: most bytes with which a model is still loaded; 0 for what there is.

    Attributes:
        limit: the bytes that may be used.
    """

    def __init__(self, device: str, limit: int = 0) -> None:
        self.device = device
        self.limit = limit or _device_memory(device)

    @property
    def used(self) -> int:
        """Bytes that are in use."""
        return memory_used(self.device)

    def check(self, path: Path) -> None:
        """Raise NoDeviceMemory unless the weights in this file fit beside what is there."""
        self._check(path.parent.name, path.stat().st_size)

    def begin(self) -> None:
        """Measure the most that is used from now on, where the device tells."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def check_peak(self, name: str) -> None:
        """Raise NoDeviceMemory if the limit was passed since `begin`, as by a model's warm-up.

        On CUDA that counts what its largest batch takes beside the weights. On a CPU, where no such
        number is to be had, it is what is used now: malloc keeps what a batch took.
        """
        cuda = torch.device(self.device).type == "cuda"
        used = torch.cuda.max_memory_allocated(self.device) if cuda else self.used
        if used > self.limit:
            raise self._refusal(name, "passed the limit when it was warmed up", 0, used)

    def _check(self, name: str, needed: int) -> None:
        if self.used + needed <= self.limit:
            return
        give_back()
        used = self.used
        if used + needed > self.limit:
            raise self._refusal(name, f"has {needed} bytes of weights", needed, used)

    def _refusal(self, name: str, what: str, needed: int, used: int) -> NoDeviceMemory:
        return NoDeviceMemory(
            f"{name} {what}; {used} bytes of the device's memory are used of {self.limit}",
            received=needed,
            expected=f"at most {max(0, self.limit - used)} bytes",
            used=used,
            limit=self.limit,
            fix="Unload another model, or raise NONEQ_MAX_DEVICE_BYTES if the device has more.",
        )


def _device_memory(device: str) -> int:
    """The bytes that this process could have: of the device, of its container or machine."""
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    container = container_memory()
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:  # not POSIX
        return container or 2**62
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(machine, container or machine)


def memory_used(device: str) -> int:
    """Return the bytes of PyTorch's tensors on CUDA, or the resident set on a CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.memory_allocated(device)
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource  # not available everywhere

    # Without /proc only the peak is known, on macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
