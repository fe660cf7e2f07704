"""Batches as tensors: the state of rows between batches, and the columns a batch gathers from it.

`ChainSlots` and `ExampleSlots` hold the state by slot. `gather_chains` and `gather_terms` look up
what the entries of a batch need beside it (coefficients, seeds, times), job by job, for rows of one
job share its plan, its seed and its convention; entries come sorted by job. `CollectedRows` are the
results of a batch on their way to the host.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import final

import torch
from torch import Tensor

from diffusion.likelihood import iwae as trajectory
from diffusion.likelihood.bound import evaluate
from diffusion.likelihood.iwae import Trajectories
from diffusion.model import DiffusionModel
from diffusion.noise import CounterNoise, Stream
from diffusion.posterior import Observation
from diffusion.prediction import Prediction
from diffusion.samplers import Update
from diffusion.space import Convention
from service.engine.device.transfer import upload
from service.engine.jobs import BoundJob, SampleJob
from service.engine.results import FrameRows
from service.engine.scheduling.batch import Entry


@dataclass(frozen=True)
class ChainBatch:
    """Rows of chains.

    Attributes:
        slots: int64 [B], where their state is.
        seed: int64 [B].
        row: int64 [B], which chain of its job.
        update: their steps: one [B], or k in turn [k, B].
        observed: whether something was seen of one of them.
    """

    slots: Tensor
    seed: Tensor
    row: Tensor
    update: Update
    observed: bool

    @property
    def noise(self) -> CounterNoise:
        """Of one step."""
        return CounterNoise(self.seed, self.row, self.update.t)


@dataclass(frozen=True)
class TermBatch:
    """Terms of bounds.

    Attributes:
        slots: int64 [B], where the data are.
        positions: int64 [B], which of its job's terms.
        t: int64 [B].
        groups: all of them, by kind.
    """

    slots: Tensor
    positions: Tensor
    t: Tensor
    groups: "list[TermGroup]"

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """What each group's rows have, in the batch's order, float32 [B, ...]."""
        if len(parts) == 1:
            return parts[0].float()
        whole = parts[0].new_empty(len(self.t), *parts[0].shape[1:], dtype=torch.float32)
        for group, part in zip(self.groups, parts, strict=True):
            whole[group.index] = part.float()
        return whole


@dataclass(frozen=True)
class TermGroup:
    """Terms of one kind, which are worked out together.

    Attributes:
        index: which of the batch's rows.
        t: int64 [G].
        s: int64 [G], where the steps end.
        noise: of the forward draw, or of the trajectory.
        convention: of the bound.
    """

    index: Tensor | slice
    t: Tensor
    s: Tensor
    noise: CounterNoise
    convention: Convention

    @property
    def of_trajectories(self) -> bool:
        """Whether they are steps of trajectories."""
        return self.noise.stream == Stream.TRAJECTORY


def by_job(entries: Sequence[Entry]) -> list[tuple[int, list[Entry]]]:
    """Each job's key and entries, of entries sorted by job."""
    return [(key, list(group)) for key, group in groupby(entries, lambda entry: entry.key)]


def gather_chains(
    entries: Sequence[Entry],
    num_steps: int,
    jobs: Mapping[int, SampleJob],
    device: torch.device,
    share: bool = True,
) -> ChainBatch:
    """The batch of some chains' next `num_steps` steps.

    With `share`, rows in step share their coefficients and their times: B = 1 in the update.
    """
    groups = by_job(entries)
    rows: list[tuple[int, int, int]] = []
    parts: list[Tensor] = []
    own: list[bool] = []
    steps = torch.arange(num_steps)[:, None]
    for key, group in groups:
        job, positions = jobs[key], [entry.position for entry in group]
        rows += [(entry.slot, job.seed, entry.row) for entry in group]
        own += [job.plan.own] * len(group)
        alone = share and len(groups) == 1 and num_steps > 1 and len(set(positions)) == 1
        parts.append(job.plan.joined[steps + torch.tensor(positions[:1] if alone else positions)])
    slots, seed, row = upload(torch.tensor(rows), device).unbind(1)
    columns = upload(torch.cat(parts, 1), device)
    t, s = columns[..., :2].long().unbind(-1)
    alike = len(set(own)) == 1
    update = Update(t, s, columns[..., 2:], own[0] if alike else upload(torch.tensor(own), device))
    observed = any(jobs[key].observation is not None for key, _ in groups)
    return ChainBatch(slots, seed, row, update if num_steps > 1 else update.step(0), observed)


