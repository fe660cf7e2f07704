"""A connection of the server: how long its headers may be and take, and how many there may be.

uvicorn's own parser in Python is taken whatever else is installed, for the faster ones have no
limit on headers. Beyond `max_connections` the connection that has waited longest without a request
makes room, so that idle ones, however many, keep nobody out. One that has just come is no idle one:
its request is on its way.
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
_BACKLOG = 1024  # connections that the kernel has accepted and the server has not
_GRACE = 1.0  # seconds that a connection has for its first bytes before it counts as idle
CROWDED = "crowded"  # in a request's state: it came over a connection beyond the limit
_SPARE = 64  # connections beyond the limit, for /health/ and to be told so
_FILES = 128  # that the process has open besides: models, log, event loop
# What is read before others have their turn: parsing chunks of one byte takes 10 us a byte.
_READ, _READ_PLAIN = 4 * 2**10, 256 * 2**10


class Connection(H11Protocol):
    """uvicorn's connection with limits. Abstract: `limited` makes a class of the settings.

    Attributes:
        most: connections at once.
        header_seconds: until a request's headers are whole.
        metrics: where refusals are counted.
        fresh: those that never had a request, in order of arrival.
        kept: those that wait for their next one, in order of their last.
    """

    most: ClassVar[int]
    header_seconds: ClassVar[float]
    metrics: ClassVar[Metrics]
    fresh: ClassVar[dict["Connection", None]]
    kept: ClassVar[dict["Connection", None]]

    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # None before the first request
    _timer: asyncio.TimerHandle | None = None
    _since: float = 0.0  # when it came, by the loop's clock

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
        """Close the connection that has waited longest, first of those that never had a request."""
        oldest = next(iter(self.fresh))  # this one is there too
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
        """Without a request there is so long until one is there, however many bytes come."""
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
        """It has a request, or has ended."""
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
        self._unwatch()  # from here on it is idle, which has a limit of its own
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
    """The connections of a server with these limits, which counts what it refuses."""
    limits: dict[str, Any] = {
        "most": settings.max_connections,
        "header_seconds": settings.header_seconds,
        "metrics": metrics,
        "fresh": {},
        "kept": {},
    }
    return type("Limited", (Connection,), limits)


def backlog_of(connections: int) -> int:
    """How many connections may wait to be accepted, where there may be so many: all at once are."""
    return min(_BACKLOG, connections)


def room_for(connections: int) -> int:
    """As many of so many connections as the process may have files; raises its limit if it may."""
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
