"""The backend of the routes: the served models, the engine, and their state.

opening -> ready -> draining;    opening -> failed, if nothing can be served
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import final

from starlette.requests import Request

from service.catalogue import Catalogue, Served
from service.engine.engine import Engine, RunLoop
from service.engine.jobs import Job
from service.engine.results import Result_co, Ticket
from service.engine.router import Remote, Router
from service.errors import Draining, EngineDead, InvalidRequest, NotReady, Problem, UnknownModel
from service.keys import Holder
from service.memory import fit, give_back_when_idle
from service.metrics import Metrics
from service.repository import Repository
from service.settings import Settings
from service.watch import Watcher

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
        changing: held while a model is loaded or unloaded.
        repository: loads and unloads models.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        run_loop: RunLoop | None = None,
        remote: Remote | None = None,
    ) -> None:
        self.settings, self.metrics = fit(settings), metrics
        self.repository = Repository(self.settings, metrics, run_loop, remote)
        self._opened = threading.Event()
        self._failure: str | None = None
        self._closing = False
        self._ended = threading.Event()
        self.decoding = asyncio.Semaphore(_DECODERS)
        self.changing = asyncio.Lock()

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
            watcher = Watcher(self.repository) if self.settings.watch else None
            self.repository.open()
            if self.repository.engine is not None:
                keeper = partial(give_back_when_idle, self._work_done, self._ended)
                threading.Thread(target=keeper, name="noneq-memory", daemon=True).start()
            if watcher is not None:
                looks = partial(watcher.watch, self.settings.watch, self._ended)
                threading.Thread(target=looks, name="noneq-watch", daemon=True).start()
        except Exception as error:
            _log.exception("the service cannot start")
            self._failure = f"{type(error).__name__}: {error}"
        self._opened.set()
        problem = self.state()
        if problem is not None and self.settings.watch and self._failure is None:
            problem = None  # models may come yet
        if problem is None and announce is not None:
            announce(list(self.catalogue.served))
        if problem is not None and fail is not None and not self._closing:
            fail(problem)

    def close(self) -> None:
        """Refuse new requests, finish accepted ones, and stop; blocks.

        Jobs that are not finished within `drain_seconds` end with a problem. A second call does
        nothing.
        """
        self._closing = True
        self._ended.set()
        engine = self.repository.engine
        if engine is not None and not engine.drain():
            _log.warning("stopped with work unfinished")

    def _work_done(self) -> int | None:
        """Return how many requests have been made; None while one is in progress."""
        engine = self.engine
        return engine.accepted if engine.held == 0 else None

    @property
    def catalogue(self) -> Catalogue:
        """What is served now; a later call may return another."""
        return self.repository.catalogue

    @property
    def engine(self) -> Engine | Router:
        """The engine, once `check` has passed."""
        engine = self.repository.engine
        if engine is None:
            raise NotReady("There is no engine: no model is served.")
        return engine

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
            aside = any(chosen == found.name for found in catalogue.refused)
            raise UnknownModel(
                f"No model of that name is served{'; its file was refused' if aside else ''}.",
                received=chosen[:200],
                expected=names,
                fix="GET /models lists the models, and the files that were refused with reasons.",
            )
        return catalogue.served[chosen]

    def submit(
        self,
        job: Job[Result_co],
        deadline: float | None = None,
        holder: Holder | None = None,
        *,
        background: bool = False,
    ) -> Ticket[Result_co]:
        """Submit a job to the engine, at the expense of a key's holder.

        Raises:
            BudgetExceeded: the holder has not enough evaluations left.
            Problem: see `Engine.submit`; the budget is then as before.
        """
        budget = None if holder is None else holder.budget
        if budget is not None:
            budget.take(job.cost)
        try:
            ticket = self.engine.submit(job, deadline, background=background)
        except BaseException:
            if budget is not None:
                budget.give_back(job.cost)
            raise

        def account(_: object) -> None:
            if budget is not None:
                budget.give_back(ticket.cost - ticket.done)
            if holder is not None:
                self.metrics.key_evaluations.labels(holder.name).inc(ticket.done)

        if holder is not None:
            ticket.future.add_done_callback(account)
        return ticket

    def dead(self) -> EngineDead | None:
        """The problem that only a restart fixes."""
        engine = self.repository.engine
        if self._opened.is_set() and not self._closing and engine is not None and not engine.alive:
            return EngineDead("The engine's thread has ended.", fix="Restart the service.")
        return None

    def ended(self) -> Problem | None:
        """Why nothing can be asked of the service, whatever models there are; None if it can."""
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
        return self.dead()

    def state(self) -> Problem | None:
        """Why requests are not accepted now; None if they are."""
        problem = self.ended()
        if problem is not None:
            return problem
        if not self.catalogue.served:
            return NotReady(
                "No model is served.",
                retry_after=60,
                expected="NAME/model.safetensors in the folder named by NONEQ_MODELS",
                received=[f"{refused.file}: {refused.reason}" for refused in self.catalogue.refused]
                or "no such file",
                fix="Put an artefact there (`python -m training export` makes one) and load it: "
                "POST /models/NAME/load, NONEQ_WATCH, or a restart.",
            )
        return None

    def check(self) -> None:
        """Raise the problem of `state`, if there is one."""
        problem = self.state()
        if problem is not None:
            raise problem


def backend_of(request: Request) -> Backend:
    """Return the backend of the request's app."""
    found: Backend = request.app.state.backend
    return found
