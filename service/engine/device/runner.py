"""One batch of one model: a single network call on rows of any jobs, at any steps.

    prediction = network(chains' x_t and terms' x_t ~ q(x_t | x_0), joined)
    chains: x_s by `diffusion.samplers.advance`
    terms: nats by `service.engine.device.batches`

No policy: which rows, in which slots, is the scheduler's choice. Until everything of a batch has
been computed nothing is written back, so one that failed can be tried again, whole or in parts.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.likelihood import iwae as trajectory
from diffusion.likelihood.bound import closed_last, combine, prior_part
from diffusion.likelihood.iwae import Trajectories
from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from diffusion.posterior import Observation
from diffusion.samplers import advance, begin, burst
from service.engine.device.batches import (
    ChainBatch,
    ChainSlots,
    CollectedRows,
    ExampleSlots,
    TermDraws,
    by_job,
    gather_chains,
    gather_terms,
)
from service.engine.device.frames import FrameRecorder
from service.engine.device.graphs import ChainGraphs, Record, one_step
from service.engine.device.network import NetworkCalls, Precision, Rows
from service.engine.device.transfer import Fence, HostCopies, upload
from service.engine.jobs import BoundJob, Job, SampleJob
from service.engine.results import FrameRows, FrameStates, LoglikResult, Peek, SampleResult, Timing
from service.engine.scheduling.batch import Batch, Entry


class Runner(ABC):
    """The device's side of one lane: it holds the state of rows and advances it batch by batch.

    Args:
        model: the model, on its device.
        batch_size: most rows that go through the network at once.

    Attributes:
        batch_size: as it is now.
        batch_invariant: whether a job gets the same bits whatever else is in its batches.
        pad_to: rows that every batch is padded to; 0 for none.
        fence: between one batch and the next.
    """

    def __init__(self, model: DiffusionModel, batch_size: int) -> None:
        self.model, self.batch_size, self.batch_invariant = model, batch_size, False
        self.fence, self._copies = Fence(model.device), HostCopies(model.device)

    @property
    def pad_to(self) -> int:
        """Rows that every batch is padded to."""
        return 0

    def rows_at_once(self, batch: Batch) -> int:
        """How many of a batch's rows go through the network in one call."""
        return len(batch)

    def limit(self, rows: int) -> None:
        """A batch has at most so many rows, from now on."""
        # Other rows, other bits: also for jobs that come when it is the old number again.
        self.batch_size, self.batch_invariant = rows, False

    @abstractmethod
    def open(self, key: int, job: Job) -> None:
        """Get ready for entries of this job."""

    @abstractmethod
    def close(self, key: int) -> None:
        """Forget the job."""

    @abstractmethod
    def run(self, batch: Batch) -> None:
        """Advance the entries; where it raises, nothing has changed and it may be tried again."""

    @abstractmethod
    def collect(self, batch: Batch) -> CollectedRows:
        """Send the results of rows that ended to the host, off their slots.

        Args:
            batch: which has run, without the entries of jobs that have ended meanwhile.
        """

    @abstractmethod
    def receive(self, collected: CollectedRows) -> dict[int, str]:
        """Take the results in, once they are there; it waits for them.

        Returns:
            Jobs with a row that left the finite numbers, and what happened to it.
        """

    @abstractmethod
    def result(self, key: int, queue_seconds: float, compute_seconds: float) -> Timing:
        """The answer of a job whose rows have all been received."""

    @abstractmethod
    def peek(
        self, key: int, rows: int, started: int, slots: Mapping[int, int], done: int
    ) -> Peek | None:
        """The first `rows` samples of a job between batches; None where it draws none.

        Args:
            key: of the job.
            rows: at most.
            started: how many of its rows have.
            slots: by row, of those that have not ended.
            done: network evaluations the job has had.
        """


