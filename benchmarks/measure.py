"""Timing of two alternatives on a noisy machine.

They run alternately in one process, and the result is the median of the ratios of neighbouring
runs, with quartiles.
"""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Ratio:
    """By how many times one thing was faster than another, over `rounds` neighbouring pairs."""

    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    rounds: int

    def cells(self, unit: float = 1.0) -> list[str]:
        """Format ours and theirs, in seconds divided by `unit`, and the ratio with quartiles."""
        return [
            f"{self.ours / unit:.3g}",
            f"{self.theirs / unit:.3g}",
            f"{self.ratio:.2f} ({self.low:.2f} to {self.high:.2f})",
        ]


def seconds(act: Callable[[], object]) -> float:
    """Measure the wall time of one call, including its GPU work."""
    begun = time.perf_counter()
    act()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def compare(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> Ratio:
    """Compare the seconds that both return, called alternately after one warm-up call each."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    ratios = sorted(b / a for a, b in pairs)
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return Ratio(
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(ratios),
        low,
        high,
        rounds,
    )


def machine() -> str:
    """Describe this machine in a line."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(": ")[2] if lines else name
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{name}, {torch.get_num_threads()} threads, {device}, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
