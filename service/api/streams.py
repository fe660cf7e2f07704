"""Answers on their way out: whole, or as a stream (text/event-stream) that tells of progress first.

    progress, [preview], progress, ..., progress, result          or, at any point, error

Answers are sent in pieces, each within a time, and counted until the last is sent: a client that
stops reading would otherwise keep its answer in memory for ever. What refuses a request does so
before its stream begins, as on the plain route. Plain ASGI: the stream ends with the job or with
the client, whichever goes first.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, final

from anyio import to_thread
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from typing_extensions import override

from service.api.middleware import problem_document, unforeseen
from service.codecs.json import EVENTS, JSON, PNG, media_parameter, to_json
from service.engine.engine import Engine
from service.engine.results import Hold, Ticket, Timing
from service.engine.scheduling.latency import JobProgress
from service.errors import NotAcceptable, Problem
from service.handlers.base import Work
from service.schemas.responses import Progress

_log = logging.getLogger(__name__)

CADENCE: Final = 0.2  # seconds between events while something changes
PIECE: Final = 2**16  # bytes handed to the connection at once; it keeps no more than about two
HEARTBEAT: Final = 15.0  # seconds of silence that proxies are sure to bear
MAX_PREVIEWS: Final = 64  # rows
_HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}  # nginx must not collect

Say = Callable[[bytes], Awaitable[None]]


class Stalled(Exception):
    """The client takes nothing more."""


async def send_within(send: Send, message: Message, seconds: float) -> None:
    """Send a message with a part of the body, in pieces.

    Raises:
        Stalled: the client did not take a piece within so many seconds.
    """
    body, more = message["body"], message["more_body"]
    for i in range(0, len(body), PIECE) or [0]:
        piece = bytes(body[i : i + PIECE])
        try:
            async with asyncio.timeout(seconds):
                await send({**message, "body": piece, "more_body": more or i + PIECE < len(body)})
        except TimeoutError:
            raise Stalled from None


@final
class Answer(Response):
    """A whole answer.

    Args:
        body: of it.
        media_type: of it.
        hold: the bytes that it is counted as.
        seconds: within which the client takes each piece.
    """

    def __init__(self, body: bytes, media_type: str, hold: Hold, seconds: float) -> None:
        super().__init__(body, media_type=media_type)
        self._hold, self._seconds = hold, seconds

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, and give back what it held."""
        try:
            head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(head)
            whole = {"type": "http.response.body", "body": self.body, "more_body": False}
            await send_within(send, whole, self._seconds)
        except Stalled:
            # Unfinished: the server closes the connection.
            scope.setdefault("state", {})["outcome"] = "client-left"
        finally:
            self._hold.release()


def previews_wanted(accept: str, offers: Sequence[str]) -> int:
    """How many rows `Accept: text/event-stream; previews=N` asks to see on their way; 0 for none.

    Raises:
        NotAcceptable: N is no number or too large, or what is asked has no previews.
    """
    text = media_parameter(accept, EVENTS, "previews")
    if text is None or text == "0":
        return 0
    most = MAX_PREVIEWS if PNG in offers else 0  # what makes no picture has nothing to preview
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= most):
        raise NotAcceptable(
            "The stream cannot hold such previews." if most else "A likelihood has no previews.",
            received=f"previews={text[:100]}",
            expected=f"{EVENTS}; previews=N, N a whole number up to {most}" if most else EVENTS,
            fix="N counts the rows shown, from the first.",
        )
    return int(text)


def event(name: str, data: bytes) -> bytes:
    """One event. The data are JSON of our own, which has no line breaks."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


async def leaving(receive: Receive) -> None:
    """Return when the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


