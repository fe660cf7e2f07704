"""Requests that are answered later: `Prefer: respond-async` makes a job; /jobs is about these."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal, final

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send
from typing_extensions import override

from service.api import streams
from service.api.body import Stalled, client_left, send_within, wait_for_disconnect
from service.api.info import add_heads
from service.api.middleware import problem_document
from service.api.openapi import WAIT, job_responses, problems, result_responses
from service.api.preferences import Preferences
from service.api.streams import Write, event
from service.codecs.json import BINARY, EVENTS, JSON, PNG, negotiate, to_json
from service.codecs.rows import CSV
from service.errors import (
    Draining,
    InternalError,
    JobNotDone,
    NotAcceptable,
    Problem,
    UnknownJob,
    from_document,
)
from service.jobs.record import Outcome
from service.jobs.runner import JobRunner
from service.jobs.store import StoredJob
from service.schemas.jobs import JobAnswer, JobsAnswer
from service.schemas.responses import Progress
from service.state import Backend, backend_of

_LOOK: Final = 0.05  # seconds between looks at a job that somebody waits for
_LATER: Final = 2.0  # seconds after which to look again, where nothing is known
_MOST: Final = 1000

router = APIRouter(tags=["jobs"])


def runner_of(request: Request) -> JobRunner:
    """Return the jobs of the request's app."""
    found: JobRunner = request.app.state.jobs
    return found


def owner_of(request: Request) -> str:
    """Return whose the request's jobs are: its API key's holder's; empty without keys."""
    holder = getattr(request.state, "holder", None)
    return holder.owner if holder is not None else ""


@router.get("/jobs", response_model=JobsAnswer, responses=problems(401, 422))
async def list_jobs(
    request: Request,
    state: Annotated[
        Literal["waiting", "running", "done", "failed"] | None,
        Query(description="Only jobs in this state."),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=_MOST, description="How many, at most.")] = 100,
) -> Response:
    """List the jobs of this API key, or all where there are no keys, the latest first."""
    store = runner_of(request).store
    jobs = [job for job in store.of(owner_of(request)) if state in (None, job.state)]
    return _json(JobsAnswer(jobs=[describe(request, job) for job in jobs[:limit]]))


@router.get("/jobs/{id}", response_model=JobAnswer, responses=job_responses(), openapi_extra=WAIT)
async def show_job(request: Request, id: str) -> Response:
    """Say where a job stands; `Prefer: wait=N` waits up to N seconds for its end."""
    job = _find(request, id)
    form = negotiate(", ".join(request.headers.getlist("accept")), (JSON, EVENTS))
    if form == EVENTS:

        def answer() -> bytes:
            return to_json(describe(request, job).model_dump())

        return JobStream(job, backend_of(request), answer)
    if not await _wait(request, job):
        return _nobody(request)
    return _json(describe(request, job))


@router.get(
    "/jobs/{id}/result", response_model=None, responses=result_responses(), openapi_extra=WAIT
)
async def show_result(request: Request, id: str) -> Response:
    """Return a job's answer, in any form that its route offers, until the job expires.

    It is what the route would have answered. Before the job is done it is 409, `job-not-done`;
    `Prefer: wait=N` waits up to N seconds for its end. Of a job that failed it is its problem.
    """
    job = _find(request, id)
    form = negotiate(", ".join(request.headers.getlist("accept")), (JSON, PNG, BINARY, EVENTS, CSV))
    if form == EVENTS:

        def answer() -> bytes:
            assert job.outcome is not None
            return job.answer(_file(job.outcome, JSON)).read_bytes()

        return JobStream(job, backend_of(request), answer)
    if not await _wait(request, job):
        return _nobody(request)
    return result_of(request, job, form)


@router.delete("/jobs/{id}", response_model=JobAnswer, responses=problems(401, 403, 404, 422))
async def cancel_job(request: Request, id: str) -> Response:
    """Cancel a job, or remove one that has ended, with its answer; it is forgotten at once."""
    job = _find(request, id)
    last = describe(request, job)
    await to_thread.run_sync(runner_of(request).store.forget, job)
    return _json(last)


