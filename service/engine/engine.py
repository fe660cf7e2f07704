"""The engine: one thread that owns the device and batches the rows of all requests.

What happens to a request, in the order to read:

1. A handler makes it a job (`jobs`): chains, terms of a bound, or particle systems.
2. `Engine.submit`, in the handler's thread, refuses it (`admission`) or queues it (`queue`). The
   caller gets a ticket, with a future for the result (`results`).
3. The engine's thread loops in `_main`, one batch a turn:
   - `_poll` takes new jobs from the queue, and drops cancelled and overdue ones;
   - the scheduler picks the lane that is furthest behind (`scheduling.scheduler`), and that lane
     the rows of a batch: chains and terms (`scheduling.rows`) or systems (`scheduling.gangs`);
   - `_perform` has the lane's runner advance these rows (`device.runner`, with `device.chains` and
     `device.terms`; or `device.smc`), and tells the scheduler how long it took;
   - `_send` copies the results of rows that ended to the host (`device.transfer`), and `_receive`
     takes in those of the batch before.
4. When the last row of a job has arrived, `_end` gives the result to the ticket's future.

Before the first turn every model is warmed up (`device.models`, `device.warmup`). Later ones are
warmed up between batches, and those that are retired leave when their jobs have ended (`loading`).

A fault ends as few jobs as possible. If `run` raises, it is tried again (`faults`) with half the
rows when memory ran out (for particle systems: with smaller network calls), otherwise job by job,
and only jobs that raise by themselves fail. Collecting and receiving are not tried again: an error
there ends every job of the batch. A chain or particle system that is not finite ends its job
(`_receive`); a term that is not finite is its example's answer. Only an error that leaves the
device unusable, or one of the thread itself, ends the engine, and every job with it: no caller
waits for ever.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, final

import torch

from diffusion.model import DiffusionModel
from service.engine.admission import check_limits
from service.engine.device.models import LoadedModels
from service.engine.device.runner import Runner
from service.engine.device.transfer import Collected
from service.engine.faults import describe, fatal, problem_unless_fatal, retries
from service.engine.jobs import ActiveJob, Job
from service.engine.loading import Loader
from service.engine.queue import RequestQueue, resolve
from service.engine.results import JobPreview, JobResult, PreviewRequest, Result_co, Ticket
from service.engine.scheduling.batch import Batch, Lane, ModelVersion
from service.engine.scheduling.latency import Throughput
from service.engine.scheduling.scheduler import Scheduler
from service.engine.timeline import BatchSpan
from service.errors import (
    ModelRetired,
    NotReady,
    NumericalFailure,
    OutOfMemory,
    Problem,
    UnknownModel,
)
from service.metrics import Metrics
from service.settings import Settings

_log = logging.getLogger(__name__)

RunLoop = Callable[[Callable[[], None]], object]


def _in_own_thread(loop: Callable[[], None]) -> None:
    threading.Thread(target=loop, name="noneq-engine", daemon=True).start()


@final
class Engine:
    """Runs jobs in shared batches: `submit` them from any thread.

    Args:
        models: those of the start by name, each in eval mode on its device.
        settings: batch size, slots, limits.
        metrics: where it counts; its own where none is given.
        run_loop: runs the engine's loop, which returns when the engine has ended. By default in a
            thread of its own; `python -m service` uses the main thread, which is faster (OpenMP).

    Attributes:
        busy_seconds: spent on batches so far.
    """

    def __init__(
        self,
        models: Mapping[str, DiffusionModel],
        settings: Settings,
        metrics: Metrics | None = None,
        run_loop: RunLoop | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics or Metrics()
        self._scheduler = Scheduler(term_share=settings.term_share)
        lanes = [Lane(name, systems) for name in models for systems in (False, True)]
        self._throughput = {lane: Throughput() for lane in lanes}
        self._queue = RequestQueue(self._throughput, settings)
        self._models = LoadedModels(models, settings, self._scheduler, self._throughput)
        self._loader = Loader(self._models, self._scheduler)
        for name in models:
            self._metrics.serve(name)
        self._metrics.watch_queue(lambda: self._queue.pending, settings.max_queue_cost)
        self._metrics.watch_room(lambda: self._queue.held, settings.max_queue_bytes)
        self._metrics.watch_owed(lambda: self._queue.owed)
        self._jobs: dict[int, ActiveJob] = {}  # the engine thread's own: polled, not ended
        self._travelling: Collected | None = None  # the results of the batch before
        self._run_loop = run_loop or _in_own_thread
        self._owner: threading.Thread | None = None
        self._ended = threading.Event()
        self._starting = threading.Lock()
        self._started = False
        self._warm = threading.Event()
        self.busy_seconds = 0.0

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._started and not self._queue.closed

    @property
    def ready(self) -> bool:
        """Whether it is warm and takes new jobs."""
        return self.alive and self._warm.is_set() and not self._queue.draining

    @property
    def refused(self) -> Mapping[str, str]:
        """Models of the start that failed their warm-up, and why; complete once warm."""
        return dict(self._models.refused)

    @property
    def pending(self) -> int:
        """Network evaluations accepted and not yet done."""
        return self._queue.pending

    @property
    def owed(self) -> float:
        """Seconds of work that the pending evaluations are, in full batches."""
        return self._queue.owed

    @property
    def held(self) -> int:
        """Bytes of bodies being read, of accepted jobs and of answers on their way."""
        return self._queue.held

    @property
    def accepted(self) -> int:
        """How many jobs were accepted so far."""
        return self._queue.accepted

    @property
    def seconds_pending(self) -> float:
        """Seconds that the pending evaluations take, at the measured rates."""
        return self._queue.seconds_pending

    def start(self) -> None:
        """Start the thread, unless it was: it warms the models up and then serves."""
        with self._starting:
            if not self._started:
                self._started = True
                self._run_loop(self._main)

    def warm(self) -> None:
        """Wait until every model is warm; starts the thread if need be.

        Raises:
            EngineDead: the thread ended instead.
        """
        self.start()
        self._warm.wait()
        if not self.alive:
            raise self._queue.obituary()

    def reserve(self, size: int, *, background: bool = False) -> AbstractContextManager[None]:
        """Reserve bytes for a body while it is read, decoded and submitted.

        Entering raises QueueFull, NoRoom, Draining or EngineDead where its job would be refused.
        """
        return self._queue.reserve(size, background=background)

    def check(self, job: Job[Any]) -> int:
        """Return the bytes that a job would hold; raises what `submit` does whatever the load."""
        model = self._models.served.get(ModelVersion(job.model, job.version))
        if model is None:
            raise self._unknown(job)
        job.check(model)
        return check_limits(job, model, self._settings)

    def load(self, key: ModelVersion, model: DiffusionModel) -> "Future[None]":
        """Warm up a model and serve it beside the others; from any thread.

        The future is resolved once it is served, or raises ModelFailed, Draining or EngineDead.
        """
        self._metrics.serve(key.model)
        return self._queue.load(key, model)

    def retire(self, key: ModelVersion) -> "Future[None]":
        """Take no new jobs of a version, and close it when the accepted ones have ended.

        The future is resolved when it is closed.
        """
        return self._queue.retire(key)

    def submit(
        self, job: Job[Result_co], deadline: float | None = None, *, background: bool = False
    ) -> Ticket[Result_co]:
        """Accept a job; from here on it will end, one way or another. From any thread.

        Args:
            job: what to do.
            deadline: when nobody wants the result any more (`time.monotonic`); the job is dropped
                at the next batch, and its ticket raises DeadlineExceeded.
            background: run it only while there are no other jobs. It is never refused for the
                evaluations that wait, or for a deadline to come, and cancelled by `drain`.

        Raises:
            UnknownModel: no such model, or one that failed its warm-up.
            ModelRetired: this version of it takes no more jobs.
            ValueError: the job's parts do not fit its model (a mistake of the caller's code).
            TooExpensive: it costs, or holds, more than one request may.
            NotReady: the engine has not been started.
            QueueFull, NoRoom: there is too much work already; `retry_after` says when to come back.
            DeadlineUnmeetable: it would end past its deadline, now or at any load.
            DeadlineExceeded: the deadline has passed.
            Draining: the engine is stopping.
            EngineDead: the engine's thread has ended by an error.
        """
        size = self.check(job)
        if not self._started:
            raise NotReady("The engine has not been started.")
        return self._queue.accept(job, size, deadline, background=background)

    def seconds_of(self, job: Job[Any]) -> float:
        """Seconds of work that a job is, in full batches; 0 of an unknown model."""
        throughput = self._throughput.get(job.lane)
        return 0.0 if throughput is None else job.cost * throughput.evaluation

    def parts_of(self, job: Job[Any], seconds: float) -> int:
        """Into how many parts a job may be split that each fill batches for so many seconds."""
        throughput = self._throughput.get(job.lane)
        if throughput is None:
            return 1
        rows = max(1, throughput.batch_size // job.shape.width)
        full = job.shape.rows // max(rows, job.each)
        return max(1, min(full, int(self.seconds_of(job) / seconds)))

    def _unknown(self, job: Job[Any]) -> Problem:
        name, served = job.model, self._models.names
        if name in served:
            return ModelRetired("The model has been replaced.", received=name)
        why = self._models.refused.get(name, "is not served")
        return UnknownModel(f"The model {why}.", received=name, expected=served)

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new jobs, finish the accepted ones and stop; whether they were all finished.

        After `timeout` seconds (`settings.drain_seconds`, if not given) it stops anyway.
        """
        finished = self._queue.drain(self._settings.drain_seconds if timeout is None else timeout)
        self.stop()
        return finished

    def stop(self, timeout: float = 30.0) -> None:
        """End the thread after its batch (waiting that long for it); what is unfinished fails."""
        self._queue.stop()
        if self._started and self._owner is not threading.current_thread():
            self._ended.wait(timeout)

    # From here on: the engine's thread.

    def _main(self) -> None:
        error: BaseException | None = None
        self._owner = threading.current_thread()
        try:
            if self._settings.threads:
                torch.set_num_threads(self._settings.threads)
            with torch.inference_mode():
                self._models.prepare()
                self._warm.set()
                while self._poll():
                    batch = self._scheduler.next()
                    if batch is not None:
                        self._perform(batch)
                    self._loader.step()
                    if not len(self._scheduler):
                        # No batch follows behind which the last results could travel: wait for them
                        # now.
                        self._receive()
        except BaseException as caught:  # whatever it is, callers must not wait for ever
            _log.critical("the engine's thread has ended", exc_info=caught)
            error = caught
        self._queue.close(error)
        self._loader.end(self._queue.obituary())
        self._warm.set()
        self._ended.set()

    def _poll(self) -> bool:
        """Take in new jobs, drop cancelled and overdue ones; False when it is time to stop.

        It sleeps while there is nothing to do.
        """
        travelling = self._travelling
        self._loader.close_retired(None if travelling is None else travelling.batch.lane)
        polled = self._queue.poll(wait=len(self._scheduler) == 0 and not self._loader.busy)
        if polled is None:
            return False
        for record in polled.new:
            self._open(record)
        for key in polled.cancelled:
            self._end(key, None)
        self._loader.take(polled.loads, polled.retired)
        for key, problem in self._queue.overdue().items():
            self._end(key, problem)
        self._answer_previews()
        self._count_rows()
        return True

    def _open(self, record: ActiveJob) -> None:
        """Make a job known to its model's runner and to the scheduler."""
        job = record.job
        if job.model in self._models.refused:  # it was accepted while the models were tried
            self._queue.end(record, job.cost, self._unknown(job))
            return
        self._jobs[record.key] = record
        self._scheduler.add(record.key, job.shape, record.background)
        try:
            self._models.runners[job.lane].open(record.key, job)
        except Exception as error:
            self._end(record.key, problem_unless_fatal(error, "the start of a job"))

    def _answer_previews(self) -> None:
        requests = self._queue.poll_previews()
        previews: list[JobPreview | None] = [None] * len(requests)
        try:
            for i, request in enumerate(requests):
                previews[i] = self._preview(request)
        finally:  # also where an error is about to end the engine
            for request, preview in zip(requests, previews, strict=True):
                resolve(request.future, preview)

    def _preview(self, request: PreviewRequest) -> JobPreview | None:
        """The first rows of a job as they are; None where there is nothing to see."""
        self._receive()  # rows that have left their slots are there then, or their job over
        record = self._jobs.get(request.key)
        if record is None:
            return None
        try:
            started, slots = self._scheduler.slots_of(request.key)
            runner = self._models.runners[record.job.lane]
            return runner.preview(request.key, request.rows, started, slots, record.ticket.done)
        except Exception as error:  # a preview must not fail its job
            if fatal(error):
                raise
            _log.warning("a preview failed: %s", describe(error))
            return None

    def _perform(self, batch: Batch) -> None:
        """Run a batch, free the slots of rows that ended, and send their results on their way."""
        begun = time.monotonic()
        for record in self._live(batch.shares):
            if not record.started:
                waited = self._queue.start(record, begun)
                if not record.background:
                    self._metrics.queue_seconds.observe(waited)
        runner, throughput = self._models.runners[batch.lane], self._throughput[batch.lane]
        ran = self._run(runner, batch)
        if throughput.grow(ran, batch.num_steps):
            runner.set_batch_size(throughput.batch_size)
        seconds = runner.timer.seconds(batch.num_steps, time.monotonic() - begun)
        self._scheduler.retire(batch, seconds)
        if not batch.background:
            self._queue.complete(batch.lane, batch.evaluations)
        self._loader.charge(time.monotonic() - begun)
        model, systems, _ = batch.lane
        fill = min(1.0, batch.network_rows / runner.batch_size)
        self._metrics.batch(model, batch.evaluations, fill, systems=systems)
        self._metrics.pad(model, max(0, runner.pad_to - len(batch)) * batch.num_steps)
        for record in self._live(batch.shares):
            share = batch.shares[record.key]
            record.ticket.done += share
            if record.ticket.log is not None:
                record.ticket.log.add(
                    BatchSpan(begun, begun + seconds, 1, share, batch.network_rows)
                )
        self._count_rows()
        self._send(runner, batch)
        # What callers wait for is the whole turn, with what surrounds its network calls.
        turn = max(seconds, time.monotonic() - begun)
        throughput.measure(batch, turn)
        self.busy_seconds += turn

    def _run(self, runner: Runner[Any], batch: Batch) -> int:
        """Run a batch, whole or in parts: then each entry has run, or its job has failed.

        Returns the most rows that went through the network at once.
        """
        problem = None
        try:
            runner.run(batch)
        except Exception as error:
            problem = problem_unless_fatal(error, f"a batch of {len(batch)} rows")
        # Outside the `except` block: there the traceback would keep the failed batch's tensors.
        rows = runner.rows_at_once(batch)
        if problem is None:
            return rows
        parts = retries(batch, problem, rows)
        if not parts:
            self._end(batch.entries[0].key, problem)
            return 0
        halving = isinstance(problem, OutOfMemory) and rows > 1
        if halving:
            self._shrink(batch.lane, rows // 2)
        most = 0
        for part in parts:
            live = part.only(self._jobs.__contains__)
            if len(live):
                most = max(most, self._run(runner, live))
        if halving:
            # Keep the largest size that ran. If none did, one row itself does not fit, which says
            # nothing about batches: stay at half.
            self._shrink(batch.lane, most or rows // 2)
        return most

    def _shrink(self, lane: Lane, rows: int) -> None:
        """Limit batches to `rows`, as memory ran out; they may grow again later."""
        self._throughput[lane].shrink(rows)
        self._models.runners[lane].set_batch_size(rows)

    def _send(self, runner: Runner[Any], batch: Batch) -> None:
        """Send a batch's results to the host, and receive those of the batch before.

        On a CPU they are there at once. From an accelerator they travel while the next batch runs.
        Waiting here for the batch before keeps the host at most one batch ahead of the device.
        """
        try:
            collected = runner.collect(batch.only(self._jobs.__contains__))
        except Exception as error:
            self._fail(batch, error)
            return
        self._receive()
        self._travelling = collected
        if collected.arrived is None:
            self._receive()

    def _receive(self) -> None:
        """Wait for the travelling results; end the jobs that they complete, or that failed."""
        collected, self._travelling = self._travelling, None
        if collected is None:
            return
        runner = self._models.runners[collected.batch.lane]
        try:
            broken = runner.receive(collected)
        except Exception as error:
            self._fail(collected.batch, error)
            return
        fix = "Take more steps, another sampler or seed; if none helps, the model is at fault."
        for key, what in broken.items():
            self._end(key, NumericalFailure(f"{what}.", fix=fix))
        for key, entries in collected.ends:
            record = self._jobs.get(key)
            if record is not None:
                record.rows_left -= len(entries)
                if record.rows_left == 0:
                    self._end(key, self._result(runner, record))

    def _result(self, runner: Runner[Any], record: ActiveJob) -> JobResult | Problem:
        """The result of a job whose rows have all ended."""
        stats = record.stats(runner.batch_invariant)
        try:
            result = runner.result(record.key, stats)
        except Exception as error:
            return problem_unless_fatal(error, "putting a result together")
        if not record.background:
            self._metrics.compute_seconds.observe(stats.compute_seconds)
        return result

    def _fail(self, batch: Batch, error: Exception) -> None:
        """Fail all jobs of a batch whose results could not be read."""
        problem = problem_unless_fatal(error, "reading the results of a batch")
        for key in batch.shares:
            self._end(key, problem)

    def _end(self, key: int, outcome: JobResult | Problem | None) -> None:
        """End a job that has not ended (None: cancelled): free what it holds, tell its caller."""
        record = self._jobs.pop(key, None)
        if record is None:
            return
        left = self._scheduler.remove(key)
        self._models.runners[record.job.lane].close(key)
        self._queue.end(record, left, outcome)

    def _count_rows(self) -> None:
        scheduler = self._scheduler
        self._metrics.rows(scheduler.rows_running, scheduler.rows_waiting, self)

    def _live(self, keys: Iterable[int]) -> list[ActiveJob]:
        return [self._jobs[key] for key in keys if key in self._jobs]
