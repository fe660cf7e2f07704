"""A model's terms of bounds: their jobs, and the examples and values on the device by slot.

    term = KL(q(x_s given x_t, x_0), p(x_s given x_t)),  x_t ~ q(x_t given x_0)    (`likelihood`)

Terms are gathered into groups that are worked out alike: of one convention, and either
independent draws or steps of trajectories.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.likelihood import iwae
from diffusion.likelihood.bound import (
    closed_last,
    combine,
    combine_parts,
    evaluate_parts,
    prior_part,
    prior_parts,
)
from diffusion.likelihood.iwae import Trajectories
from diffusion.model import DiffusionModel
from diffusion.noise import CounterNoise, Stream
from diffusion.observation import Observation
from diffusion.process import Prediction
from diffusion.space import Convention
from service.engine.device.network import as_held, nothing_told
from service.engine.device.transfer import slots_of, upload
from service.engine.jobs import BoundJob
from service.engine.results import JobStats, LoglikResult
from service.engine.scheduling.batch import Entry, by_job


@dataclass(frozen=True)
class TermGroup:
    """Terms of one kind, [G].

    Attributes:
        index: which of the batch's rows.
        t: int64.
        s: int64, where the steps end.
        convention: of the bound.
        x_0: [G, *event], model units.
        x_t: [G, *event]; of trajectories in float64.
        before: x_{t-1} of trajectories, else None.
    """

    index: Tensor | slice
    t: Tensor
    s: Tensor
    convention: Convention
    x_0: Tensor
    x_t: Tensor
    before: Tensor | None

    def evaluate(self, model: DiffusionModel, prediction: Prediction) -> Tensor:
        """Their nats by part [G, parts], from what the network says of x_t.

        Of trajectories the first part is all, as the log of a mean of weights has no parts.
        """
        x_0, x_t, t = self.x_0, self.x_t, self.t
        if self.before is None:
            return evaluate_parts(model, prediction, x_0, x_t, t, self.convention, self.s)
        found = iwae.evaluate(model, prediction, x_0, self.before, x_t, t, self.convention)
        return F.pad(found[:, None], (0, model.space.parts - 1))


@dataclass(frozen=True)
class TermBatch:
    """Rows of terms.

    Attributes:
        slots: int64 [B], where the examples are.
        positions: int64 [B], which of its job's terms.
        t: int64 [B].
        groups: all of them, by kind.
        seen: what the network is told, [B, *event]; None where it is told nothing of any.
    """

    slots: Tensor
    positions: Tensor
    t: Tensor
    groups: list[TermGroup]
    seen: Observation | None

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """What each group's rows have, in the batch's order, float32 [B, ...]."""
        if len(parts) == 1:
            return parts[0].float()
        whole = parts[0].new_empty(len(self.t), *parts[0].shape[1:], dtype=torch.float32)
        for group, part in zip(self.groups, parts, strict=True):
            whole[group.index] = part.float()
        return whole

    @property
    def x_t(self) -> Tensor:
        """[B, *event]."""
        return self.join([group.x_t for group in self.groups])

    def evaluate(self, model: DiffusionModel, prediction: Prediction) -> Tensor:
        """Their nats by part [B, parts], from what the network says of x_t."""
        return self.join(
            [group.evaluate(model, prediction.rows(group.index)) for group in self.groups]
        )


@final
class Terms:
    """The terms of one model, of up to `count` examples at once.

    Attributes:
        x_0: [count, *event], model units.
        values: nats [slots in use, positions, parts], each term where it has been evaluated.
    """

    def __init__(self, model: DiffusionModel, count: int) -> None:
        self._model = model
        self.x_0 = torch.empty(count, *model.event, device=model.device)
        self.values = torch.zeros(0, model.T, model.space.parts, device=model.device)
        self._seen: Observation | None = None  # of every slot; allocated when a first job has one
        self._jobs: dict[int, tuple[BoundJob, Tensor]] = {}  # with the values, as they come

    def __contains__(self, key: int) -> bool:
        return key in self._jobs

    def open(self, key: int, job: BoundJob) -> None:
        """Get ready for rows of this job."""
        shape = job.rows, job.positions, self._model.space.parts
        self._jobs[key] = job, torch.zeros(shape, dtype=torch.float64)
        self._reserve(positions=job.positions)

    def close(self, key: int) -> None:
        """Forget the job."""
        self._jobs.pop(key, None)

    def begin(self, entries: Sequence[Entry]) -> None:
        """Write the examples of the entries that are at their first position."""
        device = self._model.device
        self._reserve(slots=1 + max(entry.slot for entry in entries))
        for key, group in by_job([entry for entry in entries if entry.position == 0]):
            job, _ = self._jobs[key]
            rows, slots = [entry.row // job.each for entry in group], slots_of(group, device)
            self.x_0[slots] = upload(job.x_0[rows], device)
            self._see(slots, job.observation, rows)

    def gather(self, entries: Sequence[Entry], pad_to: int = 0) -> TermBatch:
        """The batch of these entries' terms, with x_t drawn.

        With `pad_to`, each kind's rows are padded to that number, and last steps, which are
        evaluated in another way, are a kind of their own: elementwise kernels then never see
        another size.
        """
        device = self._model.device
        rows: list[Tensor] = []
        kinds: list[tuple[Convention, Stream, bool]] = []
        told = False
        for key, entries_of_job in by_job(entries):
            job, _ = self._jobs[key]
            told |= job.observation is not None
            row, slot, position = torch.tensor([entry[1:] for entry in entries_of_job]).unbind(1)
            example, seed = job.first + row // job.each, torch.full_like(row, job.seed)
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
            index = slice(None) if alone else upload(torch.tensor(these), device)
            seed, example, t, s, draw = (column[index] for column in columns)
            x_0, noise = self.x_0[slots[index]], CounterNoise(seed, example, draw, stream)
            before, x_t = self._draw(x_0, t, noise)
            groups.append(TermGroup(index, t, s, convention, x_0, x_t, before))
        seen = self._seen.rows(slots) if told and self._seen is not None else None
        return TermBatch(slots, positions, columns[2], groups, seen)

    def write(self, rows: TermBatch, values: Tensor) -> None:
        """The terms of a batch have been evaluated."""
        self.values[rows.slots, rows.positions] = values

    def ended(self, entries: Sequence[Entry]) -> Tensor:
        """The values of a job's rows that ended, on the device."""
        positions = self._jobs[entries[0].key][0].positions
        return self.values[slots_of(entries, self._model.device), :positions]

    def receive(self, key: int, entries: Sequence[Entry], values: Tensor) -> None:
        """Take in the values of rows that ended.

        What is not finite among them is that example's answer; others do not suffer by it.
        """
        self._jobs[key][1][[entry.row for entry in entries]] = values.double()

    def result(self, key: int, stats: JobStats) -> LoglikResult:
        """The result of a job whose rows have all been received."""
        job, parts = self._jobs[key]
        x_0, values, columns = job.x_0.to(self._model.device), parts.sum(2), None
        if isinstance(job.steps, Trajectories):
            found = iwae.weigh(self._model, x_0, job.steps, job.seed, values, job.first)
        else:
            seen = job.observation
            seen = None if seen is None else seen.each(lambda part: part.to(x_0.device))
            prior = prior_part(self._model, x_0, job.convention, seen).cpu()
            last = closed_last(self._model, x_0, job.convention, job.steps.end)
            found = combine(job.steps, values, prior, None if last is None else last.cpu())
            if self._model.space.table is not None and last is None:
                columns = combine_parts(job.steps, parts, prior_parts(self._model, x_0, seen).cpu())
        return LoglikResult(bound=found, values=values, columns=columns, stats=stats)

    def _see(self, slots: Tensor, seen: Observation | None, rows: list[int]) -> None:
        """Write what the network is told of some slots, which are rows of `seen`."""
        if seen is None and self._seen is None:
            return
        if self._seen is None:
            self._seen = nothing_told(self._model, len(self.x_0))
        device = self._model.device
        if seen is None:
            found = nothing_told(self._model, len(slots))
        else:
            found = as_held(
                self._model, seen.rows(torch.tensor(rows)).each(lambda part: upload(part, device))
            )
        for place, value in zip(self._seen.tensors, found.tensors, strict=True):
            place[slots] = value

    def _draw(self, x_0: Tensor, t: Tensor, noise: CounterNoise) -> tuple[Tensor | None, Tensor]:
        """x_{t-1}, where it is needed, and x_t."""
        process = self._model.process
        if noise.stream == Stream.TRAJECTORY:
            return iwae.neighbours(process, x_0, t, noise)
        return None, process.marginal(x_0, t).sample(noise)

    def _reserve(self, positions: int = 0, slots: int = 0) -> None:
        """Make room for `positions` terms per example, in the first `slots` slots."""
        rows, columns, _ = self.values.shape
        wide, long = max(0, positions - columns), max(0, slots - rows)
        if wide or long:
            # By half more at least, so that it happens seldom.
            long = max(long, min(rows // 2, len(self.x_0) - rows)) if long else 0
            self.values = F.pad(self.values, (0, 0, 0, wide, 0, long))
