"""Requests that are answered later: a handle on the job that the service made of one.

    job = client.submit(requests.sample(4096, model="mnist"))
    job.wait(progress=True)
    digits = job.result()

The service keeps a job and its answer, whatever becomes of the caller: `client.job(job.id)` is a
handle again, in another process or on another day.
"""

import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, Literal, Protocol, TypeVar, final
from urllib.parse import quote

from noneq import codec
from noneq.codec import BINARY, JSON, Body, Document, Timing
from noneq.errors import TimedOut, UnreadableAnswer
from noneq.requests import Request, read_likelihoods
from noneq.responses import Posterior, Samples
from noneq.retries import Patience
from noneq.sse import Listener, Progress
from noneq.tasks import Task

T = TypeVar("T")

_LOOK, _LOOK_OFTEN = 30, 1  # seconds that the service waits before it says how a job stands
#: Who waits for a job waits on while the service restarts.
_PATIENT = Patience(retries=1000, seconds=900.0, restarts=True)
State = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class JobStatus:
    """Where a job stands.

    Attributes:
        id: the job's name.
        state: "waiting", "running", "done" or "failed".
        path: the route that was asked.
        model: which model answers.
        seed: of the noise, fixed when the job was accepted.
        step: network evaluations made.
        total: network evaluations needed.
        seconds_left: an estimate; None until there is one.
        queue_seconds: the wait until the first network call.
        compute_seconds: the time since then.
        created: when it was accepted (ISO 8601, UTC).
        ended: when it was done or failed; None until then.
        expires: when the service forgets it; None until it has ended.
        durable: whether it survives a restart of the service.
        problem: of a job that failed, the problem document.
    """

    id: str
    state: State
    path: str
    model: str
    seed: int
    step: int
    total: int
    seconds_left: float | None
    queue_seconds: float
    compute_seconds: float
    created: str
    ended: str | None
    expires: str | None
    durable: bool
    problem: Document | None

    @property
    def over(self) -> bool:
        """Whether it is done or failed."""
        return self.state in ("done", "failed")

    @property
    def progress(self) -> Progress:
        """The same, as the progress of a request."""
        state: Literal["waiting", "running", "done"] = "done"
        if self.state == "waiting" or self.state == "running":
            state = self.state
        return Progress(
            state,
            self.step,
            self.total,
            self.seconds_left,
            self.queue_seconds,
            self.compute_seconds,
        )


# ------------------------------------------------------------------------- requests about jobs


def submission(request: Request[Any], idempotency_key: str | None) -> Request[JobStatus]:
    """Make the request that has another answered later: Prefer: respond-async."""
    key = uuid.uuid4().hex if idempotency_key is None else idempotency_key
    return replace(
        request,
        read=_read_status,
        from_json=_accepted,
        listener=None,
        previews=0,
        streamed=False,
        accept=JSON,
        extra={"prefer": "respond-async", "idempotency-key": key},
    )


def status(id_: str, wait: int = 0) -> Request[JobStatus]:
    """Ask where a job stands: GET /jobs/ID; after up to `wait` seconds, if it has not ended."""
    extra = {"prefer": f"wait={wait}"} if wait else {}
    return Request(_path(id_), _read_status, extra=extra, patience=_PATIENT if wait else None)


def cancellation(id_: str) -> Request[JobStatus]:
    """Cancel a job, or remove it with its answer: DELETE /jobs/ID."""
    return Request(_path(id_), _read_status, method="DELETE")


def result(
    id_: str,
    read: Callable[[Body, Timing], T],
    from_json: Callable[[Mapping[str, Any]], Body],
) -> Request[T]:
    """Get a job's answer: GET /jobs/ID/result."""
    return Request(f"{_path(id_)}/result", read, from_json, accept=BINARY)


def jobs(state: State | None = None, limit: int = 100) -> Request[list[JobStatus]]:
    """List your jobs, the latest first: GET /jobs.

    Args:
        state: only those in this state.
        limit: how many, at most.
    """
    query = f"limit={limit:d}" + ("" if state is None else f"&state={quote(state)}")

    def read(body: Body, timing: Timing) -> list[JobStatus]:
        return [_read_status(Body(one), timing) for one in body.fields["jobs"]]

    return Request(f"/jobs?{query}", read)


def _path(id_: str) -> str:
    return f"/jobs/{quote(id_, safe='')}"


def _read_status(body: Body, _: Timing) -> JobStatus:
    return JobStatus(**{one.name: body.fields[one.name] for one in fields(JobStatus)})


def _accepted(document: Mapping[str, Any]) -> Body:
    if "id" not in document:
        raise UnreadableAnswer(
            "the service answered at once, as it keeps no jobs (NONEQ_MAX_JOBS=0): send the "
            "request without submit"
        )
    return Body(document)


#: How an answer is read, by the route that was asked; any other is a posterior's.
_READERS: Mapping[str, tuple[Callable[[Body, Timing], Any], Callable[..., Body]]] = {
    "/sample": (Samples, codec.samples_from_json),
    "/loglik": (read_likelihoods, codec.likelihoods_from_json),
}


