"""What is decided before a body is read: by when an answer is of use, its size, and its room.

JSON has a limit of its own, for while it is decoded nothing else runs, neither the event loop nor
the engine; a safetensors file's tensors are taken as they are. A body's bytes are reserved before
the first of them is read. It has so long to arrive, and no longer than its deadline, for a caller
who stops halfway would keep others out.
"""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from starlette.requests import Request

from service.codecs.json import BINARY, content_coding, media_type
from service.engine.engine import Engine
from service.errors import BodyTimeout, BodyTooLarge, DeadlineExceeded, InvalidRequest
from service.settings import Settings

DEADLINE = "x-deadline"

_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?")


def find_deadline(given: Iterable[str], longest: float) -> float | None:
    """When the answer is of no more use, by the clock of `time.monotonic`.

    Args:
        given: the values of the header `x-deadline`: seconds from now, a decimal number.
        longest: `deadline_seconds` of the settings; 0 for none.

    Raises:
        InvalidRequest: the header is no such number, or came twice.
    """
    values = list(given)
    seconds = [float(value) for value in values if _SECONDS.fullmatch(value.strip())]
    if len(values) > 1 or len(seconds) < len(values) or 0.0 in seconds:
        raise InvalidRequest(
            f"The header {DEADLINE} is no number of seconds.",
            location=DEADLINE,
            received=", ".join(values)[:100],
            expected="seconds from now, more than 0, such as 2.5",
            fix="Send how long you will wait, or leave the header out.",
        )
    least = min(seconds + ([longest] if longest else []), default=math.inf)
    return None if math.isinf(least) else time.monotonic() + least


@asynccontextmanager
async def body_of(
    request: Request, engine: Engine, settings: Settings, deadline: float | None
) -> AsyncIterator[bytes]:
    """The body, whose room is reserved until the block ends: read, decode and submit within it.

    It is as it came, packed perhaps; then there is room for what it unpacks to as well.

    Raises:
        QueueFull, NoRoom, Draining, EngineDead: nothing has been read.
        BodyTooLarge: by what it declares, and nothing has been read, or else as it arrives.
        BodyTimeout, DeadlineExceeded: it did not arrive in time.
        UnsupportedMediaType: it is packed in a way that is not known.
        starlette.requests.ClientDisconnect: the client left.
    """
    limit = body_limit(request.headers.get("content-type"), settings)
    packed = content_coding(request.headers.getlist("content-encoding")) is not None
    declared = request.headers.get("content-length", "")
    size = limit  # a body in pieces may become as long as any may
    if declared.isdecimal():
        size = int(declared[:18])  # Python reads no number of thousands of digits
        if size > limit or len(declared) > 18:
            raise _too_large(f"{size} bytes", limit, settings)
    with engine.reserve(size + limit if packed else size):
        yield await _read(request, settings, limit, deadline)


def body_limit(content_type: str | None, settings: Settings) -> int:
    """Most bytes that a body may have. Whatever is no safetensors file would be read as JSON."""
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
            fix="Send fewer data a request, or as safetensors, which is smaller than JSON.",
        )
    return BodyTooLarge(
        f"The body is JSON of more than {limit} bytes.",
        received=received,
        expected=f"at most {limit} bytes of JSON, or {most} of safetensors",
        fix=f"Send the data as safetensors with 'Content-Type: {BINARY}', or part the request.",
    )


async def _read(request: Request, settings: Settings, limit: int, deadline: float | None) -> bytes:
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