add_heads(router)


async def accepted(request: Request, job: StoredJob, form: str, seconds: float) -> Response:
    """Answer a request that has become a job: 202, or its result if that is there in time."""
    if not await _wait(request, job):
        return _nobody(request)
    headers = {
        "location": f"{request.scope.get('root_path', '')}/jobs/{job.record.id}",
        "preference-applied": "respond-async" + (f", wait={seconds:g}" if seconds else ""),
    }
    if job.outcome is not None and seconds:
        found = result_of(request, job, form if form != EVENTS else JSON)
        found.headers.update(headers)
        return found
    document = to_json(describe(request, job).model_dump())
    return Response(document, 202, headers, media_type=JSON)


def describe(request: Request, job: StoredJob) -> JobAnswer:
    """Say where a job stands."""
    store, record, outcome = runner_of(request).store, job.record, job.outcome
    progress = _progress(job)
    return JobAnswer(
        id=record.id,
        state=job.state,
        path=record.path,
        model=record.model,
        seed=record.seed,
        step=progress.step,
        total=progress.total,
        seconds_left=progress.seconds_left,
        queue_seconds=progress.queue_seconds,
        compute_seconds=progress.compute_seconds,
        created=_iso(record.created),
        ended=None if outcome is None else _iso(outcome.ended),
        expires=None if (end := store.expires(job)) is None else _iso(end),
        durable=store.durable,
        result=f"{request.scope.get('root_path', '')}/jobs/{record.id}/result",
        idempotency_key=record.key,
        problem=None if outcome is None else outcome.problem,
    )


def _progress(job: StoredJob) -> Progress:
    record, outcome, ticket, now = job.record, job.outcome, job.ticket, time.time()
    done, waited, computed = 0, now - record.created, 0.0
    state: Literal["waiting", "running", "done"] = "waiting"
    left = None
    if outcome is not None:
        state, left = "done", 0.0
        done = record.cost if outcome.problem is None else 0
        waited, computed = outcome.queue_seconds, outcome.compute_seconds
    elif ticket is not None and ticket.queue_seconds is not None:
        state, done = "running", ticket.done
        computed = time.monotonic() - job.submitted - ticket.queue_seconds
        waited = max(0.0, waited - computed)
        left = round((record.cost - done) * computed / done, 1) if done else None
    return Progress(
        state=state,
        step=done,
        total=record.cost,
        seconds_left=left,
        queue_seconds=round(waited, 6),
        compute_seconds=round(computed, 6),
    )


def result_of(request: Request, job: StoredJob, form: str) -> Response:
    """Answer with a job's result in this form, or with the problem that it has instead."""
    outcome = job.outcome
    if outcome is None:
        left = _progress(job).seconds_left
        raise JobNotDone(
            f"The job is {job.state}.",
            retry_after=min(_LATER if left is None else left, 60.0),
            fix="Send 'Prefer: wait=60', or 'Accept: text/event-stream', to wait for it.",
        )
    path = job.answer(_file(outcome, form))
    if not path.is_file():
        raise InternalError(
            "The file of the job's answer is gone.",
            job=job.record.id,
            fix="Send the request again with the same seed, which has the same answer.",
        )
    request.state.queue_seconds = outcome.queue_seconds
    request.state.compute_seconds = outcome.compute_seconds
    return StoredAnswer(path, form, backend_of(request).settings.write_seconds)


def _file(outcome: Outcome, form: str) -> str:
    """Return the file of an answer in this form; raises the problem that it has instead."""
    if outcome.problem is not None:
        raise from_document(outcome.problem)
    found = outcome.forms.get(form)
    if found is None:
        raise NotAcceptable(
            "The route does not offer this form.",
            received=form,
            expected=[*outcome.forms, EVENTS],
            fix=f"Send one of these in Accept, or leave it out for {JSON}.",
        )
    if not isinstance(found, str):
        raise from_document(found)
    return found


def _find(request: Request, id_: str) -> StoredJob:
    return runner_of(request).store.find(id_, owner_of(request))


