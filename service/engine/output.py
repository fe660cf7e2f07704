"""The output processor: results of batches are sent when a batch ends, and answered on arrival.

On a CPU they have arrived at once. From an accelerator they travel while the next batch runs, and
those of one batch at most are on their way: an answer comes no more than a batch late.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import final

from service.engine.device.batches import CollectedRows
from service.engine.device.runner import Runner
from service.engine.faults import fatal, problem_of
from service.engine.jobs import ActiveJob
from service.engine.results import Timing
from service.engine.scheduling.batch import Batch
from service.errors import NumericalFailure, Problem
from service.metrics import Metrics

_log = logging.getLogger(__name__)


@final
class OutputProcessor:
    """Hands out the results of batches, and the problems of jobs that left the finite numbers.

    Args:
        records: the jobs that have not ended.
        metrics: where it counts.
        end: ends a job with its answer, or its problem.
    """

    def __init__(
        self,
        records: Mapping[int, ActiveJob],
        metrics: Metrics,
        end: Callable[[int, Timing | Problem], None],
    ) -> None:
        self._records, self._metrics, self._end = records, metrics, end
        self._due: tuple[Runner, Batch, CollectedRows] | None = None

    def send(self, runner: Runner, batch: Batch) -> None:
        """A batch is done, or queued: send its results, and hand out those of the one before."""
        try:
            collected = runner.collect(batch.only(self._records.__contains__))
        except Exception as error:
            self._fail(batch, error)
            return
        self.flush()
        self._due = (runner, batch, collected)
        if collected.arrived is None:
            self.flush()

    def flush(self) -> None:
        """Hand out what is on its way; it waits for that."""
        if self._due is None:
            return
        (runner, batch, collected), self._due = self._due, None
        try:
            broken = runner.receive(collected)
        except Exception as error:
            self._fail(batch, error)
            return
        fix = "Take more steps, another sampler or seed; if none helps, the model is at fault."
        for key, what in broken.items():
            if key in self._records:
                self._end(key, NumericalFailure(f"{what}.", fix=fix))
        ended = Counter({key: len(entries) for key, entries in collected.ends})
        for key in ended.keys() & self._records.keys():
            record = self._records[key]
            record.rows_left -= ended[key]
            if record.rows_left == 0:
                self._end(key, self._answer(runner, record))

    def _answer(self, runner: Runner, record: ActiveJob) -> Timing | Problem:
        """The answer of a job whose rows are all done."""
        assert record.started is not None  # its rows were in batches
        queue, compute = record.started - record.accepted, time.monotonic() - record.started
        try:
            answer = runner.result(record.key, queue, compute)
        except Exception as error:
            if fatal(error):
                raise
            _log.exception("an answer could not be put together")
            return problem_of(error)
        self._metrics.compute_seconds.observe(compute)
        return answer

    def _fail(self, batch: Batch, error: Exception) -> None:
        """The results of a batch could not be read: its jobs end by that."""
        if fatal(error):
            raise error
        _log.error("the results of a batch could not be read", exc_info=error)
        for key in batch.shares:
            if key in self._records:
                self._end(key, problem_of(error))
