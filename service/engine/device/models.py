"""The models on the device, and the runners of each.

A model is tried before it is served: one that fails is refused, with the reason, and the others are
served without it.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, final

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
        served: the models that are not refused, by name.
        refused: why the others are, by name.
        runners: of each lane whose model is served.
    """

    def __init__(
        self,
        models: Mapping[str, DiffusionModel],
        settings: Settings,
        scheduler: Scheduler,
        throughput: Mapping[Lane, Throughput],
    ) -> None:
        self.served = dict(models)
        self.refused: dict[str, str] = {}
        self.runners: dict[Lane, Runner[Any]] = {}
        self._settings, self._scheduler = settings, scheduler
        self._throughput = throughput

    def prepare(self) -> None:
        """Try every model in turn."""
        for name, model in list(self.served.items()):
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
                        del self.served[name]
                        break
                _log.warning("model %s: out of memory; trying fewer rows a batch", name)

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
        runner: Runner[Any],
        slots: int,
        times: Mapping[int, float],
    ) -> None:
        """Its warm-up went well, steps of so many rows in so many seconds: jobs may come."""
        self.runners[lane] = runner
        throughput = self._throughput[lane]
        throughput.allow(runner.batch_size)
        for rows, seconds in times.items():
            throughput.seed(rows, seconds)
        self._scheduler.serve(lane, throughput, slots)
