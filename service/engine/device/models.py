"""The models on the device, and the runners of each.

A model is tried before it is served: one that fails is refused, with the reason, and the others are
served without it. While the engine runs, models come (`load`) and go (`close`). Of one that is
loaded anew the old version stays until its jobs have ended.
"""

import logging
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, final

from diffusion.model import DiffusionModel
from service.engine.device.graphs import graph_recorder
from service.engine.device.runner import ChainRunner, Runner
from service.engine.device.smc import SMCRunner
from service.engine.device.warmup import (
    FIXED,
    Steps,
    finish,
    make_batch_invariant,
    survey,
    time_steps,
    time_systems,
    warm_up,
    warm_up_systems,
)
from service.engine.faults import describe, fatal, out_of_memory
from service.engine.scheduling.batch import Lane, ModelVersion
from service.engine.scheduling.latency import Throughput
from service.engine.scheduling.scheduler import Scheduler
from service.errors import ModelFailed
from service.settings import Settings

_log = logging.getLogger(__name__)


@final
class LoadedModels:
    """Runners by lane; the engine's thread owns it, others may read what is served and refused.

    Args:
        models: those of the start, by name, each in eval mode on its device.
        settings: batch size, slots, precision.
        scheduler: gets the lanes of each model.
        throughput: of each lane; gets its batch size, and how long a batch takes.

    Attributes:
        served: the models that are not refused.
        refused: why others of the start are, by name.
        runners: of each lane whose model is served.
    """

    def __init__(
        self,
        models: Mapping[str, DiffusionModel],
        settings: Settings,
        scheduler: Scheduler,
        throughput: MutableMapping[Lane, Throughput],
    ) -> None:
        self.served = {ModelVersion(name): model for name, model in models.items()}
        self.refused: dict[str, str] = {}
        self.runners: dict[Lane, Runner[Any]] = {}
        self._settings, self._scheduler = settings, scheduler
        self._throughput = throughput

    @property
    def names(self) -> list[str]:
        """The names of the served models, sorted."""
        return sorted({name for name, _ in list(self.served)})

    def prepare(self) -> None:
        """Try every model of the start in turn."""
        for key, model in list(self.served.items()):
            try:
                finish(self.load(key, model))
            except ModelFailed as failure:
                self.refused[key.model] = failure.detail
                del self.served[key]

    def load(self, key: ModelVersion, model: DiffusionModel) -> Steps[None]:
        """Try a model, and serve it from the last step on.

        Raises:
            ModelFailed: not even one row of it can be computed.
        """
        for rows in self._attempts():
            try:
                yield from self._serve(key, model, rows)
                self.served[key] = model
                return
            except Exception as error:
                if fatal(error):
                    raise
                if not out_of_memory(error) or rows == 1:
                    _log.exception("model %s failed its first network call", key.model)
                    raise ModelFailed(
                        f"failed its first network call ({describe(error)})"
                    ) from error
            _log.warning("model %s: out of memory; trying fewer rows per batch", key.model)

    def close(self, key: ModelVersion) -> None:
        """Forget a model, none of whose jobs is left."""
        for systems in (False, True):
            lane = Lane(key.model, systems, key.version)
            self.runners.pop(lane, None)
            self._throughput.pop(lane, None)
            self._scheduler.close(lane)
        self.served.pop(key, None)

    def _attempts(self) -> Iterator[int]:
        """Rows per batch to try, 0 for the best that is found; then half as many, and so on."""
        rows = self._settings.batch_size
        if rows == 0:
            yield 0
            rows = FIXED
        while rows:
            yield rows
            rows //= 2

    def _serve(self, key: ModelVersion, model: DiffusionModel, rows: int) -> Steps[None]:
        """Find a model's capacity, warm it up, and open its lanes."""
        settings = self._settings
        capacity = yield from survey(model, rows, settings)
        batch_size, slots = capacity.batch_size, capacity.slots
        runner = ChainRunner(model, slots, settings.precision, compiled=settings.compile)
        runner.batch_size = batch_size
        runner.calls.pad_to = batch_size if settings.deterministic else 0
        runner.batch_invariant = yield from make_batch_invariant(runner)
        warm_up(runner, batch_size)  # allocators and kernels settle
        yield
        if settings.graphs and model.device.type == "cuda":
            runner.record(graph_recorder(model.device))
            yield
        warm_up(runner, batch_size)
        yield
        chain_times, term_times = yield from time_steps(runner)
        smc_runner = yield from self._smc_runner(runner.calls.model, batch_size)
        smc_times = yield from time_systems(smc_runner)
        row_lane, smc_lane = (Lane(key.model, systems, key.version) for systems in (False, True))
        self._open(row_lane, runner, slots, chain_times)
        self._open(smc_lane, smc_runner, slots, smc_times)
        for rows, seconds in term_times.items():
            self._throughput[row_lane].seed(rows, seconds, terms=True)
        _log.info("model %s: %d rows per batch, %d held", key.model, batch_size, slots)

    def _smc_runner(self, model: DiffusionModel, rows: int) -> Steps[SMCRunner]:
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
                yield
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
        throughput = self._throughput.setdefault(lane, Throughput())
        throughput.allow(runner.batch_size)
        for rows, seconds in times.items():
            throughput.seed(rows, seconds)
        self._scheduler.serve(lane, throughput, slots)