def gather_terms(
    entries: Sequence[Entry], jobs: Mapping[int, BoundJob], device: torch.device, pad_to: int = 0
) -> TermBatch:
    """The batch of some terms.

    With `pad_to`, each kind's rows are padded to so many, and last steps, which are evaluated in
    another way, are a kind of their own: elementwise kernels then never see another size either.
    """
    rows: list[Tensor] = []
    kinds: list[tuple[Convention, Stream, bool]] = []
    for key, group in by_job(entries):
        job = jobs[key]
        row, slot, position = torch.tensor([entry[1:] for entry in group]).unbind(1)
        example, seed = row // job.each, torch.full_like(row, job.seed)
        t, s, draw = job.steps.at(row, position)
        rows.append(torch.stack((slot, position, seed, example, t, s, draw), 1))
        stream = Stream.TRAJECTORY if isinstance(job.steps, Trajectories) else Stream.TERM
        kinds += [(job.convention, stream, pad_to > 0 and end == 0) for end in s.tolist()]
    slots, positions, *columns = upload(torch.cat(rows), device).unbind(1)
    groups: list[TermGroup] = []
    for kind in dict.fromkeys(kinds):
        convention, stream, _ = kind
        these = [i for i, other in enumerate(kinds) if other == kind]
        alone = len(these) == len(kinds)
        these += these[-1:] * (pad_to - len(these))
        i = slice(None) if alone else upload(torch.tensor(these), device)
        seed, example, t, s, draw = (column[i] for column in columns)
        groups.append(TermGroup(i, t, s, CounterNoise(seed, example, draw, stream), convention))
    return TermBatch(slots, positions, columns[2], groups)


@final
class ChainSlots:
    """State of `count` chains, and of one slot more that no chain gets.

    Attributes:
        spare: that slot; whatever is written to it is never read.
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
class ExampleSlots:
    """State of `count` data whose bounds are being evaluated.

    Attributes:
        x_0: [count, *event], model units.
        values: nats [slots in use, positions], each term where it has been evaluated.
    """

    def __init__(self, model: DiffusionModel, count: int) -> None:
        self.x_0 = torch.empty(count, *model.event, device=model.device)
        self.values = torch.zeros(0, model.T, device=model.device)

    def reserve(self, positions: int = 0, slots: int = 0) -> None:
        """Make room for `positions` terms an example, in so many slots from the first."""
        rows, columns = self.values.shape
        wide, long = max(0, positions - columns), max(0, slots - rows)
        if wide or long:
            # By half more at least, so that it happens seldom.
            long = max(long, min(rows // 2, len(self.x_0) - rows)) if long else 0
            self.values = torch.nn.functional.pad(self.values, (0, wide, 0, long))


@final
@dataclass(frozen=True)
class TermDraws:
    """x_0 and x_t of the terms of a group, [G, *event].

    Attributes:
        x_0: model units.
        x_t: of trajectories in float64.
        before: x_{t-1} of trajectories, else None.
    """

    x_0: Tensor
    x_t: Tensor
    before: Tensor | None = None

    @classmethod
    def draw(cls, model: DiffusionModel, x_0: Tensor, group: TermGroup) -> "TermDraws":
        """The points of a group whose data are `x_0`."""
        process = model.process
        if group.of_trajectories:
            before, x_t = trajectory.neighbours(process, x_0, group.t, group.noise)
            return cls(x_0, x_t, before)
        return cls(x_0, process.marginal(x_0, group.t).sample(group.noise))

    def evaluate(self, model: DiffusionModel, prediction: Prediction, group: TermGroup) -> Tensor:
        """The terms of the group, nats [G], from what the network says of x_t."""
        x_0, t, convention = self.x_0, group.t, group.convention
        if self.before is None:
            return evaluate(model, prediction, x_0, self.x_t, t, convention, group.s)
        return trajectory.evaluate(model, prediction, x_0, self.before, self.x_t, t, convention)


@final
@dataclass(frozen=True)
class CollectedRows:
    """What a batch's end brings.

    Attributes:
        chains: entries of its chains.
        ends: keys and entries of the rows that it finished, by job.
        num_steps: steps that each chain made.
        finite: whether each of the chains was finite, bool [len(chains)].
        parts: the results of `ends`, in their order; of systems, what their wave found.
        arrived: waits until everything is there; None where it is.
        frame_rows: frames of its chains, with their states.
    """

    chains: list[Entry]
    ends: list[tuple[int, list[Entry]]]
    num_steps: int
    finite: Tensor
    parts: list[Tensor]
    arrived: Callable[[], None] | None
    frame_rows: list[tuple[FrameRows, Tensor]] = field(default_factory=list)

    def wait(self) -> None:
        """Until all of it is on the host."""
        if self.arrived is not None:
            self.arrived()
