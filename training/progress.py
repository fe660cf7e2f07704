"""Progress bars: a moving one in a terminal, a line a minute in a log file."""

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor
from tqdm import tqdm


def progress_bar(total: int, unit: str, desc: str, **keys: Any) -> "tqdm[Any]":  # noqa: ANN401
    """A bar of `total` units; `keys` as tqdm takes them.

    Args:
        total: units of work.
        unit: what one is called.
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
    """A bar as `sample` reports to it: at `begun` first, `each` further with every step."""

    def made(steps: int, _: Tensor) -> None:
        bar.update(begun + each * steps - bar.n)

    return made


def each_step(bar: "tqdm[Any]") -> Callable[[int, Tensor], None]:
    """A bar as `sample` reports to it, for chains one after another: a unit a step."""

    def made(_: int, __: Tensor) -> None:
        bar.update(1)

    return made


def rows_done(bar: "tqdm[Any]") -> Callable[[int], None]:
    """A bar as `bound` reports to it: by the rows just done."""

    def made(rows: int) -> None:
        bar.update(rows)

    return made