# ------------------------------------------------------------------------ what several requests do


def waiting(id_: str, progress: bool | Listener, timeout: float | None) -> Task[JobStatus]:
    """Wait for a job's end; see `Job.wait`."""
    ends = None if timeout is None else time.monotonic() + timeout
    with _listener(id_, progress) as listener:
        while True:
            left = _LOOK_OFTEN if listener else _LOOK
            if ends is not None:
                left = max(0, min(left, int(ends - time.monotonic() + 1)))
            try:
                found: JobStatus = yield status(id_, left)
            except TimedOut:  # by a client that does not wait so long for a byte
                continue
            if listener is not None:
                listener(found.progress)
            if found.over:
                return found
            if ends is not None and time.monotonic() >= ends:
                raise TimedOut(
                    f"job {id_} is {found.state} after {timeout:g} seconds, {found.step} of "
                    f"{found.total} network evaluations done; it goes on: wait again"
                )


def fetching(
    id_: str,
    read: Callable[[Body, Timing], T],
    from_json: Callable[[Mapping[str, Any]], Body],
) -> Task[T]:
    """Wait for a job's answer; see `Job.result`."""
    yield from waiting(id_, False, None)
    found: T = yield result(id_, read, from_json)
    return found


def finding(id_: str) -> Task[tuple[Callable[[Body, Timing], Any], Callable[..., Body]]]:
    """Find how the answer of a job is read; raises BadRequest if there is none."""
    found: JobStatus = yield status(id_)
    return _READERS.get(found.path, (Posterior, codec.posterior_from_json))


@contextmanager
def _listener(id_: str, progress: bool | Listener) -> Iterator[Listener | None]:
    """Yield who is told of progress: the caller's own, or with True a bar, or lines, on stderr."""
    if not isinstance(progress, bool):
        yield progress
        return
    if not progress:
        yield None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield lambda event: print(f"job {id_}: {event}", file=sys.stderr)
        return
    with tqdm(unit="call", desc=f"job {id_}", dynamic_ncols=True) as bar:

        def move(event: Any) -> None:  # noqa: ANN401  (only progress comes)
            bar.total = event.total
            bar.update(event.step - bar.n)

        yield move


# ------------------------------------------------------------------------------------- handles


class Sender(Protocol):
    """What a handle needs of a `Client`."""

    def send(self, request: Request[T], /) -> T:
        """Send a request and return its answer."""

    def run(self, task: Task[T], /) -> T:
        """Send a task's requests, and return its result."""


class AsyncSender(Protocol):
    """What a handle needs of an `AsyncClient`."""

    async def send(self, request: Request[T], /) -> T:
        """Send a request and return its answer."""

    async def run(self, task: Task[T], /) -> T:
        """Send a task's requests, and return its result."""


@final
class Job(Generic[T]):
    """A job of the service; made by `Client.submit` and `Client.job`.

    Attributes:
        id: its name, which stays valid in other processes.
    """

    def __init__(
        self,
        client: Sender,
        id_: str,
        read: Callable[[Body, Timing], T],
        from_json: Callable[[Mapping[str, Any]], Body],
    ) -> None:
        self.id, self._client, self._read, self._from_json = id_, client, read, from_json

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def status(self) -> JobStatus:
        """Ask where it stands."""
        return self._client.send(status(self.id))

    def wait(self, progress: bool | Listener = False, timeout: float | None = None) -> JobStatus:
        """Wait for its end, also while the service restarts, and return how it ended.

        Args:
            progress: True for a bar on stderr, or a function that is called with each `Progress`.
            timeout: seconds after which to raise TimedOut; the job goes on.
        """
        return self._client.run(waiting(self.id, progress, timeout))

    def result(self) -> T:
        """Wait for its answer; raises what the request itself would have raised."""
        return self._client.run(fetching(self.id, self._read, self._from_json))

    def cancel(self) -> None:
        """Cancel it, or remove it with its answer."""
        self._client.send(cancellation(self.id))


@final
class AsyncJob(Generic[T]):
    """A `Job` whose calls are awaited; made by `AsyncClient.submit` and `AsyncClient.job`."""

    def __init__(
        self,
        client: AsyncSender,
        id_: str,
        read: Callable[[Body, Timing], T],
        from_json: Callable[[Mapping[str, Any]], Body],
    ) -> None:
        self.id, self._client, self._read, self._from_json = id_, client, read, from_json

    def __repr__(self) -> str:
        return f"AsyncJob({self.id!r})"

    async def status(self) -> JobStatus:
        """Ask where it stands."""
        return await self._client.send(status(self.id))

    async def wait(
        self, progress: bool | Listener = False, timeout: float | None = None
    ) -> JobStatus:
        """Wait for its end; the arguments are those of `Job.wait`."""
        return await self._client.run(waiting(self.id, progress, timeout))

    async def result(self) -> T:
        """Wait for its answer; raises what the request itself would have raised."""
        return await self._client.run(fetching(self.id, self._read, self._from_json))

    async def cancel(self) -> None:
        """Cancel it, or remove it with its answer."""
        await self._client.send(cancellation(self.id))
