"""Runners: the device's side of a lane. `ChainRunner` advances chains and terms of one model.

    prediction = network(chains' x_t and terms' x_t, joined)

A runner has no policy: which rows, in which slots, is the scheduler's choice. Until everything of a
batch has been computed nothing is written back, so one that failed can be tried again, whole or in
parts. Particle systems have a runner of their own, `service.engine.device.smc`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.model import DiffusionModel
from diffusion.samplers import advance
from service.engine.device.chains import ChainBatch, Chains
from service.engine.device.frames import FrameRecorder
from service.engine.device.graphs import ChainGraphs, Record
from service.engine.device.network import NetworkCalls, Precision, Rows
from service.engine.device.terms import Terms
from service.engine.device.transfer import BatchTimer, Collected, HostCopies, slots_of
from service.engine.jobs import BoundJob, Job, SampleJob
from service.engine.results import (
    FrameRows,
    JobPreview,
    JobResult,
    JobStats,
    LoglikResult,
    SampleResult,
)
from service.engine.scheduling.batch import Batch, Entry, by_job

JobT = TypeVar("JobT", bound=Job[Any])


class Runner(ABC, Generic[JobT]):
    """Holds the state of a lane's rows on the device, and advances it batch by batch.

    Args:
        model: the model, on its device.
        batch_size: most rows that go through the network at once.

    Attributes:
        batch_size: as it is now.
        batch_invariant: whether a job gets the same bits whatever else is in its batches.
        timer: measures its batches.
    """

    def __init__(self, model: DiffusionModel, batch_size: int) -> None:
        self.model, self.batch_size, self.batch_invariant = model, batch_size, False
        self.timer, self._copies = BatchTimer(model.device), HostCopies(model.device)

    @property
    def pad_to(self) -> int:
        """Rows that every network call is padded to; 0 for none."""
        return 0

    def rows_at_once(self, batch: Batch) -> int:
        """How many of a batch's rows go through the network in one call."""
        return len(batch)

    def set_batch_size(self, rows: int) -> None:
        """Take batches of up to `rows` rows from now on."""
        # A new size means other kernels, so bits differ from earlier answers, even after growing
        # back.
        self.batch_size, self.batch_invariant = rows, False

    @abstractmethod
    def open(self, key: int, job: JobT) -> None:
        """Get ready for entries of this job."""

    @abstractmethod
    def close(self, key: int) -> None:
        """Forget the job."""

    @abstractmethod
    def run(self, batch: Batch) -> None:
        """Advance the entries; where it raises, nothing has changed and it may be tried again."""

    @abstractmethod
    def collect(self, batch: Batch) -> Collected:
        """Send the results of rows that ended to the host, off their slots.

        Args:
            batch: which has run, without the entries of jobs that have ended meanwhile.
        """

    @abstractmethod
    def receive(self, collected: Collected) -> dict[int, str]:
        """Wait for the results and take them in.

        Returns:
            The jobs with a row that is no longer finite, and what happened to it.
        """

    @abstractmethod
    def result(self, key: int, stats: JobStats) -> JobResult:
        """The result of a job whose rows have all been received."""

    @abstractmethod
    def preview(
        self, key: int, rows: int, started: int, slots: Mapping[int, int], done: int
    ) -> JobPreview | None:
        """The first `rows` samples of a job between batches; None where it draws none.

        Args:
            key: of the job.
            rows: at most.
            started: how many of its rows have.
            slots: by row, of those that have not ended.
            done: network evaluations the job has had.
        """