@final
class EventStream(Response):
    """An accepted job, told as it goes. Ends with the job; the client's leaving cancels it.

    Args:
        work: what was asked.
        ticket: of its job.
        engine: that runs it.
        hold: the bytes that it is counted as.
        seconds: within which the client takes each piece.
        previews: how many rows to show on their way.
    """

    media_type = EVENTS

    def __init__(
        self,
        work: Work[Any],
        ticket: Ticket[Any],
        engine: Engine,
        hold: Hold,
        seconds: float,
        previews: int = 0,
    ) -> None:
        # As of starlette's own streams: there is no body whose length could be told.
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)
        self._work, self._ticket, self._engine, self._previews = work, ticket, engine, previews
        self._hold, self._seconds = hold, seconds
        self._accepted = time.monotonic()
        self._pace: JobProgress | None = None

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until there are no more."""
        done = asyncio.wrap_future(self._ticket.future)
        done.add_done_callback(lambda future: future.cancelled() or future.exception())  # seen
        left = asyncio.ensure_future(leaving(receive))

        async def say(chunk: bytes) -> None:
            message = {"type": "http.response.body", "body": chunk, "more_body": True}
            await send_within(send, message, self._seconds)

        try:
            head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(head)
            try:
                await self._follow(say, done, left)
                if done.done() and not done.cancelled():
                    await self._conclude(say, done.result())
                else:
                    scope.setdefault("state", {})["outcome"] = "client-left"
            except Problem as problem:
                await say(_error(problem, scope))
            except Stalled:
                raise
            except Exception:
                _log.exception("a stream failed")
                await say(_error(unforeseen(), scope))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except Stalled:
            # Unfinished: the server closes the connection.
            scope.setdefault("state", {})["outcome"] = "client-left"
        finally:
            left.cancel()
            self._ticket.cancel()  # of no effect where it has ended
            self._hold.release()

    async def _follow(
        self, say: Say, done: "asyncio.Future[Any]", left: "asyncio.Future[None]"
    ) -> None:
        """Tell of progress until the job has ended or the client left."""
        told, spoken, showing = None, 0.0, self._previews > 0
        while not (done.done() or left.done()):
            progress = self._progress()
            news = (progress.state, progress.step, progress.seconds_left)
            if news != told:
                told, spoken = news, time.monotonic()
                await say(event("progress", to_json(progress.model_dump())))
                if showing and progress.step:
                    showing = await self._show(say, done, left)
            elif time.monotonic() - spoken >= HEARTBEAT:
                spoken = time.monotonic()
                await say(b": still here\n\n")  # a comment, which readers skip
            await asyncio.wait({done, left}, timeout=CADENCE, return_when=asyncio.FIRST_COMPLETED)

    async def _show(
        self, say: Say, done: "asyncio.Future[Any]", left: "asyncio.Future[None]"
    ) -> bool:
        """A preview, once the engine is between two ticks; whether another would show more."""
        peek = asyncio.wrap_future(self._ticket.peek(self._previews))
        try:
            wanted = {peek, done, left}
            await asyncio.wait(wanted, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
            seen = peek.result() if peek.done() else None
        finally:
            peek.cancel()
        if seen is None or done.done() or left.done():
            return True
        preview = await to_thread.run_sync(self._work.preview, seen, self._previews)
        await say(event("preview", await to_thread.run_sync(to_json, preview.model_dump())))
        return any(state != "finished" for state in preview.rows)

    async def _conclude(self, say: Say, result: Timing) -> None:
        """The last progress, and the answer exactly as the plain route gives it."""
        answer = await to_thread.run_sync(self._work.render, result, JSON)
        self._hold.resize(self._hold.size + len(answer))
        cost = self._ticket.cost
        progress = Progress(
            state="done",
            step=cost,
            total=cost,
            seconds_left=0.0,
            queue_seconds=round(result.queue_seconds, 6),
            compute_seconds=round(result.compute_seconds, 6),
        )
        await say(event("progress", to_json(progress.model_dump())))
        await say(event("result", answer))

    def _progress(self) -> Progress:
        ticket, now = self._ticket, time.monotonic()
        done, queue = ticket.done, ticket.queue_seconds
        if queue is None:
            # Until it has a pace of its own, all that is owed has to be done first. Where that is
            # this job alone nothing is known yet: how much of a batch it fills, its ticks will say.
            behind = self._engine.pending > ticket.cost
            left = self._engine.seconds_pending if behind else None
        else:
            started = self._accepted + queue
            self._pace = self._pace or JobProgress(ticket.cost, started)
            self._pace.observe(done, now)
            left = self._pace.seconds_left
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
