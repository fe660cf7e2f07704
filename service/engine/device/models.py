"""The models on the device: each one's runners, its slots, and how many rows memory allows.

A model is tried before it is served: one that fails is refused, with the reason, and the others are
served without it. `BatchLimit` is what memory allows: fewer rows after it ran out, and in time as
many as before.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Final, final

from diffusion.model import DiffusionModel
from service.engine.device.graphs import graph_recorder
from service.engine.device.runner import ChainRunner, Runner
from service.engine.device.smc import SMCRunner
from service.engine.device.warmup import (
    FIXED,
    make_batch_invariant,
    survey,
    time_steps,
    time_systems,
    warm_up,
    warm_up_systems,
)
from service.engine.faults import describe, fatal, out_of_memory
from service.engine.scheduling.batch import Lane
from service.engine.scheduling.latency import Throughput
from service.engine.scheduling.scheduler import Scheduler
from service.settings import Settings

_PATIENCE: Final = 100  # full network calls that go well before more rows are tried


@final
class BatchLimit:
    """Most rows of a batch now: fewer once memory ran out, by and by as many as before.

    Args:
        most: rows while memory lasts.

    Attributes:
        rows: of a batch now.
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
class LoadedModels:
    """Runners by lane; the engine's thread owns it, others may read what is refused.

    Args:
        models: by name, each in eval mode on its device.
        settings: batch size, slots, precision.
        scheduler: gets the lanes of each model.
        throughput: of each lane; gets its batch size, and how long a batch takes.

    Attributes:
        models: as given.
        refused: those that failed their first network call, and why.
    """

    def __init__(
        self,
        models: Mapping[str, DiffusionModel],
        settings: Settings,
        scheduler: Scheduler,
        throughput: Mapping[Lane, Throughput],
    ) -> None:
        self.models = dict(models)
        self.refused: dict[str, str] = {}
        self._settings, self._scheduler = settings, scheduler
        self._throughput = throughput
        self._runners: dict[Lane, Runner] = {}
        self._limits: dict[Lane, BatchLimit] = {}

    def __getitem__(self, lane: Lane) -> Runner:
        """The runner of a lane whose model is served."""
        return self._runners[lane]

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
                _log.warning("model %s: out of memory; trying fewer rows a batch", name)

    def shrink(self, lane: Lane, rows: int) -> None:
        """Memory ran out: a batch has at most so many rows until it may grow again."""
        self._limits[lane].shrink(rows)
        self._allow(lane)

    def grow(self, lane: Lane, rows: int, calls: int) -> None:
        """So many network calls of so many rows went well: in time more rows are tried."""
        if self._limits[lane].grow(rows, calls):
            self._allow(lane)

    def _attempts(self) -> Iterator[int]:
        """Rows a batch to be tried, 0 being what is found best; half as many, and half of that."""
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
        runner = ChainRunner(model, room.slots, settings.precision, compiled=settings.compile)
        runner.batch_size = room.batch_size
        runner.calls.pad_to = room.batch_size if settings.deterministic else 0
        runner.batch_invariant = make_batch_invariant(runner)
        warm_up(runner, room.batch_size)  # allocators and kernels settle
        if settings.graphs and model.device.type == "cuda":
            runner.record(graph_recorder(model.device))
        warm_up(runner, room.batch_size)
        chains, systems = Lane(name), Lane(name, systems=True)
        alone, beside = time_steps(runner)
        others = self._try_systems(runner.calls.model, room.batch_size)
        of_systems = time_systems(others)
        for rows, seconds in beside.items():
            self._throughput[chains].seed(rows, seconds, terms=True)
        self._enter(chains, runner, room.slots, alone)
        self._enter(systems, others, room.slots, of_systems)
        _log.info("model %s: %d rows a batch, %d held", name, room.batch_size, room.slots)

    def _try_systems(self, model: DiffusionModel, rows: int) -> SMCRunner:
        """A runner of as many rows as memory holds in a backward pass."""
        settings = self._settings
        # A CPU sums in the same order every time; an accelerator's backward passes need not.
        batch_invariant = settings.deterministic and model.device.type == "cpu"
        while True:
            runner = SMCRunner(
                model, rows, batch_invariant=batch_invariant, compiled=settings.compile
            )
            try:
                warm_up_systems(runner, rows)
                return runner
            except Exception as error:
                if rows == 1 or not out_of_memory(error):
                    raise
            rows //= 2

    def _enter(
        self,
        lane: Lane,
        runner: Runner,
        slots: int,
        times: Mapping[int, float],
    ) -> None:
        """Its rehearsal went well, steps of so many rows in so many seconds: jobs may come."""
        self._runners[lane], self._limits[lane] = runner, BatchLimit(runner.batch_size)
        throughput = self._throughput[lane]
        throughput.batch_size = runner.batch_size
        for rows, seconds in times.items():
            throughput.seed(rows, seconds)
        self._scheduler.serve(lane, throughput, slots)

    def _allow(self, lane: Lane) -> None:
        """Apply how many rows a batch may have now."""
        rows = self._limits[lane].rows
        self._throughput[lane].batch_size = rows
        self._runners[lane].limit(rows)
