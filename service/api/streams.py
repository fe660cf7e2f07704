"""Sends answers as a stream of events (text/event-stream) that reports progress until the result.

    progress, [preview], progress, ..., progress, result          or, at any point, error

A request is refused before its stream begins, as without a stream. A stream ends with the job, or
when the client leaves, which cancels the job.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, final

from anyio import to_thread
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from service.api.body import Stalled, client_left, send_within, wait_for_disconnect
from service.api.middleware import problem_document, unforeseen
from service.api.tracing import Trace
from service.codecs.json import EVENTS, JSON, PNG, media_parameter, to_json
from service.engine.engine import Engine
from service.engine.results import Hold, JobResult, Ticket
from service.engine.router import Router
from service.errors import NotAcceptable, Problem
from service.handlers.base import Work
from service.schemas.responses import Progress

_log = logging.getLogger(__name__)

CADENCE: Final = 0.2  # seconds between events while something changes
HEARTBEAT: Final = 15.0  # seconds of silence that every proxy tolerates
MAX_PREVIEWS: Final = 64  # rows
_WINDOW: Final = 10.0  # seconds after which a measured rate has lost most of its weight
HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}  # nginx must not buffer

Write = Callable[[bytes], Awaitable[None]]


def previews_wanted(accept: str, offers: Sequence[str]) -> int:
    """Read N from `Accept: text/event-stream; previews=N`: how many rows to preview.

    Raises:
        NotAcceptable: N is not a number or too large, or the route has no previews.
    """
    text = media_parameter(accept, EVENTS, "previews")
    if text is None or text == "0":
        return 0
    most = MAX_PREVIEWS if PNG in offers else 0  # only samples can be previewed
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= most):
        raise NotAcceptable(
            "Too many previews were requested." if most else "A likelihood has no previews.",
            received=f"previews={text[:100]}",
            expected=f"{EVENTS}; previews=N, N a whole number up to {most}" if most else EVENTS,
            fix="N is how many rows are shown, from the first.",
        )
    return int(text)


def event(name: str, data: bytes) -> bytes:
    """Format one event; `data` is JSON without line breaks."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


@final
class JobProgress:
    """Estimates how long a job still takes: seconds_left = (total - done) / rate.

    The rate is measured over the last seconds, so it reflects the engine's current load. The caller
    passes the time.

    Args:
        total: network evaluations that the job needs.
        started: the time of the job's first network call, seconds.
    """

    def __init__(self, total: int, started: float) -> None:
        self._total = total
        self._done = 0
        self._changed = started
        self._evaluations = self._seconds = 0.0

    def observe(self, done: int, now: float) -> None:
        """Record that `done` evaluations have been made by `now`."""
        if done == self._done or now <= self._changed:
            return  # nothing new between batches
        passed = now - self._changed
        kept = math.exp(-passed / _WINDOW)
        self._evaluations = kept * self._evaluations + done - self._done
        self._seconds = kept * self._seconds + passed
        self._done, self._changed = done, now

    @property
    def seconds_left(self) -> float | None:
        """Estimate the time left since the last progress; None before any progress."""
        if not self._evaluations:
            return None
        return (self._total - self._done) * self._seconds / self._evaluations


