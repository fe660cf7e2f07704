"""A connection of the server: how long its headers may be and take, and how many there may be.

uvicorn's own parser in Python is taken whatever else is installed, for the faster ones have no
limit on headers. Beyond `max_connections` the connection that has waited longest without a request
makes room, so that idle ones, however many, keep nobody out.
"""

import asyncio
import logging
import sys
from typing import Any, ClassVar

import h11
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.encoding import to_json
from service.metrics import Metrics
from service.problems import MEDIA_TYPE, HeadersTooLarge, Problem, TooManyConnections
from service.settings import Settings

_log = logging.getLogger(__name__)

HEADER_BYTES = 16 * 2**10  # of a request line and its headers; twice that where they come at once
BACKLOG = 256  # connections that the kernel has accepted and the server has not
CROWDED = "crowded"  # in a request's state: it came over a connection beyond the limit
_SPARE = 64  # connections beyond the limit, for /health/ and to be told so
_FILES = 128  # that the process has open besides: models, log, event loop


class Connection(H11Protocol):
    """uvicorn's connection with limits. Abstract: `limited` makes a class of the settings."""

    most: ClassVar[int]
    header_seconds: ClassVar[float]
    metrics: ClassVar[Metrics]

    _timer: asyncio.TimerHandle | None = None
    _since = 0.0

    @property
    def idle(self) -> bool:
        """Whether no request is being served or read, beyond its headers."""
        return self.cycle is None or self.cycle.response_complete

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        self._watch()
        if len(self.connections) <= self.most or self._make_room():
            return
        if len(self.connections) > self.most + _SPARE:
            self.metrics.refused.labels(TooManyConnections.slug).inc()
            transport.abort()
        else:
            self.app_state = {**self.app_state, CROWDED: True}

    def _make_room(self) -> bool:
        """Close one connection without a request, first of those that never had one."""
        others = [one for one in self.connections if one is not self]
        idle = [one for one in others if isinstance(one, Connection) and one.idle]
        if not idle:
            return False
        victim = min(idle, key=lambda one: (one.cycle is not None, one._since))
        victim.transport.close()
        self.connections.discard(victim)
        return True

    @override
    def data_received(self, data: bytes) -> None:
        # In pieces as long as headers are expected: the parser looks at their length only after
        # all that came at once.
        while data and not self.transport.is_closing():
            whole = self.conn.their_state is h11.SEND_BODY
            piece = data if whole else data[:HEADER_BYTES]
            data = data[len(piece) :]
            super().data_received(piece)
        self._watch()

    def _watch(self) -> None:
        """Without a request there is so long until one is there, however many bytes come."""
        if not self.idle:
            self._unwatch()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.header_seconds, self._too_slow)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.idle and not self.transport.is_closing():
            self.transport.close()

    @override
    def on_response_complete(self) -> None:
        self._unwatch()  # from here on it is idle, which has a limit of its own
        super().on_response_complete()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
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
    """The connections of a server with these limits, which counts what it refuses."""
    limits: dict[str, Any] = {
        "most": settings.max_connections,
        "header_seconds": settings.header_seconds,
        "metrics": metrics,
    }
    return type("Limited", (Connection,), limits)


def room_for(connections: int) -> int:
    """As many of so many connections as the process may have files; raises its limit if it may."""
    if sys.platform == "win32":
        return connections
    import resource

    beside = BACKLOG + _SPARE + _FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + beside
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    least = max(8, soft - beside)
    _log.warning("%d open files are allowed: at most %d connections at once", soft, least)
    return least
