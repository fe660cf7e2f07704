"""What is decided before a body is read: by when an answer is of use, and whether there is room.

A body's bytes are reserved before the first of them is read. It has so long to arrive, and no
longer than its deadline, for a caller who stops halfway would keep others out.
"""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from starlette.requests import Request

from service.engine.engine import Engine
from service.problems import BodyTimeout, DeadlineExceeded, InvalidRequest
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

    Raises:
        QueueFull, NoRoom, Draining, EngineDead: nothing has been read.
        BodyTimeout, DeadlineExceeded: it did not arrive in time.
        starlette.requests.ClientDisconnect: the client left.
    """
    declared = request.headers.get("content-length", "")
    # A body in pieces may become as long as any may.
    size = int(declared) if declared.isdecimal() else settings.max_body_bytes
    with engine.reserve(size):
        yield await _read(request, settings.body_seconds, deadline)


async def _read(request: Request, longest: float, deadline: float | None) -> bytes:
    left = math.inf if deadline is None else deadline - time.monotonic()
    # `request.body()` would keep the bytes as long as the request.
    try:
        async with asyncio.timeout(min(longest, left)):
            return b"".join([piece async for piece in request.stream()])
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
