"""Shows pictures and progress in a terminal.

A terminal with true colour and Unicode shows two pixels per character: an upper half block, whose
foreground is the upper pixel and background the lower one. Others show shades of ASCII.
"""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from noneq.cli import inputs
from noneq.images import Pixels
from noneq.sse import Event, Listener, Progress

if TYPE_CHECKING:
    from tqdm import tqdm

_SHADES = np.array(list(" .:-=+*#%@"))  # from black to white, as most terminals are dark


def show(pixels: Pixels, out: TextIO) -> None:
    """Print a picture as large as fits."""
    size = shutil.get_terminal_size()
    unicode = "utf" in (getattr(out, "encoding", "") or "").lower()
    draw = blocks if unicode and inputs.true_colour() else shades
    out.write(draw(fitted(pixels, size.columns, 2 * max(4, size.lines - 2))))


def fitted(pixels: Pixels, columns: int, lines: int) -> Pixels:
    """Scale a picture to fit `columns` by `lines`, by nearest pixels."""
    height, width = pixels.shape[:2]
    scale = min(columns / width, lines / height)
    scale = float(int(scale)) if scale >= 1 else scale
    rows = (np.arange(max(1, int(height * scale))) / scale).astype(int)
    across = (np.arange(max(1, int(width * scale))) / scale).astype(int)
    found: Pixels = pixels[rows][:, across]
    return found


def blocks(pixels: Pixels) -> str:
    """Render as half blocks in true colour."""
    even = np.concatenate([pixels, pixels[-1:]]) if len(pixels) % 2 else pixels
    lines = []
    for upper, lower in zip(even[::2].tolist(), even[1::2].tolist(), strict=True):
        cells = [
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]}m\x1b[48;2;{b[0]};{b[1]};{b[2]}m▀"
            for a, b in zip(upper, lower, strict=True)
        ]
        lines.append("".join(cells) + "\x1b[0m\n")
    return "".join(lines)


def shades(pixels: Pixels) -> str:
    """Render as ASCII by luma (ITU-R 601); a character is twice as high as it is wide."""
    luma = pixels[::2] @ np.array([0.299, 0.587, 0.114])
    levels = np.rint(luma / 255 * (len(_SHADES) - 1)).astype(int)
    return "".join("".join(line) + "\n" for line in _SHADES[levels])


@contextmanager
def progress(what: str) -> Iterator[Listener | None]:
    """Yield a listener that moves a progress bar on stderr; None without a bar."""
    with _bar(what, "call") as bar:

        def move(event: Event) -> None:
            if isinstance(event, Progress) and bar is not None:
                bar.total = event.total
                bar.update(event.step - bar.n)

        yield None if bar is None else move


@contextmanager
def counter(what: str) -> Iterator[Callable[[int], None]]:
    """Yield a function that adds to a count on stderr, if there is a bar."""
    with _bar(what, "example") as bar:

        def add(more: int) -> None:
            if bar is not None:
                bar.update(more)

        yield add


@contextmanager
def _bar(what: str, unit: str) -> Iterator["tqdm[Any] | None"]:
    """Open a progress bar on stderr; None if that is no terminal, or tqdm is not installed."""
    if not sys.stderr.isatty():
        yield None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield None
        return
    with tqdm(unit=unit, desc=what, dynamic_ncols=True, leave=False) as bar:
        yield bar
