"""Film: the states of chains on their way, kept at some of their steps.

    frame i of k is the state before step floor(i n / k) of n:    x_t, and x_0hat from it

The network's estimate at a state comes with the step that follows it, so nothing is evaluated for
the frames alone; and they are taken between the steps of a tick, which is no shorter for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from service.engine.scheduling.batch import Entry
from service.engine.transfer import upload


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


class Shot(NamedTuple):
    """Rows of a job at one of its frames: x_t, or x_0hat from there; and their places in a tick."""

    key: int
    frame: int
    of: Literal["x", "x_0"]
    rows: list[int]
    places: list[int]


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


@final
class Camera:
    """Takes what is to be kept of a tick, step by step.

    The first states of chains and their last are not among it: `Film.end` has these.

    Args:
        films: by job.
        chains: entries of any jobs, in the order of the tick's rows.
        length: of the tick.

    Attributes:
        taken: each shot with its states, [len(rows), *event] on the device.
    """

    def __init__(self, films: Mapping[int, Film], chains: Sequence[Entry], length: int) -> None:
        self.taken: list[tuple[Shot, Tensor]] = []
        self._wanted: dict[int, list[Shot]] = {}
        alike: dict[tuple[int, int], list[int]] = {}  # places of rows at the same step of a job
        for place, entry in enumerate(chains if films else ()):
            if entry.key in films:
                alike.setdefault((entry.key, entry.unit), []).append(place)
        for (key, unit), places in alike.items():
            rows = [chains[place].row for place in places]
            for frame, its_unit in enumerate(films[key].frames.units[:-1]):
                made = its_unit - unit  # steps of this tick, when the row is there
                if frame and 1 <= made <= length:
                    self._wanted.setdefault(made, []).append(Shot(key, frame, "x", rows, places))
                if 0 <= made < length:
                    shot = Shot(key, frame, "x_0", rows, places)
                    self._wanted.setdefault(made + 1, []).append(shot)

    def wants(self, made: int) -> bool:
        """Whether something is to be taken after so many steps of the tick."""
        return made in self._wanted

    def __call__(self, made: int, x: Tensor, x_0: Tensor) -> None:
        """Take what is wanted after so many steps: of x_s and x_0hat, [B, *event] each."""
        for shot in self._wanted.get(made, ()):
            first, last = shot.places[0], shot.places[-1]
            states = x if shot.of == "x" else x_0
            if last - first + 1 == len(shot.places):
                states = states[first : last + 1].clone()
            else:
                states = states[upload(torch.tensor(shot.places), states.device)]
            self.taken.append((shot, states))
