"""The backend of the routes: the served models, the engine, and their state.

opening -> ready -> draining;    opening -> failed, if nothing can be served
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import final

import torch
from starlette.requests import Request

from diffusion.model import DiffusionModel
from service.catalogue import Catalogue, Refused, Served, load_folder
from service.engine.engine import Engine, RunLoop
from service.engine.router import Remote, Router
from service.errors import Draining, EngineDead, InvalidRequest, NotReady, Problem, UnknownModel
from service.memory import fit, give_back, give_back_when_idle, memory_used
from service.metrics import Metrics
from service.settings import Settings

_log = logging.getLogger(__name__)

_DECODERS = 4  # bodies decoded at once: more are not faster and hold more memory


@final
class Backend:
    """The served models and the engine that runs them.

    Args:
        settings: the folder, the device, the limits.
        metrics: the metrics that the engine updates.
        run_loop: runs the engine's loop; see `Engine`.
        remote: engines of other processes, which take parts of large requests.

    Attributes:
        decoding: held while a body is decoded.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        run_loop: RunLoop | None = None,
        remote: Remote | None = None,
    ) -> None:
        self.settings, self.metrics = fit(settings), metrics
        self._run_loop, self._remote = run_loop, remote
        self._catalogue = Catalogue()
        self._engine: Engine | Router | None = None
        self._opened = threading.Event()
        self._failure: str | None = None
        self._closing = False
        self._ended = threading.Event()
        self.decoding = asyncio.Semaphore(_DECODERS)

    def open(
        self,
        announce: Callable[[Sequence[str]], None] | None = None,
        fail: Callable[[Problem], None] | None = None,
    ) -> None:
        """Load the folder, start the engine and warm it up; blocks. `state` reports any failure.

        Args:
            announce: called with the models' names when the service is ready.
            fail: called with the problem if the service cannot start.
        """
        try:
            settings = self.settings
            devices = settings.resolve_devices()
            catalogue = load_folder(settings.models, devices[0], settings.default_model)
            self._catalogue = catalogue
            for device in dict.fromkeys(devices):
                self.metrics.watch_memory(device, partial(memory_used, device))
            if catalogue.served:
                models = {name: served.model for name, served in catalogue.served.items()}
                self._engine = self._engines(models, devices)
                self._engine.warm()
                give_back()  # trials at start need more memory than serving
                keeper = partial(give_back_when_idle, self._work_done, self._ended)
                threading.Thread(target=keeper, name="noneq-memory", daemon=True).start()
        except Exception as error:
            _log.exception("the service cannot start")
            self._failure = f"{type(error).__name__}: {error}"
        self._opened.set()
        problem = self.state()
        if problem is None and announce is not None:
            announce(list(self.catalogue.served))
        if problem is not None and fail is not None and not self._closing:
            fail(problem)

    def _engines(
        self, models: Mapping[str, DiffusionModel], devices: Sequence[str]
    ) -> Engine | Router:
        """The engine, or one for each device, which share the limits of memory and threads."""
        count, settings = len(devices), self.settings
        if count == 1 and self._remote is None:
            return Engine(models, settings, self.metrics, self._run_loop)
        threads = settings.threads or torch.get_num_threads()
        shares = {"max_queue_bytes": settings.max_queue_bytes // count}
        if devices[0] == "cpu":
            shares["threads"] = max(1, threads // count)
        share = settings.model_copy(update=shares)
        engines = [Engine(models, share, self.metrics, self._run_loop)]
        for device in devices[1:]:
            copies = {name: deepcopy(model).to(device) for name, model in models.items()}
            engines.append(Engine(copies, share, self.metrics))
        router = Router(engines, devices, self._remote)
        self.metrics.watch_queue(lambda: router.pending, count * settings.max_queue_cost)
        self.metrics.watch_room(lambda: router.held, count * share.max_queue_bytes)
        self.metrics.watch_owed(lambda: router.owed)
        return router

    def close(self) -> None:
        """Refuse new requests, finish accepted ones, and stop; blocks.

        Jobs that are not finished within `drain_seconds` end with a problem. A second call does
        nothing.
        """
        self._closing = True
        self._ended.set()
        if self._engine is not None and not self._engine.drain():
            _log.warning("stopped with work unfinished")

    def _work_done(self) -> int | None:
        """Return how many requests have been made; None while one is in progress."""
        engine = self.engine
        return engine.accepted if engine.held == 0 else None

    @property
    def catalogue(self) -> Catalogue:
        """The served models, except those whose first network call failed."""
        found = self._catalogue
        failed = {} if self._engine is None else self._engine.refused
        if not failed:
            return found
        served = {name: model for name, model in found.served.items() if name not in failed}
        fix = "See the log; export the artefact again, or choose another device (NONEQ_DEVICE)."
        refused = [Refused(name, reason, fix) for name, reason in failed.items()]
        default = found.default if found.default in served else None
        if default is None and len(served) == 1:
            default = next(iter(served))
        return Catalogue(served, (*found.refused, *refused), default, found.classifiers)

    @property
    def engine(self) -> Engine | Router:
        """The engine, once `check` has passed."""
        if self._engine is None:
            raise NotReady("There is no engine: no model is served.")
        return self._engine

    def find(self, name: str | None) -> Served:
        """Find the model of that name, or the default.

        Raises:
            UnknownModel: no model has that name.
            InvalidRequest: no name was given, and several models are served without a default.
        """
        catalogue = self.catalogue
        names = list(catalogue.served)
        chosen = catalogue.default if name is None else name
        if chosen is None:
            raise InvalidRequest(
                f"The request names no model, and {len(names)} are served without a default.",
                location="model",
                expected=names,
                fix="Name one in `model`; the operator may set NONEQ_DEFAULT_MODEL.",
            )
        if chosen not in catalogue.served:
            aside = any(chosen == found.file.partition("/")[0] for found in catalogue.refused)
            raise UnknownModel(
                f"No model of that name is served{'; its file was refused' if aside else ''}.",
                received=chosen[:200],
                expected=names,
                fix="GET /models lists the models, and the files that were refused with reasons.",
            )
        return catalogue.served[chosen]

    def dead(self) -> EngineDead | None:
        """The problem that only a restart fixes."""
        engine = self._engine
        if self._opened.is_set() and not self._closing and engine is not None and not engine.alive:
            return EngineDead("The engine's thread has ended.", fix="Restart the service.")
        return None

    def state(self) -> Problem | None:
        """Why requests are not accepted now; None if they are."""
        if self._closing:
            return Draining(
                "The service is stopping.", fix="Use another replica, or try again later."
            )
        if not self._opened.is_set():
            return NotReady("The models are being loaded and warmed up.", retry_after=2)
        if self._failure is not None:
            return NotReady(
                f"The service could not start: {self._failure}.",
                retry_after=60,
                fix="Fix the cause and restart the service.",
            )
        if not self.catalogue.served:
            return NotReady(
                "No model is served.",
                retry_after=60,
                expected="NAME/model.safetensors in the folder named by NONEQ_MODELS",
                received=[f"{refused.file}: {refused.reason}" for refused in self.catalogue.refused]
                or "no such file",
                fix="Put an artefact there (`python -m training export` makes one) and restart.",
            )
        return self.dead()

    def check(self) -> None:
        """Raise the problem of `state`, if there is one."""
        problem = self.state()
        if problem is not None:
            raise problem


def backend_of(request: Request) -> Backend:
    """Return the backend of the request's app."""
    found: Backend = request.app.state.backend
    return found
