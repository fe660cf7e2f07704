"""A model's chains: their jobs, and their state on the device by slot.

    x_s = a x_t + b x_0hat + c x_0hat_previous + noise        (`diffusion.samplers.advance`)

A batch changes the state of its rows when all of it has been computed. What it needs beside that
state (coefficients, seeds, times) is gathered job by job, for the rows of a job share its plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.noise import CounterNoise, Stream, counter_noise
from diffusion.posterior import Observation
from diffusion.samplers import Update, advance, begin, burst
from service.engine.device.frames import FrameRecorder
from service.engine.device.network import as_held, nothing_told
from service.engine.device.transfer import Collected, slots_of, upload
from service.engine.jobs import SampleJob
from service.engine.results import FrameStates, JobPreview, JobStats, SampleResult
from service.engine.scheduling.batch import Entry, by_job


@dataclass(frozen=True)
class ChainBatch:
    """Rows of chains.

    Attributes:
        slots: int64 [B], where their state is.
        seed: int64 [B].
        row: int64 [B], which chain under the seed.
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


@final
class Chains:
    """The chains of one model, in `count` slots, and one slot more that no chain gets.

    Attributes:
        spare: that slot; whatever is written to it is never read.
        x: x_t, [count + 1, *event].
        previous: x_0hat of the step before, [count + 1, *event].
        finite: whether all of the chain so far was finite, [count + 1].
        frames: what is kept of the jobs that asked for frames.
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
        self.frames: dict[int, FrameStates] = {}
        self._observed: Observation | None = None  # allocated when a first job has one
        self._jobs: dict[int, tuple[SampleJob, Tensor]] = {}  # with the samples, as they come

    def __contains__(self, key: int) -> bool:
        return key in self._jobs

    def open(self, key: int, job: SampleJob) -> None:
        """Get ready for rows of this job."""
        self._jobs[key] = job, torch.zeros(job.rows, *self._model.event)
        if job.frames is not None:
            self.frames[key] = FrameStates.blank(job.frames, job.rows, self._model.event)

    def close(self, key: int) -> None:
        """Forget the job."""
        self._jobs.pop(key, None)
        self.frames.pop(key, None)

    def begin(self, entries: Sequence[Entry]) -> None:
        """Write the state of the entries that are at their first position."""
        for key, group in by_job([entry for entry in entries if entry.position == 0]):
            rows = torch.tensor([entry.row for entry in group])
            self.write(slots_of(group, self._model.device), *self._start(key, rows))

    def gather(self, entries: Sequence[Entry], num_steps: int, *, share: bool) -> ChainBatch:
        """The batch of these entries' next steps.

        With `share`, rows in step share their coefficients and their times: B = 1 in the update.
        """
        groups, device = by_job(entries), self._model.device
        rows: list[tuple[int, int, int]] = []
        parts: list[Tensor] = []
        own: list[bool] = []
        observed = False
        steps = torch.arange(num_steps)[:, None]
        for key, group in groups:
            (job, _), positions = self._jobs[key], [entry.position for entry in group]
            rows += [(entry.slot, job.seed, job.first + entry.row) for entry in group]
            own += [job.plan.own] * len(group)
            observed |= job.observation is not None
            alike = share and len(groups) == 1 and num_steps > 1 and len(set(positions)) == 1
            at = steps + torch.tensor(positions[:1] if alike else positions)
            parts.append(job.plan.joined[at])
        slots, seed, row = upload(torch.tensor(rows), device).unbind(1)
        columns = upload(torch.cat(parts, 1), device)
        t, s = columns[..., :2].long().unbind(-1)
        all_own = own[0] if len(set(own)) == 1 else upload(torch.tensor(own), device)
        update = Update(t, s, columns[..., 2:], all_own)
        return ChainBatch(slots, seed, row, update if num_steps > 1 else update.step(0), observed)

    def state(self, rows: ChainBatch) -> tuple[Tensor, Tensor, Observation | None]:
        """x_t and x_0hat of the step before, [B, *event], and what was seen."""
        seen = self.observation(rows.slots) if rows.observed else None
        return self.x[rows.slots], self.previous[rows.slots], seen

    def step(
        self, model: DiffusionModel, rows: ChainBatch, recorder: FrameRecorder | None = None
    ) -> None:
        """Advance a batch by one step; one network call."""
        x_t, previous, seen = self.state(rows)
        prediction = model.predict(x_t, rows.update.t, observation=seen)
        x_s = advance(prediction, x_t, previous, rows.update, rows.noise, seen)
        if recorder is not None:
            recorder(1, x_s, prediction.x_0)
        self.advance(rows.slots, x_s, prediction.x_0)

    def steps(
        self, model: DiffusionModel, rows: ChainBatch, recorder: FrameRecorder | None
    ) -> None:
        """Advance a batch by several steps, a network call each."""
        x_t, previous, seen = self.state(rows)
        found = burst(model, x_t, previous, rows.update, rows.seed, rows.row, seen, recorder)
        self.advance(rows.slots, *found)

    def write(self, slots: Tensor, x: Tensor, seen: Observation | None) -> None:
        """The state of new chains: x_T (or where else they start) and what was seen of them."""
        self.x[slots] = x
        self.previous[slots] = 0.0
        self.finite[slots] = True
        if seen is None and self._observed is None:
            return
        if seen is None:
            seen = nothing_told(self._model, len(slots))
        seen = as_held(self._model, seen)
        for place, value in zip(self.observe().tensors, seen.tensors, strict=True):
            place[slots] = value

    def advance(self, slots: Tensor, x_s: Tensor, x_0: Tensor) -> None:
        """Write the state of these chains after a step; by now all that may fail is computed."""
        # Of bits a NaN probability draws a zero, so the estimate is looked at as well.
        finite = self.finite[slots] & (x_s + x_0).flatten(1).isfinite().all(1)
        self.x[slots], self.previous[slots], self.finite[slots] = x_s, x_0, finite

    def observe(self) -> Observation:
        """What was seen of every slot; its memory is taken at the first call."""
        if self._observed is None:
            self._observed = nothing_told(self._model, self.spare + 1)
        return self._observed

    def observation(self, slots: Tensor) -> Observation | None:
        """What was seen of these chains, [B, *event]; r = 1 where nothing was."""
        return None if self._observed is None else self._observed.rows(slots)

    def ended(self, entries: Sequence[Entry]) -> Tensor:
        """The samples of a job's rows that ended, on the device."""
        return self.x[slots_of(entries, self._model.device)]

    def receive(self, key: int, entries: Sequence[Entry], samples: Tensor) -> None:
        """Take in the samples of rows that ended."""
        self._jobs[key][1][[entry.row for entry in entries]] = samples

    def broken(self, collected: Collected) -> dict[int, str]:
        """The jobs with a chain that is no longer finite, and what happened to it."""
        found: dict[int, str] = {}
        batch = collected.batch
        for entry, finite in zip(batch.chains, collected.finite.tolist(), strict=True):
            if not finite and entry.key in self._jobs:
                plan = self._jobs[entry.key][0].plan
                t = int(plan.t[entry.position + batch.num_steps - 1])
                row = self._jobs[entry.key][0].first + entry.row
                found[entry.key] = f"sample {row} became NaN or infinite by step t = {t}"
        return found

    def result(self, key: int, stats: JobStats) -> SampleResult:
        """The result of a job whose rows have all been received."""
        (job, samples), frames = self._jobs[key], self.frames.get(key)
        if frames is not None:
            frames.end(self._start(key, torch.arange(job.rows))[0].cpu(), samples)
        return SampleResult(samples=samples, frame_states=frames, stats=stats)

    def preview(self, key: int, rows: int, slots: Mapping[int, int], done: int) -> JobPreview:
        """The first rows of a job as they are; `slots` of those that have not ended."""
        finished = [row not in slots for row in range(rows)]
        running = [slots[row] for row, ended in enumerate(finished) if not ended]
        at = torch.tensor(running, dtype=torch.int64, device=self._model.device)
        samples = self._jobs[key][1][:rows].clone()
        return JobPreview.of(done, finished, samples, self.previous[at])

    def _start(self, key: int, rows: Tensor) -> tuple[Tensor, Observation | None]:
        """Where some rows of a job begin, [len(rows), *event], and what was seen of them."""
        job, device, seen = self._jobs[key][0], self._model.device, None
        if job.observation is not None:
            seen = job.observation.rows(rows).each(lambda part: upload(part, device))
        if job.start is not None:
            return upload(job.start[rows], device), seen
        number = upload(rows + job.first, device)
        noise = counter_noise(job.seed, number, self._model.T + 1, Stream.CHAIN)
        return begin(self._model, noise, seen, len(rows)), seen
