"""Reads request bodies within limits, and sends answers within a time.

A request's bytes are reserved before the first is read, and have to arrive within `body_seconds`
and the request's deadline, so that a client that stops halfway does not keep others out. JSON has a
lower limit than safetensors, because nothing else runs while it is decoded.

An answer's bytes stay reserved until the last is sent. The client has to take each piece within
`write_seconds`, or it could keep its answer in memory for ever.
"""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final, final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from typing_extensions import override

from service.codecs.json import BINARY, content_coding, media_type
from service.engine.engine import Engine
from service.engine.results import Hold
from service.engine.router import Router
from service.errors import BodyTimeout, BodyTooLarge, DeadlineExceeded, InvalidRequest
from service.settings import Settings

DEADLINE: Final = "x-deadline"
PIECE: Final = 2**16  # bytes handed to the connection at once; it buffers about two of them

_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?")


def find_deadline(given: Iterable[str], longest: float) -> float | None:
    """Find the request's deadline, in seconds of `time.monotonic`; None without one.

    Args:
        given: the values of the header `x-deadline`: seconds from now, a decimal number.
        longest: `deadline_seconds` of the settings; 0 for none.

    Raises:
        InvalidRequest: the header is not such a number, or was sent twice.
    """
    values = list(given)
    seconds = [float(value) for value in values if _SECONDS.fullmatch(value.strip())]
    if len(values) > 1 or len(seconds) < len(values) or 0.0 in seconds:
        raise InvalidRequest(
            f"The header {DEADLINE} is not a number of seconds.",
            location=DEADLINE,
            received=", ".join(values)[:100],
            expected="seconds from now, more than 0, such as 2.5",
            fix="Send how long you will wait, or leave the header out.",
        )
    least = min(seconds + ([longest] if longest else []), default=math.inf)
    return None if math.isinf(least) else time.monotonic() + least


@asynccontextmanager
async def body_of(
    request: Request,
    engine: Engine | Router,
    settings: Settings,
    deadline: float | None,
    *,
    background: bool = False,
    limit: int | None = None,
) -> AsyncIterator[bytes]:
    """Read the request's body, reserving its bytes until the block ends.

    A job of the background does not need room in the queue. Without a `limit` the body's type says
    how long it may be.

    Decode and submit within the block. A compressed body is not unpacked here, but the bytes it may
    unpack to are reserved too.

    Raises:
        QueueFull, NoRoom, Draining, EngineDead: refused before anything is read.
        BodyTooLarge: by its declared length before anything is read, or as it arrives.
        BodyTimeout, DeadlineExceeded: it did not arrive in time.
        UnsupportedMediaType: its content coding is unknown.
        starlette.requests.ClientDisconnect: the client left.
    """
    if limit is None:
        limit = body_limit(request.headers.get("content-type"), settings)
    packed = content_coding(request.headers.getlist("content-encoding")) is not None
    declared = request.headers.get("content-length", "")
    size = limit  # of a chunked body, whose length is not declared
    if declared.isdecimal():
        size = int(declared[:18])  # Python reads no number of thousands of digits
        if size > limit or len(declared) > 18:
            raise _too_large(f"{size} bytes", limit, settings)
    with engine.reserve(size + limit if packed else size, background=background):
        yield await read_body(request, settings, limit, deadline)


def body_limit(content_type: str | None, settings: Settings) -> int:
    """Return the most bytes a body may have. All but safetensors files are read as JSON."""
    if media_type(content_type) == BINARY:
        return settings.max_body_bytes
    return min(settings.max_json_bytes, settings.max_body_bytes)


def _too_large(received: str, limit: int, settings: Settings) -> BodyTooLarge:
    most = settings.max_body_bytes
    if limit == most:
        return BodyTooLarge(
            f"The body is larger than {limit} bytes.",
            received=received,
            expected=f"at most {limit} bytes",
            fix="Send less data in a request, or send safetensors, which is smaller than JSON.",
        )
    return BodyTooLarge(
        f"The body is JSON of more than {limit} bytes.",
        received=received,
        expected=f"at most {limit} bytes of JSON, or {most} of safetensors",
        fix=f"Send the data as safetensors with 'Content-Type: {BINARY}', or split the request.",
    )


async def read_body(
    request: Request, settings: Settings, limit: int, deadline: float | None
) -> bytes:
    """Read a body of at most `limit` bytes, which has to arrive in time."""
    longest = settings.body_seconds
    left = math.inf if deadline is None else deadline - time.monotonic()
    pieces, seen = [], 0
    # `request.body()` would keep the bytes as long as the request.
    try:
        async with asyncio.timeout(min(longest, left)):
            async for piece in request.stream():
                seen += len(piece)
                if seen > limit:
                    raise _too_large(f"at least {seen} bytes", limit, settings)
                pieces.append(piece)
    except TimeoutError:
        if left < longest:
            raise DeadlineExceeded(
                "The deadline passed before the body had arrived.",
                fix="Allow more time, or send less.",
            ) from None
        raise BodyTimeout(
            f"The body did not arrive within {longest:g} seconds.",
            expected=f"at most {longest:g} seconds",
            fix="Send it in smaller requests; the operator sets NONEQ_BODY_SECONDS.",
        ) from None
    return b"".join(pieces)


class Stalled(Exception):
    """The client has stopped reading."""


async def send_within(send: Send, message: Message, seconds: float) -> None:
    """Send part of an answer's body in pieces.

    Raises:
        Stalled: the client did not take a piece within `seconds`.
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
    """An answer sent as a whole.

    Args:
        body: the answer's bytes.
        media_type: the body's media type.
        hold: the reservation of the bytes.
        seconds: the longest wait for the client to take a piece.
    """

    def __init__(self, body: bytes, media_type: str, hold: Hold, seconds: float) -> None:
        super().__init__(body, media_type=media_type)
        self._hold, self._seconds = hold, seconds

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, and release its reservation."""
        try:
            head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(head)
            whole = {"type": "http.response.body", "body": self.body, "more_body": False}
            await send_within(send, whole, self._seconds)
        except Stalled:
            client_left(scope)  # the answer is incomplete, so the server closes the connection
        finally:
            self._hold.release()


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def client_left(scope: Scope) -> None:
    """Count the request as abandoned by its client."""
    scope.setdefault("state", {})["outcome"] = "client-left"
