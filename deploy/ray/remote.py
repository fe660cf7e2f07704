"""Parts of a large request, done by other replicas of the deployment.

A part is a job (`Job.part`), sent by Ray as an argument; its result, or its problem, comes back. A
part whose replica has died is sent to another one: its noise depends on its seed and rows only, so
the answer stays the same.

There are no reports on the way: Ray 2.60 can lose its place in a stream of them on a busy machine.
So progress goes by the part that this replica does itself.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, final

from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import ReplicaID
from typing_extensions import override

from service.engine.faults import describe
from service.engine.jobs import Job
from service.engine.queue import resolve
from service.engine.results import Hold, JobPreview, JobResult, Result_co, Ticket
from service.engine.router import Remote, Router
from service.errors import InternalError, NotReady, Problem

_log = logging.getLogger(__name__)

_ATTEMPTS = 3


async def answer(router: Router, job: Job[Any], seconds: float | None) -> JobResult | Problem:
    """Do a job for another replica within `seconds`; cancelling this cancels the job."""
    deadline = None if seconds is None else time.monotonic() + seconds
    try:
        ticket = router.accept(job, deadline)
        return await asyncio.wrap_future(ticket.future)
    except Problem as problem:
        return problem


@final
class RemoteTicket(Ticket[Result_co]):
    """The ticket of a job that another replica does, which does not say how far it is."""

    tells = False

    @property
    @override
    def done(self) -> int:
        return self.cost if self.future.done() else 0

    @property
    @override
    def queue_seconds(self) -> float | None:
        return None

    @override
    def preview(self, rows: int) -> "Future[JobPreview | None]":
        nothing: Future[JobPreview | None] = Future()
        nothing.set_result(None)
        return nothing

    @override
    def hold_bytes(self) -> Hold:
        # Its result's bytes count once they are joined, with those of this replica's own part.
        return Hold(0, lambda _: None)


@final
class Replicas(Remote):
    """The other replicas of a deployment.

    Args:
        own: this replica.
        handle: makes the deployment's handle, at the first use.

    Attributes:
        owed: seconds of work that a job is, for the router.
    """

    def __init__(self, own: ReplicaID, handle: Callable[[], DeploymentHandle]) -> None:
        self._own, self._make = own, handle
        self._handle: DeploymentHandle | None = None
        self.owed: Callable[[Job[Any]], float] = lambda _: 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    def connect(self) -> None:
        """Make the handle, unless it is made; it learns which replicas there are."""
        if self._handle is None:
            self._handle = self._make().options(method_name="part")

    @property
    @override
    def count(self) -> int:
        if self._handle is None:
            return 0
        # Ray has no public way to count a handle's replicas without asking its controller.
        router = self._handle._router._asyncio_router.request_router
        return 0 if router is None else max(0, len(router.curr_replicas) - 1)

    @override
    def submit(self, job: Job[Result_co], deadline: float | None) -> Ticket[Result_co]:
        ticket: RemoteTicket[Result_co] = RemoteTicket(job.cost, Future())
        task = asyncio.get_running_loop().create_task(self._follow(ticket, job, deadline))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        loop = asyncio.get_running_loop()
        ticket.on_cancel(lambda: _cancel(loop, task))
        return ticket

    async def _follow(
        self, ticket: RemoteTicket[Any], job: Job[Any], deadline: float | None
    ) -> None:
        outcome: JobResult | Problem = NotReady(
            "Replicas ended while they did parts of this request.",
            fix="Send the same request again: the seed gives the same answer.",
        )
        for _ in range(_ATTEMPTS):
            try:
                outcome = await self._ask(job, deadline)
                break
            except RayActorError as error:
                _log.warning("a replica ended within a part of a request: %s", describe(error))
            except Exception as error:
                _log.exception("a part of a request failed")
                outcome = InternalError(describe(error))
                break
        resolve(ticket.future, outcome)

    async def _ask(self, job: Job[Any], deadline: float | None) -> JobResult | Problem:
        assert self._handle is not None  # there are others, so it is connected
        seconds = None if deadline is None else deadline - time.monotonic()
        response = self._handle.remote(job, seconds, owed=self.owed(job), sender=self._own)
        try:
            return await response  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            response.cancel()
            raise


def _cancel(loop: asyncio.AbstractEventLoop, task: "asyncio.Task[None]") -> None:
    """Cancel a task of the loop from any thread."""
    with suppress(RuntimeError):  # the loop has ended, and its tasks with it
        loop.call_soon_threadsafe(task.cancel)
