"""How many rows memory allows at once: found by running out of it, and by trying again later.

The models on the device: each one's runners, their room, and what memory allows of that.

A model is tried before it is served: one that fails is refused, with the reason, and the others are
served without it.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Final, final

from diffusion.model import DiffusionModel
from service.engine.device.graphs import graph_recorder
from service.engine.device.runner import Runner
from service.engine.device.smc import SystemRunner
from service.engine.device.warmup import (
    FIXED,
    make_exact,
    rehearse,
    rehearse_systems,
    survey,
    time_steps,
    time_systems,
)
from service.engine.faults import describe, fatal, out_of_memory
from service.engine.scheduling.batch import Queue
from service.engine.scheduling.latency import Throughput
from service.engine.scheduling.scheduler import Scheduler
from service.settings import Settings

_PATIENCE: Final = 100  # full network calls that go well before more rows are tried


@final
class Allowance:
    """Most rows of a tick now: fewer once memory ran out, by and by as many as before.

    Args:
        most: rows while memory lasts.

    Attributes:
        rows: of a tick now.
    """

    def __init__(self, most: int) -> None:
        self.rows = self._most = most
        self._good = 0

    def shrink(self, rows: int) -> None:
        """Memory held so many and no more."""
        self.rows, self._good = rows, 0

    def grow(self, rows: int, calls: int) -> bool:
        """So many network calls of so many rows went well; whether more rows may be tried."""
        if self.rows == self._most or rows < self.rows:
            return False
        self._good += calls
        if self._good < _PATIENCE:
            return False
        self.rows, self._good = min(2 * self.rows, self._most), 0
        return True


_log = logging.getLogger(__name__)


@final
class Fleet:
    """Runners by queue; the engine's thread owns it, others may read what is refused.

    Args:
        models: by name, each in eval mode on its device.
        settings: batch size, slots, precision.
        scheduler: told of each model's room.
        throughput: of each queue; gets its batch size, and how long a batch takes.

    Attributes:
        models: as given.
        refused: those that failed their first network call, and why.
    """

    def __init__(
        self,
        models: Mapping[str, DiffusionModel],
        settings: Settings,
        scheduler: Scheduler,
        throughput: Mapping[Queue, Throughput],
    ) -> None:
        self.models = dict(models)
        self.refused: dict[str, str] = {}
        self._settings, self._scheduler = settings, scheduler
        self._throughput = throughput
        self._runners: dict[Queue, Runner | SystemRunner] = {}
        self._allowances: dict[Queue, Allowance] = {}

    def __getitem__(self, queue: Queue) -> Runner | SystemRunner:
        """The runner of a queue whose model is served."""
        return self._runners[queue]

    @property
    def served(self) -> list[str]:
        """Names of the models that are not refused."""
        return sorted(self.models.keys() - self.refused)

    def prepare(self) -> None:
        """Try every model in turn."""
        for name, model in self.models.items():
            for rows in self._attempts():
                try:
                    self._serve(name, model, rows)
                    break
                except Exception as error:
                    if fatal(error):
                        raise
                    if not out_of_memory(error) or rows == 1:
                        _log.exception("model %s failed its first network call", name)
                        self.refused[name] = f"failed its first network call ({describe(error)})"
                        break
                _log.warning("model %s: out of memory; trying fewer rows a tick", name)

    def shrink(self, queue: Queue, rows: int) -> None:
        """Memory ran out: a tick has at most so many rows until it may grow again."""
        self._allowances[queue].shrink(rows)
        self._allow(queue)

    def grow(self, queue: Queue, rows: int, calls: int) -> None:
        """So many network calls of so many rows went well: in time more rows are tried."""
        if self._allowances[queue].grow(rows, calls):
            self._allow(queue)

    def _attempts(self) -> Iterator[int]:
        """Rows a tick to be tried, 0 being what is found best; half as many, and half of that."""
        rows = self._settings.batch_size
        if rows == 0:
            yield 0
            rows = FIXED
        while rows:
            yield rows
            rows //= 2

    def _serve(self, name: str, model: DiffusionModel, rows: int) -> None:
        """Find a model's room and run it there."""
        room = survey(model, rows, self._settings)
        settings = self._settings
        runner = Runner(model, room.slots, settings.precision, compiled=settings.compile)
        runner.batch = room.batch
        runner.calls.fill = room.batch if settings.deterministic else 0
        runner.exact = make_exact(runner)
        rehearse(runner, room.batch)  # allocators and kernels settle
        if settings.graphs and model.device.type == "cuda":
            runner.record(graph_recorder(model.device))
        rehearse(runner, room.batch)
        chains, systems = Queue(name), Queue(name, systems=True)
        alone, beside = time_steps(runner)
        others = self._try_systems(runner.calls.model, room.batch)
        of_systems = time_systems(others)
        for rows, seconds in beside.items():
            self._throughput[chains].seed(rows, seconds, terms=True)
        self._enter(chains, runner, room.slots, alone)
        self._enter(systems, others, room.slots, of_systems)
        _log.info("model %s: %d rows a tick, %d held", name, room.batch, room.slots)

    def _try_systems(self, model: DiffusionModel, rows: int) -> SystemRunner:
        """A runner of as many rows as memory holds in a backward pass."""
        settings = self._settings
        # A CPU sums in the same order every time; an accelerator's backward passes need not.
        exact = settings.deterministic and model.device.type == "cpu"
        while True:
            runner = SystemRunner(model, rows, exact=exact, compiled=settings.compile)
            try:
                rehearse_systems(runner, rows)
                return runner
            except Exception as error:
                if rows == 1 or not out_of_memory(error):
                    raise
            rows //= 2

    def _enter(
        self,
        queue: Queue,
        runner: Runner | SystemRunner,
        slots: int,
        times: Mapping[int, float],
    ) -> None:
        """Its rehearsal went well, steps of so many rows in so many seconds: jobs may come."""
        self._runners[queue], self._allowances[queue] = runner, Allowance(runner.batch)
        throughput = self._throughput[queue]
        throughput.batch_size = runner.batch
        for rows, seconds in times.items():
            throughput.seed(rows, seconds)
        self._scheduler.serve(queue, throughput, slots)

    def _allow(self, queue: Queue) -> None:
        """Tell whom it concerns how many rows a tick may have now."""
        rows = self._allowances[queue].rows
        self._throughput[queue].batch_size = rows
        self._runners[queue].allow(rows)