@final
class ChainRunner(Runner[SampleJob | BoundJob]):
    """Chains and terms of one model, in the same network calls.

    Args:
        model: the model, on its device.
        slots: most chains, and most examples, held at once.
        precision: of sampling; bounds are of the model as it is.
        compiled: whether the network goes through torch.compile.

    Attributes:
        calls: how the network is called, padded or not.
        chains: their jobs and state.
        terms: theirs.
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
        self.chains, self.terms = Chains(model, slots), Terms(model, slots)
        self._frames: list[tuple[FrameRows, Tensor]] = []  # taken since the last were sent
        self._graphs: ChainGraphs | None = None

    @property
    @override
    def pad_to(self) -> int:
        return self.calls.pad_to

    @override
    def set_batch_size(self, rows: int) -> None:
        super().set_batch_size(rows)
        if self.calls.pad_to:
            self.calls.pad_to = rows

    def record(self, recorder: Record) -> None:
        """Have batches of chains alone recorded, at every size up to `batch_size`."""
        self._graphs = ChainGraphs(self.calls.sampling, self.chains, self.batch_size, recorder)

    @override
    def open(self, key: int, job: SampleJob | BoundJob) -> None:
        # The caller gets the tensors made here, so they must not be inference tensors.
        with torch.inference_mode(False):
            if isinstance(job, SampleJob):
                self.chains.open(key, job)
            else:
                self.terms.open(key, job)

    @override
    def close(self, key: int) -> None:
        self._store_of(key).close(key)

    @override
    def run(self, batch: Batch) -> None:
        # By job; places in a batch mean nothing.
        chains, terms = sorted(batch.chains), sorted(batch.terms)
        num_steps = batch.num_steps
        begun = self.timer.begin()
        rows = recorder = None
        if chains:
            self.chains.begin(chains)
            if self.chains.frames:
                recorder = FrameRecorder(self.chains.frames, chains, num_steps)
            rows = self.chains.gather(self._padded(chains), num_steps, share=not self.pad_to)
        if terms:
            self.terms.begin(terms)
            self._run_both(terms, rows, len(chains), recorder)
        elif rows is not None:
            self._run_chains(rows, num_steps, recorder)
        if recorder is not None:
            self._frames += recorder.taken
        self.timer.end(begun, num_steps)

    def _run_chains(self, rows: ChainBatch, num_steps: int, recorder: FrameRecorder | None) -> None:
        """Chains alone."""
        model = self.calls.sampling
        graph = self._graphs and self._graphs.find(len(rows.slots), rows.observed)
        if graph is not None:
            graph.run(rows, recorder)
        elif num_steps == 1:
            self.chains.step(model, rows, recorder)
        else:
            self.chains.steps(model, rows, recorder)

    def _run_both(
        self,
        terms: list[Entry],
        rows: ChainBatch | None,
        n: int,
        recorder: FrameRecorder | None,
    ) -> None:
        """Terms, and with them one step of chains, n of them without padding."""
        state, data = self.chains, self.terms.gather(self._padded(terms), self.pad_to)
        of_chains: Rows | None = None
        if rows is not None:
            x_t, previous, seen = state.state(rows)
            told = None if seen is None else seen.rows(slice(n))
            of_chains = Rows(x_t[:n], rows.update.t[:n], told)
        m = len(terms)
        told = None if data.seen is None else data.seen.rows(slice(m))
        chain, term = self.calls(of_chains, Rows(data.x_t[:m], data.t[:m], told))
        assert term is not None  # terms were asked for
        values = data.evaluate(self.model, term)
        self.terms.write(data, values)  # may be written again; a chain's step may not
        if rows is not None and chain is not None:
            x_s = advance(chain, x_t, previous, rows.update, rows.noise, seen)
            if recorder is not None:
                recorder(1, x_s, chain.x_0)
            state.advance(rows.slots, x_s, chain.x_0)

    @override
    def collect(self, batch: Batch) -> Collected:
        ends = by_job(sorted(batch.ends))
        finite = self.chains.finite[slots_of(batch.chains, self.model.device)]
        leaving = [finite, *(self._store_of(key).ended(entries) for key, entries in ends)]
        leaving += [states for _, states in self._frames]
        frames, self._frames = [rows for rows, _ in self._frames], []
        (finite, *parts), arrived = self._copies.send(leaving)
        return Collected(batch, ends, finite, parts, arrived, frames)

    @override
    def receive(self, collected: Collected) -> dict[int, str]:
        collected.wait()
        results, frames = (
            collected.parts[: len(collected.ends)],
            collected.parts[len(collected.ends) :],
        )
        for rows, states in zip(collected.frames, frames, strict=True):
            if rows.key in self.chains.frames:  # its job has not ended meanwhile
                self.chains.frames[rows.key].keep(rows, states)
        for (key, entries), part in zip(collected.ends, results, strict=True):
            if key in self._store_of(key):
                self._store_of(key).receive(key, entries, part)
        return self.chains.broken(collected)

    @override
    def result(self, key: int, stats: JobStats) -> SampleResult | LoglikResult:
        with torch.inference_mode(False), torch.no_grad():
            return self._store_of(key).result(key, stats)

    @override
    def preview(
        self, key: int, rows: int, started: int, slots: Mapping[int, int], done: int
    ) -> JobPreview | None:
        if key not in self.chains:
            return None
        with torch.inference_mode(False), torch.no_grad():
            return self.chains.preview(key, min(rows, started), slots, done)

    def _store_of(self, key: int) -> Chains | Terms:
        """The store that holds this job: chains or terms."""
        return self.chains if key in self.chains else self.terms

    def _padded(self, entries: list[Entry]) -> list[Entry]:
        """The entries, the last of them repeated up to `pad_to`."""
        return [*entries, *entries[-1:] * (self.pad_to - len(entries))]
