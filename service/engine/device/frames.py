"""Records the frames of chains: the states at some of their steps, kept for the answer.

    frame i of k is the state before step floor(i n / k) of n:    x_t, and x_0hat from it

The network's estimate at a state comes with the step that follows it, so frames need no calls of
their own. They are taken between the steps of a batch.
"""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from service.engine.device.transfer import upload
from service.engine.results import FrameRows, FrameStates
from service.engine.scheduling.batch import Entry


@final
class FrameRecorder:
    """Takes the frames of one batch, step by step.

    The first and the last states of chains are not among them: `FrameStates.end` has these.

    Args:
        kept: by job.
        chains: entries of any jobs, in the order of the batch's rows.
        num_steps: of the batch.

    Attributes:
        taken: which rows, and their states, [len(rows), *event] on the device.
    """

    def __init__(
        self, kept: Mapping[int, FrameStates], chains: Sequence[Entry], num_steps: int
    ) -> None:
        self.taken: list[tuple[FrameRows, Tensor]] = []
        self._wanted: dict[int, list[FrameRows]] = {}
        alike: dict[tuple[int, int], list[int]] = {}  # places of rows at the same step of a job
        for place, entry in enumerate(chains if kept else ()):
            if entry.key in kept:
                alike.setdefault((entry.key, entry.position), []).append(place)
        for (key, position), places in alike.items():
            rows = [chains[place].row for place in places]
            for frame, its_position in enumerate(kept[key].frames.positions[:-1]):
                made = its_position - position  # steps of this batch, when the row is there
                if frame and 1 <= made <= num_steps:
                    self._wanted.setdefault(made, []).append(
                        FrameRows(key, frame, "x", rows, places)
                    )
                if 0 <= made < num_steps:
                    self._wanted.setdefault(made + 1, []).append(
                        FrameRows(key, frame, "x_0", rows, places)
                    )

    def wants(self, made: int) -> bool:
        """Whether something is to be taken after `made` steps of the batch."""
        return made in self._wanted

    def __call__(self, made: int, x: Tensor, x_0: Tensor) -> None:
        """Take what is wanted after `made` steps: of x_s and x_0hat, [B, *event] each."""
        for wanted in self._wanted.get(made, ()):
            first, last = wanted.places[0], wanted.places[-1]
            states = x if wanted.of == "x" else x_0
            if last - first + 1 == len(wanted.places):
                states = states[first : last + 1].clone()
            else:
                states = states[upload(torch.tensor(wanted.places), states.device)]
            self.taken.append((wanted, states))
