"""Film: the states of chains on their way, kept at some of their steps.

    frame i of k is the state before step floor(i n / k) of n:    x_t, and x_0hat from it

The network's estimate at a state comes with the step that follows it. So a tick ends at each frame
and one step behind it: nothing is evaluated for the frames alone, and no burst is looked into.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from service.engine.ticks import Entry


@final
@dataclass(frozen=True)
class Frames:
    """Which states of a chain of n steps are kept.

    Attributes:
        units: u_0 = 0 < u_1 < ... < u_k = n: the states before these steps, the last behind all.
    """

    units: tuple[int, ...]

    @classmethod
    def spread(cls, count: int, steps: int) -> "Frames":
        """k = min(count, steps) of them and the start, as evenly as whole steps allow."""
        k = min(count, steps)
        return cls(tuple(i * steps // k for i in range(k + 1)))

    @cached_property
    def index(self) -> dict[int, int]:
        """The number of each frame, by its unit."""
        return {unit: i for i, unit in enumerate(self.units)}

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """The units before which a tick ends, in order: the frames, and the step behind each."""
        behind = {unit + 1 for unit in self.units[:-1]}
        return tuple(sorted(behind.union(self.units[1:])))


class Shot(NamedTuple):
    """Rows of a job at one of its frames: x_t, or x_0hat from there."""

    key: int
    frame: int
    of: Literal["x", "x_0"]
    rows: list[int]
    slots: list[int]


@final
@dataclass(frozen=True)
class Film:
    """What is kept of a job's chains, on the CPU, model units.

    Attributes:
        frames: which states.
        x: x_t, [k + 1, rows, *event].
        x_0: the network's estimate from each, [k + 1, rows, *event]; of the last, x itself.
    """

    frames: Frames
    x: Tensor
    x_0: Tensor

    @classmethod
    def blank(cls, frames: Frames, rows: int, event: Sequence[int]) -> "Film":
        """Of chains that have not begun."""
        x = torch.zeros(len(frames.units), rows, *event)
        return cls(frames, x, torch.zeros_like(x))

    def keep(self, shot: Shot, states: Tensor) -> None:
        """Take a shot in: states [len(rows), *event]."""
        whole = self.x if shot.of == "x" else self.x_0
        whole[shot.frame, shot.rows] = states.to(whole.dtype)

    def end(self, start: Tensor, samples: Tensor) -> None:
        """The first state of all rows, and the last, [rows, *event]."""
        self.x[0], self.x[-1], self.x_0[-1] = start, samples, samples


def find_shots(films: Mapping[int, Film], chains: Iterable[Entry], length: int) -> list[Shot]:
    """What is to be kept of a tick's chains, now that each of them has made `length` steps.

    Their first states and their last are not among it: `Film.end` has these.

    Args:
        films: by job.
        chains: entries of any jobs.
        length: of the tick.
    """
    found: list[Shot] = []
    groups = groupby(sorted((e for e in chains if e.key in films), key=_step), _step)
    for (key, unit), group in groups:
        there, reached, index = list(group), unit + length, films[key].frames.index
        rows, slots = [entry.row for entry in there], [entry.slot for entry in there]
        if index.get(reached, len(index)) < len(index) - 1:
            found.append(Shot(key, index[reached], "x", rows, slots))
        if reached - 1 in index:
            found.append(Shot(key, index[reached - 1], "x_0", rows, slots))
    return found


def _step(entry: Entry) -> tuple[int, int]:
    return entry.key, entry.unit