@final
class ChainRunner(Runner):
    """Chains and terms of bounds of one model, in the same network calls.

    Args:
        model: the model, on its device.
        slots: most chains, and most data, held at once.
        precision: of sampling; bounds are of the model as it is.
        compiled: whether the network goes through torch.compile.

    Attributes:
        calls: how the network is called, padded or not.
        chains: their state.
        data: theirs.
    """

    def __init__(
        self,
        model: DiffusionModel,
        slots: int,
        precision: Precision = "float32",
        *,
        compiled: bool = False,
    ) -> None:
        super().__init__(model, 1)
        self.calls = NetworkCalls(model, precision, compiled=compiled)
        self.chains = ChainSlots(model, slots)
        self.data = ExampleSlots(model, slots)
        self._chain_jobs: dict[int, SampleJob] = {}
        self._term_jobs: dict[int, BoundJob] = {}
        self._results: dict[int, Tensor] = {}  # samples, or values of terms, as they come
        self._frame_states: dict[int, FrameStates] = {}  # of the jobs that asked for frames
        self._taken: list[tuple[FrameRows, Tensor]] = []  # of these, since the last were sent
        self._graphs: ChainGraphs | None = None

    @property
    @override
    def pad_to(self) -> int:
        """Rows that every batch is padded to; 0 for none."""
        return self.calls.pad_to

    @override
    def limit(self, rows: int) -> None:
        """A batch has at most so many rows, from now on; padded ones have as many."""
        super().limit(rows)
        self.calls.pad_to = min(self.calls.pad_to, 1) * rows

    @override
    def open(self, key: int, job: Job) -> None:
        """Get ready for entries of this job, of chains or terms."""
        # The caller gets these tensors, so they must not be inference tensors.
        with torch.inference_mode(False):
            if isinstance(job, BoundJob):
                self._term_jobs[key] = job
                self._results[key] = torch.zeros(job.rows, job.positions, dtype=torch.float64)
                self.data.reserve(positions=job.positions)
            else:
                assert isinstance(job, SampleJob)  # systems have a runner of their own
                self._chain_jobs[key] = job
                self._results[key] = torch.zeros(job.rows, *self.model.event)
                if job.frames is not None:
                    self._frame_states[key] = FrameStates.blank(
                        job.frames, job.rows, self.model.event
                    )

    @override
    def close(self, key: int) -> None:
        """Forget the job."""
        for held in (self._chain_jobs, self._term_jobs, self._results, self._frame_states):
            held.pop(key, None)

    @override
    def run(self, batch: Batch) -> None:
        """One network call, then one update of the chains and one of the terms; or, without terms,
        several steps of the chains.
        """
        num_steps = batch.num_steps
        # By job; places in a batch mean nothing.
        chains, terms = sorted(batch.chains), sorted(batch.terms)
        begun = self.fence.begin()
        self._admit(chains, terms)
        recorder = (
            FrameRecorder(self._frame_states, chains, num_steps) if self._frame_states else None
        )
        rows = None
        if chains:
            jobs, share = self._chain_jobs, not self.calls.pad_to
            rows = gather_chains(self._padded(chains), num_steps, jobs, self.model.device, share)
        if terms:
            self._run_terms(terms, rows, len(chains))
        elif rows is not None:
            self._run_chains(rows, num_steps, recorder)
        if recorder is not None:
            if num_steps == 1 and rows is not None and recorder.wants(1):
                recorder(1, self.chains.x[rows.slots], self.chains.previous[rows.slots])
            self._taken += recorder.taken
        self.fence.wait(begun, num_steps)

    def record(self, recorder: Record) -> None:
        """Have batches of chains alone recorded, at every size up to `batch_size`."""
        self._graphs = ChainGraphs(self.calls.sampling, self.chains, self.batch_size, recorder)

    def _run_chains(self, rows: ChainBatch, num_steps: int, recorder: FrameRecorder | None) -> None:
        """Chains alone: recorded, where that could be done; of one step nothing is taken yet."""
        model, state = self.calls.sampling, self.chains
        graph = self._graphs and self._graphs.find(len(rows.slots), rows.observed)
        if graph is not None:
            graph.run(rows, recorder if num_steps > 1 else None)
        elif num_steps == 1:
            one_step(model, state, rows)
        else:
            x_t, previous = state.x[rows.slots], state.previous[rows.slots]
            seen = state.observation(rows.slots) if rows.observed else None
            found = burst(model, x_t, previous, rows.update, rows.seed, rows.row, seen, recorder)
            state.advance(rows.slots, *found)

    def _run_terms(self, terms: list[Entry], rows: ChainBatch | None, n: int) -> None:
        """Terms, and with them one step of chains, n of them without padding."""
        state, m = self.chains, len(terms)
        of_chains: Rows | None = None
        if rows is not None:
            x_t, previous = state.x[rows.slots], state.previous[rows.slots]
            seen = state.observation(rows.slots) if rows.observed else None
            of_chains = x_t[:n], rows.update.t[:n]
        pad_to = self.calls.pad_to
        data = gather_terms(self._padded(terms), self._term_jobs, self.model.device, pad_to)
        points = [
            TermDraws.draw(self.model, self.data.x_0[data.slots[group.index]], group)
            for group in data.groups
        ]
        drawn = data.join([point.x_t for point in points])
        chain, term = self.calls(of_chains, (drawn[:m], data.t[:m]))
        assert term is not None  # terms were asked for
        found = [
            point.evaluate(self.model, term.rows(group.index), group)
            for group, point in zip(data.groups, points, strict=True)
        ]
        values = data.join(found)
        if rows is not None and chain is not None:
            x_s = advance(chain, x_t, previous, rows.update, rows.noise, seen)
            state.advance(rows.slots, x_s, chain.x_0)
        self.data.values[data.slots, data.positions] = values

    @override
    def collect(self, batch: Batch) -> CollectedRows:
        """Send the results of rows that ended, and frames of others, to the host."""
        chains, groups = batch.chains, by_job(sorted(batch.ends))
        leaving = [self.chains.finite[self._slots(chains)]]
        for key, entries in groups:
            slots = self._slots(entries)
            if key in self._chain_jobs:
                leaving.append(self.chains.x[slots])
            else:
                leaving.append(self.data.values[slots, : self._term_jobs[key].positions])
        frame_rows = [shot for shot, _ in self._taken]
        leaving += [states for _, states in self._taken]
        self._taken = []
        (finite, *parts), wait = self._copies.send(leaving)
        taken = list(zip(frame_rows, parts[len(groups) :], strict=True))
        return CollectedRows(
            chains, groups, batch.num_steps, finite, parts[: len(groups)], wait, taken
        )

    @override
    def receive(self, collected: CollectedRows) -> dict[int, str]:
        """Take the results in, once they are there; it waits for them.

        Returns:
            Jobs with a row that left the finite numbers, and what happened to it.
        """
        collected.wait()
        for shot, states in collected.frame_rows:
            if shot.key in self._frame_states:  # not given up meanwhile
                self._frame_states[shot.key].keep(shot, states)
        found: dict[int, str] = {}
        for entry, good in zip(collected.chains, collected.finite.tolist(), strict=True):
            job = self._chain_jobs.get(entry.key)
            if not good and job is not None:
                t = int(job.plan.t[entry.position + collected.num_steps - 1])
                found[entry.key] = f"sample {entry.row} became NaN or infinite by step t = {t}"
        for (key, entries), part in zip(collected.ends, collected.parts, strict=True):
            if key not in self._results:  # given up meanwhile
                continue
            # What is not finite among terms is that example's answer; others do not suffer by it.
            values = part.to(self._results[key].dtype)
            self._results[key][[entry.row for entry in entries]] = values
        return found

    @override
    def result(
        self, key: int, queue_seconds: float, compute_seconds: float
    ) -> SampleResult | LoglikResult:
        """The answer of a job whose rows have all been collected."""
        if key in self._chain_jobs:
            chains, samples, kept = (
                self._chain_jobs[key],
                self._results[key],
                self._frame_states.get(key),
            )
            if kept is not None:
                with torch.inference_mode(False), torch.no_grad():
                    kept.end(self._start(chains, torch.arange(chains.rows))[0].cpu(), samples)
            return SampleResult(
                samples=samples,
                frame_states=kept,
                queue_seconds=queue_seconds,
                compute_seconds=compute_seconds,
                network_evaluations=chains.cost,
                batch_invariant=self.batch_invariant,
            )
        job, values = self._term_jobs[key], self._results[key]
        with torch.inference_mode(False), torch.no_grad():
            x_0 = job.x_0.to(self.model.device)
            if isinstance(job.steps, Trajectories):
                found = trajectory.weigh(self.model, x_0, job.steps, job.seed, values)
            else:
                prior = prior_part(self.model, x_0, job.convention).cpu()
                last = closed_last(self.model, x_0, job.convention, job.steps.end)
                found = combine(job.steps, values, prior, None if last is None else last.cpu())
        return LoglikResult(
            bound=found,
            values=values,
            queue_seconds=queue_seconds,
            compute_seconds=compute_seconds,
            network_evaluations=job.cost,
            batch_invariant=self.batch_invariant,
        )

    @override
    def peek(
        self, key: int, rows: int, started: int, slots: Mapping[int, int], done: int
    ) -> Peek | None:
        """The first `rows` rows of a job between batches; None where it has no chains.

        Args:
            key: of the job.
            rows: at most.
            started: how many have.
            slots: by row, of those that have not ended.
            done: network evaluations the job has had.
        """
        if key not in self._chain_jobs:
            return None
        rows = min(rows, started)
        finished = [row not in slots for row in range(rows)]
        with torch.inference_mode(False), torch.no_grad():
            index = [slots[row] for row, ended in enumerate(finished) if not ended]
            at = torch.tensor(index, dtype=torch.int64, device=self.model.device)
            estimates = self.chains.previous[at]
            return Peek.of(done, finished, self._results[key][:rows].clone(), estimates)

    def _admit(self, chains: Sequence[Entry], terms: Sequence[Entry]) -> None:
        """Write the state of rows at their first position, job by job."""
        device = self.model.device
        for key, entries in by_job([entry for entry in chains if entry.position == 0]):
            rows = torch.tensor([entry.row for entry in entries])
            self.chains.write(self._slots(entries), *self._start(self._chain_jobs[key], rows))
        self.data.reserve(slots=1 + max((entry.slot for entry in terms), default=-1))
        for key, entries in by_job([entry for entry in terms if entry.position == 0]):
            term_job = self._term_jobs[key]
            x_0 = term_job.x_0[[entry.row // term_job.each for entry in entries]]
            self.data.x_0[self._slots(entries)] = upload(x_0, device)

    def _start(self, job: SampleJob, rows: Tensor) -> tuple[Tensor, Observation | None]:
        """Where some rows of a job begin, [len(rows), *event], and what was seen of them."""
        device, seen = self.model.device, None
        if job.observation is not None:
            seen = job.observation.rows(rows).each(lambda part: upload(part, device))
        if job.start is not None:
            return upload(job.start[rows], device), seen
        noise = counter_noise(job.seed, upload(rows, device), self.model.T + 1, Stream.CHAIN)
        return begin(self.model, noise, seen, len(rows)), seen

    def _slots(self, entries: Sequence[Entry]) -> Tensor:
        slots = torch.tensor([entry.slot for entry in entries], dtype=torch.int64)
        return upload(slots, self.model.device)

    def _padded(self, entries: list[Entry]) -> list[Entry]:
        """The entries, the last of them repeated up to `pad_to`."""
        return [*entries, *entries[-1:] * (self.calls.pad_to - len(entries))]
