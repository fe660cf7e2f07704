"""Limits connections: their number, and the size and arrival time of request headers.

The server uses uvicorn's parser in Python even if faster ones are installed, because those do not
limit headers. Beyond `max_connections` the connection that has been idle longest is closed, so idle
connections do not block others. A new connection counts as busy at first: its request is coming.
"""

import asyncio
import logging
import sys
from typing import Any, ClassVar

import h11
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from service.codecs.json import to_json
from service.errors import MEDIA_TYPE, HeadersTooLarge, Problem, TooManyConnections
from service.metrics import Metrics
from service.settings import Settings

_log = logging.getLogger(__name__)

HEADER_BYTES = 16 * 2**10  # of a request line and its headers
_BACKLOG = 1024  # connections that the kernel has accepted but the server has not
_GRACE = 1.0  # seconds for a connection's first bytes before it counts as idle
CROWDED = "crowded"  # marks in a request's state that its connection is beyond the limit
_SPARE = 64  # connections beyond the limit, for /health/ and to answer 503
_FILES = 128  # other open files: models, log, event loop
# Bytes read before other connections have their turn: one-byte chunks take 10 us each to parse.
_READ, _READ_PLAIN = 4 * 2**10, 256 * 2**10


class Connection(H11Protocol):
    """A uvicorn connection with limits. Abstract: `limited` makes a class with the settings.

    Attributes:
        most: the most connections at once.
        header_seconds: the longest wait for a request's headers.
        metrics: counts refusals.
        fresh: connections that have had no request yet, in order of arrival.
        kept: connections between requests, in order of their last request.
    """

    most: ClassVar[int]
    header_seconds: ClassVar[float]
    metrics: ClassVar[Metrics]
    fresh: ClassVar[dict["Connection", None]]
    kept: ClassVar[dict["Connection", None]]

    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # None before the first request
    _timer: asyncio.TimerHandle | None = None
    _since: float = 0.0  # time of arrival, by the loop's clock

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        self.fresh[self] = None
        self._watch()
        if len(self.connections) <= self.most or self._make_room():
            return
        if len(self.connections) > self.most + _SPARE:
            self.metrics.refused.labels(TooManyConnections.slug).inc()
            transport.abort()
        else:
            self.app_state = {**self.app_state, CROWDED: True}

    def _make_room(self) -> bool:
        """Close the connection idle longest, preferring those that never had a request."""
        oldest = next(iter(self.fresh))  # at least this one
        idle = self._since - oldest._since > _GRACE
        victim = oldest if idle else next(iter(self.kept), None)
        if victim is None:
            return False
        victim.transport.close()
        victim._forget()
        self.connections.discard(victim)
        return True

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        """Start the timer for the next request's headers; arriving bytes do not reset it."""
        headers = self.cycle.scope["headers"] if self.cycle is not None else ()
        plain = self.conn.their_state is h11.SEND_BODY and not any(
            name == b"transfer-encoding" for name, _ in headers
        )
        self.transport.max_size = _READ_PLAIN if plain else _READ  # type: ignore[attr-defined]
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.header_seconds, self._too_slow)

    def _forget(self) -> None:
        """Stop counting the connection as idle: it has a request, or has ended."""
        self.fresh.pop(self, None)
        self.kept.pop(self, None)
        self._unwatch()

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()

    @override
    def on_response_complete(self) -> None:
        self._unwatch()  # now idle, which `idle_seconds` limits
        self.kept[self] = None
        super().on_response_complete()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    @override
    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # it has been answered
            self.transport.close()
        elif len(self.conn.trailing_data[0]) > HEADER_BYTES:
            self._refuse(
                HeadersTooLarge(
                    "The request's headers are too large.",
                    expected=f"at most {HEADER_BYTES} bytes",
                    fix="Send data in the body.",
                )
            )
        else:
            super().send_400_response(msg)

    def _refuse(self, problem: Problem) -> None:
        self.metrics.refused.labels(problem.slug).inc()
        headers = [("content-type", MEDIA_TYPE), ("connection", "close")]
        events = (
            h11.Response(status_code=problem.status, headers=headers),
            h11.Data(data=to_json(problem.to_document())),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def limited(settings: Settings, metrics: Metrics) -> type[Connection]:
    """Make the connection class for a server with these settings."""
    limits: dict[str, Any] = {
        "most": settings.max_connections,
        "header_seconds": settings.header_seconds,
        "metrics": metrics,
        "fresh": {},
        "kept": {},
    }
    return type("Limited", (Connection,), limits)


def backlog_of(connections: int) -> int:
    """Return how many connections may wait to be accepted if `connections` are allowed."""
    return min(_BACKLOG, connections)


def room_for(connections: int) -> int:
    """Return how many of these connections the open-file limit allows; raise it if possible."""
    if sys.platform == "win32":
        return connections
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + backlog_of(connections) + _SPARE + _FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    least = max(8, (soft - _SPARE - _FILES) // 2)
    _log.warning("%d open files are allowed: at most %d connections at once", soft, least)
    return least
