"""The state of rows between ticks, on the device: row i of a tick is state[slot_i].

A slot is a place in preallocated tensors. Which row has which slot is the scheduler's business;
what a state means is the runner's. Positions in a batch mean nothing.
"""

from typing import final

import torch
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.posterior import Observation


@final
class ChainSlots:
    """State of `count` chains, and of one slot more that no chain gets.

    Attributes:
        spare: that slot; whatever is written to it harms nobody.
        x: x_t, [count + 1, *event].
        previous: x_0hat of the step before, [count + 1, *event].
        finite: whether all of the chain so far was finite, [count + 1].
    """

    def __init__(self, model: DiffusionModel, count: int) -> None:
        self._model = model
        self.spare = count
        # Not zeroed: a CPU's memory is taken only where it is written, by slots that are used.
        self.x = torch.empty(count + 1, *model.event, device=model.device)
        self.previous = torch.empty_like(self.x)
        for state in (self.x, self.previous):
            state[self.spare] = 0.0
        self.finite = torch.ones(count + 1, dtype=torch.bool, device=model.device)
        self._observed: Observation | None = None  # allocated when a first job has one

    def write(self, slots: Tensor, x: Tensor, seen: Observation | None) -> None:
        """The state of new chains: x_T (or where else they start) and what was seen of them."""
        self.x[slots] = x
        self.previous[slots] = 0.0
        self.finite[slots] = True
        if seen is None and self._observed is None:
            return
        if seen is None:
            seen = self.nothing(len(slots))
        for place, value in zip(self.observe().tensors, seen.tensors, strict=True):
            place[slots] = value

    def observe(self) -> Observation:
        """What was seen of every slot; room is made for it when it is first asked for."""
        if self._observed is None:
            self._observed = self.nothing(self.spare + 1)
        return self._observed

    def advance(self, slots: Tensor, x_s: Tensor, x_0: Tensor) -> None:
        """The state of these chains after a step."""
        self.x[slots] = x_s
        self.previous[slots] = x_0
        # Of bits a NaN probability draws a zero, so the estimate is looked at as well.
        self.finite[slots] &= (x_s + x_0).flatten(1).isfinite().all(1)

    def observation(self, slots: Tensor) -> Observation | None:
        """What was seen of these chains, [B, *event]; r = 1 where nothing was."""
        return None if self._observed is None else self._observed.rows(slots)

    def nothing(self, rows: int) -> Observation:
        """r = 1."""
        return Observation.nothing(self._model.process, self._model.event, rows)


@final
class DatumSlots:
    """State of `count` data whose bounds are being evaluated.

    Attributes:
        x_0: [count, *event], model units.
        values: nats [slots in use, units], each term where it has been evaluated.
    """

    def __init__(self, model: DiffusionModel, count: int) -> None:
        self.x_0 = torch.empty(count, *model.event, device=model.device)
        self.values = torch.zeros(0, model.T, device=model.device)

    def reserve(self, units: int = 0, slots: int = 0) -> None:
        """Make room for `units` terms a datum, in so many slots from the first."""
        rows, columns = self.values.shape
        wide, long = max(0, units - columns), max(0, slots - rows)
        if wide or long:
            # By half more at least, so that it happens seldom.
            long = max(long, min(rows // 2, len(self.x_0) - rows)) if long else 0
            self.values = torch.nn.functional.pad(self.values, (0, wide, 0, long))