@final
class EventStream(Response):
    """Sends the events of an accepted job.

    Args:
        work: the request.
        ticket: the job's ticket.
        engine: the engine that runs the job.
        hold: the request's reservation of bytes.
        seconds: the longest wait for the client to take a piece.
        previews: how many rows to show while they are drawn.
    """

    media_type = EVENTS

    def __init__(
        self,
        work: Work[Any],
        ticket: Ticket[Any],
        engine: Engine | Router,
        hold: Hold,
        seconds: float,
        previews: int = 0,
    ) -> None:
        # As in starlette's StreamingResponse, because the length is not known.
        self.status_code = 200
        self.background = None
        self.init_headers(HEADERS)
        self._work, self._ticket, self._engine, self._previews = work, ticket, engine, previews
        self._hold, self._seconds = hold, seconds
        self._accepted = time.monotonic()
        self._job_progress: JobProgress | None = None

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the stream ends."""
        done = asyncio.wrap_future(self._ticket.future)
        done.add_done_callback(lambda future: future.cancelled() or future.exception())  # retrieved
        left = asyncio.ensure_future(wait_for_disconnect(receive))

        async def write(chunk: bytes) -> None:
            message = {"type": "http.response.body", "body": chunk, "more_body": True}
            await send_within(send, message, self._seconds)

        try:
            head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(head)
            try:
                await self._send_progress(write, done, left)
                if done.done() and not done.cancelled():
                    await self._send_result(write, done.result(), scope["state"]["trace"])
                else:
                    client_left(scope)
            except Problem as problem:
                await write(_error(problem, scope))
            except Stalled:
                raise
            except Exception:
                _log.exception("a stream failed")
                await write(_error(unforeseen(), scope))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except Stalled:
            client_left(scope)  # the stream is incomplete, so the server closes the connection
        finally:
            left.cancel()
            self._ticket.cancel()  # no effect if it has ended
            self._hold.release()

    async def _send_progress(
        self, write: Write, done: "asyncio.Future[Any]", left: "asyncio.Future[None]"
    ) -> None:
        """Send progress until the job has ended or the client has left."""
        last, sent, previewing = None, 0.0, self._previews > 0
        while not (done.done() or left.done()):
            progress = self._progress()
            state = (progress.state, progress.step, progress.seconds_left)
            if state != last:
                last, sent = state, time.monotonic()
                await write(event("progress", to_json(progress.model_dump())))
                if previewing and progress.step:
                    previewing = await self._send_preview(write, done, left)
            elif time.monotonic() - sent >= HEARTBEAT:
                sent = time.monotonic()
                await write(b": still here\n\n")  # a comment, which clients skip
            await asyncio.wait({done, left}, timeout=CADENCE, return_when=asyncio.FIRST_COMPLETED)

    async def _send_preview(
        self, write: Write, done: "asyncio.Future[Any]", left: "asyncio.Future[None]"
    ) -> bool:
        """Send a preview taken between two batches; return whether another would show more."""
        requested = asyncio.wrap_future(self._ticket.preview(self._previews))
        try:
            wanted = {requested, done, left}
            await asyncio.wait(wanted, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
            seen = requested.result() if requested.done() else None
        finally:
            requested.cancel()
        if seen is None or done.done() or left.done():
            return True
        preview = await to_thread.run_sync(self._work.preview, seen, self._previews)
        await write(event("preview", await to_thread.run_sync(to_json, preview.model_dump())))
        return any(row != "finished" for row in preview.rows)

    async def _send_result(self, write: Write, result: JobResult, trace: Trace) -> None:
        """Send the last progress and the answer, the same as without a stream."""
        with trace.stage("encode"):
            answer = await to_thread.run_sync(self._work.render, result, JSON)
        self._hold.resize(self._hold.size + len(answer))
        cost = self._ticket.cost
        progress = Progress(
            state="done",
            step=cost,
            total=cost,
            seconds_left=0.0,
            queue_seconds=round(result.stats.queue_seconds, 6),
            compute_seconds=round(result.stats.compute_seconds, 6),
        )
        await write(event("progress", to_json(progress.model_dump())))
        await write(event("result", answer))

    def _progress(self) -> Progress:
        ticket, now = self._ticket, time.monotonic()
        done, queue = ticket.done, ticket.queue_seconds
        if queue is None:
            # Everything pending has to finish first. If only this job is pending, nothing is known
            # yet: its time depends on how much of a batch it fills.
            behind = self._engine.pending > ticket.cost
            left = self._engine.seconds_pending if behind else None
        else:
            started = self._accepted + queue
            self._job_progress = self._job_progress or JobProgress(ticket.cost, started)
            self._job_progress.observe(done, now)
            left = self._job_progress.seconds_left
        waited = now - self._accepted if queue is None else queue
        return Progress(
            state="waiting" if queue is None else "running",
            step=done,
            total=ticket.cost,
            seconds_left=None if left is None else round(left, 1),
            queue_seconds=round(waited, 6),
            compute_seconds=round(max(0.0, now - self._accepted - waited), 6),
        )


def _error(problem: Problem, scope: Scope) -> bytes:
    return event("error", to_json(problem_document(problem, scope)))
