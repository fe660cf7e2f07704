"""Models that come and go while the engine runs, in turns with the batches of the others.

A model is warmed up step by step, each of about a batch's time. While jobs are there, a step is
done once batches have had as many seconds as the steps before it: the others keep half of the
device. A version that is retired takes no new jobs, and is closed when those it has have ended.
"""

import time
from collections import deque
from concurrent.futures import Future
from typing import NamedTuple, final

from diffusion.model import DiffusionModel
from service.engine.device.models import LoadedModels
from service.engine.device.warmup import Steps
from service.engine.faults import fatal
from service.engine.scheduling.batch import Lane, ModelVersion
from service.engine.scheduling.scheduler import Scheduler
from service.errors import InternalError, Problem


class LoadRequest(NamedTuple):
    """A model to warm up and serve; the future is resolved once it is served, or has failed."""

    key: ModelVersion
    model: DiffusionModel
    future: "Future[None]"


class RetireRequest(NamedTuple):
    """A version to close; the future is resolved when its jobs have ended."""

    key: ModelVersion
    future: "Future[None]"


@final
class Loader:
    """Warms up one model at a time, and closes retired ones. The engine's thread owns it.

    Args:
        models: that are served.
        scheduler: knows which have jobs.
    """

    def __init__(self, models: LoadedModels, scheduler: Scheduler) -> None:
        self._models, self._scheduler = models, scheduler
        self._waiting: deque[LoadRequest] = deque()
        self._current: tuple[LoadRequest, Steps[None]] | None = None
        self._retired: list[RetireRequest] = []
        self._ahead = 0.0  # seconds of steps for which batches have not had as many

    @property
    def busy(self) -> bool:
        """Whether a model is to be warmed up."""
        return self._current is not None or len(self._waiting) > 0

    def take(self, loads: list[LoadRequest], retired: list[RetireRequest]) -> None:
        """Take in new requests."""
        self._waiting += loads
        self._retired += retired

    def charge(self, seconds: float) -> None:
        """Count a batch's seconds."""
        self._ahead = max(0.0, self._ahead - seconds)

    def step(self) -> None:
        """Do the next step of a warm-up, if it is its turn; raises only what ends the engine."""
        if not self.busy or (self._ahead > 0 and len(self._scheduler)):
            return
        if self._current is None:
            request = self._waiting.popleft()
            self._current = request, self._models.load(request.key, request.model)
        request, steps = self._current
        begun = time.monotonic()
        try:
            next(steps)
        except StopIteration:
            self._current = None
            request.future.set_result(None)
        except Exception as error:
            if fatal(error):
                raise
            self._current = None
            self._models.close(request.key)
            problem = error if isinstance(error, Problem) else InternalError(f"{error}")
            request.future.set_exception(problem)
        self._ahead += time.monotonic() - begun

    def close_retired(self, travelling: Lane | None) -> None:
        """Close the retired versions whose jobs have ended.

        Args:
            travelling: whose results are on their way to the host.
        """
        for request in list(self._retired):
            key = request.key
            lanes = [Lane(key.model, systems, key.version) for systems in (False, True)]
            if travelling not in lanes and all(map(self._scheduler.idle, lanes)):
                self._retired.remove(request)
                self._models.close(key)
                request.future.set_result(None)

    def end(self, problem: Problem) -> None:
        """Tell those who wait that the engine has ended."""
        loads = [*self._waiting, *([] if self._current is None else [self._current[0]])]
        for future in [load.future for load in loads] + [each.future for each in self._retired]:
            future.set_exception(problem)
