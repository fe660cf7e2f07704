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
                _log.warning("model %s: out of memory; trying fewer rows per batch", name)

    def _attempts(self) -> Iterator[int]:
        """Rows per batch to try, 0 for the best that is found; then half as many, and so on."""
        rows = self._settings.batch_size
        if rows == 0:
            yield 0
            rows = FIXED
        while rows:
            yield rows
            rows //= 2

    def _serve(self, name: str, model: DiffusionModel, rows: int) -> None:
        """Find a model's capacity, warm it up, and open its lanes."""
        settings = self._settings
        capacity = survey(model, rows, settings)
        batch_size, slots = capacity.batch_size, capacity.slots
        runner = ChainRunner(model, slots, settings.precision, compiled=settings.compile)
        runner.batch_size = batch_size
        runner.calls.pad_to = batch_size if settings.deterministic else 0
        runner.batch_invariant = make_batch_invariant(runner)
        warm_up(runner, batch_size)  # allocators and kernels settle
        if settings.graphs and model.device.type == "cuda":
            runner.record(graph_recorder(model.device))
        warm_up(runner, batch_size)
        chain_times, term_times = time_steps(runner)
        smc_runner = self._smc_runner(runner.calls.model, batch_size)
        smc_times = time_systems(smc_runner)
        row_lane, smc_lane = Lane(name), Lane(name, systems=True)
        for rows, seconds in term_times.items():
            self._throughput[row_lane].seed(rows, seconds, terms=True)
        self._open(row_lane, runner, slots, chain_times)
        self._open(smc_lane, smc_runner, slots, smc_times)
        _log.info("model %s: %d rows per batch, %d held", name, batch_size, slots)

    def _smc_runner(self, model: DiffusionModel, rows: int) -> SMCRunner:
        """A warm runner of systems, for as many rows as memory holds in a backward pass."""
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

    def _open(
        self, lane: Lane, runner: Runner[Any], slots: int, times: Mapping[int, float]
    ) -> None:
        """Take jobs of a lane from now on; its steps take `times` seconds, by rows."""
        self.runners[lane] = runner
        throughput = self._throughput[lane]
        throughput.allow(runner.batch_size)
        for rows, seconds in times.items():
            throughput.seed(rows, seconds)
        self._scheduler.serve(lane, throughput, slots)