async def _wait(request: Request, job: StoredJob) -> bool:
    """Wait for the job's end as long as the request prefers; False if its client left."""
    seconds = Preferences.of(request).wait
    if not seconds:
        return True
    left = asyncio.ensure_future(wait_for_disconnect(request.receive))
    ends = time.monotonic() + seconds
    draining = partial(_draining, backend_of(request))
    try:
        while not (job.over or left.done() or draining()) and time.monotonic() < ends:
            await asyncio.wait({left}, timeout=_LOOK)
        _find(request, job.record.id)  # raises if it was cancelled meanwhile
        if draining() and not job.over:
            raise _stopping()
        return not left.done()
    finally:
        left.cancel()


def _draining(backend: Backend) -> bool:
    """Whether the service stops, so that nobody may wait for what comes."""
    return isinstance(backend.state(), Draining)


def _stopping() -> Draining:
    return Draining("The service stops, and goes on with the job when it is started again.")


def _nobody(request: Request) -> Response:
    client_left(request.scope)
    return Response(status_code=499)  # nobody reads it; the metrics count it


@final
class StoredAnswer(FileResponse):
    """An answer sent from its file, of which a client may take ranges.

    Args:
        path: the file.
        media_type: its media type.
        seconds: the longest wait for the client to take a piece.
    """

    def __init__(self, path: Path, media_type: str, seconds: float) -> None:
        super().__init__(path, media_type=media_type)
        self._seconds = seconds

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file."""

        async def send_in_time(message: Message) -> None:
            if message["type"] == "http.response.body":
                await send_within(send, {"more_body": False, **message}, self._seconds)
            else:
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except Stalled:
            client_left(scope)  # the answer is incomplete, so the server closes the connection


@final
class JobStream(Response):
    """Sends a job's progress until it has ended, and then an answer; leaving does not cancel it.

    Args:
        job: the job.
        backend: ends the stream when the service stops.
        answer: the data of the last event, `result`; raises a Problem for `error`.
    """

    media_type = EVENTS

    def __init__(self, job: StoredJob, backend: Backend, answer: Callable[[], bytes]) -> None:
        # As in starlette's StreamingResponse, because the length is not known.
        self.status_code = 200
        self.background = None
        self.init_headers(streams.HEADERS)
        self._job, self._answer = job, answer
        self._draining = partial(_draining, backend)
        self._seconds = backend.settings.write_seconds

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the stream ends."""
        left = asyncio.ensure_future(wait_for_disconnect(receive))

        async def write(chunk: bytes) -> None:
            message = {"type": "http.response.body", "body": chunk, "more_body": True}
            await send_within(send, message, self._seconds)

        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send_progress(write, left)
            if left.done():
                client_left(scope)
                return
            try:
                if self._job.forgotten:
                    raise UnknownJob("The job was cancelled.")
                if not self._job.over:
                    raise _stopping()
                await write(event("result", await to_thread.run_sync(self._answer)))
            except Problem as problem:
                await write(event("error", to_json(problem_document(problem, scope))))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except Stalled:
            client_left(scope)  # the stream is incomplete, so the server closes the connection
        finally:
            left.cancel()

    async def _send_progress(self, write: Write, left: "asyncio.Future[None]") -> None:
        last, sent = None, 0.0
        while not left.done():
            over = (
                self._job.over or self._draining()
            )  # before it is described: what is sent last is the end
            progress = _progress(self._job)
            state = (progress.state, progress.step, progress.seconds_left)
            if state != last and not self._job.forgotten:
                last, sent = state, time.monotonic()
                await write(event("progress", to_json(progress.model_dump())))
            elif time.monotonic() - sent >= streams.HEARTBEAT:
                sent = time.monotonic()
                await write(b": still here\n\n")  # a comment, which clients skip
            if over:
                return
            await asyncio.wait({left}, timeout=streams.CADENCE)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _json(answer: BaseModel) -> Response:
    return Response(to_json(answer.model_dump()), media_type=JSON)
