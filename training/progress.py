"""Progress bars: live in a terminal, one line per minute in a log file."""

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor
from tqdm import tqdm


def progress_bar(total: int, unit: str, desc: str, **keys: Any) -> "tqdm[Any]":  # noqa: ANN401
    """Make a progress bar.

    Args:
        total: units of work.
        unit: the name of a unit.
        desc: what is being done.
        keys: further arguments of tqdm.
    """
    interval = 1.0 if sys.stderr.isatty() else 60.0
    return tqdm(
        total=total,
        unit=unit,
        desc=desc,
        dynamic_ncols=True,
        mininterval=interval,
        maxinterval=interval,
        **keys,
    )


def steps_made(bar: "tqdm[Any]", begun: int = 0, each: int = 1) -> Callable[[int, Tensor], None]:
    """A callback for `sample` that starts the bar at `begun` and adds `each` per step."""

    def made(steps: int, _: Tensor) -> None:
        bar.update(begun + each * steps - bar.n)

    return made


def each_step(bar: "tqdm[Any]") -> Callable[[int, Tensor], None]:
    """A callback for `sample` that adds one per step, for chains run one after another."""

    def made(_: int, __: Tensor) -> None:
        bar.update(1)

    return made


def rows_done(bar: "tqdm[Any]") -> Callable[[int], None]:
    """A callback for `bound` that adds the rows just done."""

    def made(rows: int) -> None:
        bar.update(rows)

    return made
