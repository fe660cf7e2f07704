"""Connections on a real socket: what is too long or too slow is ended, idle ones make room."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from uvicorn.server import ServerState

from service.api import connection
from service.api.connection import limited, room_for
from service.api.middleware import Gate
from service.metrics import Metrics
from service.settings import Settings

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
GET = HEAD + b"\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n"


async def swallow(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


@contextmanager
def listening(metrics: Metrics | None = None, **limits: float) -> Iterator[int]:
    """The port of a server with these limits; its one route swallows bodies."""
    settings = Settings(**limits)  # type: ignore[arg-type]
    routes = [Route(path, swallow, methods=["GET", "POST"]) for path in ("/", "/health/live")]
    config = uvicorn.Config(
        Gate(Starlette(routes=routes), settings),
        port=0,
        http=limited(settings, metrics or Metrics()),
        timeout_keep_alive=int(settings.idle_seconds),
        loop="asyncio",
        lifespan="off",
        log_config=None,
    )
    listener = config.bind_socket()
    listener.listen(64)  # clients that come before the server wait for it
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)


def connect(port: int, raw: bytes = b"") -> socket.socket:
    found = socket.create_connection(("127.0.0.1", port), timeout=30)
    found.sendall(raw)
    return found


def told(line: socket.socket) -> bytes:
    """What comes until the connection ends, or a short answer is whole."""
    out = b""
    while not (out and b"\r\n\r\n" in out and not out.endswith(b"\r\n\r\n")):
        try:
            piece = line.recv(65536)
        except ConnectionResetError:
            break
        if not piece:
            break
        out += piece
    return out


def closed(line: socket.socket) -> bool:
    """Whether the server ends the connection; waits for it."""
    try:
        return line.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "headers",
    [
        b"X: " + b"a" * 60_000,
        b"".join(b"X-%d: y\r\n" % i for i in range(10_000)),
        b"".join(b"X-%d: y\r\n" % i for i in range(150)),
    ],
    ids=["one long header", "ten thousand", "more than a hundred"],
)
def test_headers_have_a_limit(headers: bytes) -> None:
    metrics = Metrics()
    with listening(metrics) as port, connect(port) as line:
        with suppress(OSError):  # it may be ended in the middle
            line.sendall(HEAD + headers + b"\r\n\r\n")
        found = told(line)
        assert found.startswith(b"HTTP/1.1 431"), found[:100]
        assert b"urn:noneq:problem:headers-too-large" in found
        with connect(port, GET) as other:  # the next client is answered
            assert told(other).startswith(b"HTTP/1.1 200")


def test_a_header_without_end_is_read_no_further() -> None:
    """A hundred megabytes cost what sixteen kilobytes do."""
    sent = 0
    with listening() as port, connect(port, HEAD + b"X: ") as line, suppress(OSError):
        for _ in range(100):
            line.sendall(b"a" * 10**6)
            sent += 10**6
    assert sent < 20 * 10**6


def test_headers_have_to_arrive_in_time_and_a_connection_to_be_used() -> None:
    """However often a byte comes."""
    with listening(header_seconds=0.5, idle_seconds=1) as port, ExitStack() as stack:
        silent, slow, used, kept = (stack.enter_context(connect(port)) for _ in range(4))
        slow.sendall(HEAD)
        for line in (used, kept):
            line.sendall(GET)
            assert told(line).startswith(b"HTTP/1.1 200")
        used.sendall(b"G")  # its next request begins, and never ends
        for _ in range(50):
            time.sleep(0.05)
            try:
                slow.sendall(b"X")
                used.sendall(b"X")
            except OSError:
                break
        assert all(closed(line) for line in (silent, slow, used, kept))


def test_a_slow_body_is_no_slow_header() -> None:
    with listening(header_seconds=0.3) as port, connect(port, POST) as line:
        for _ in range(5):
            time.sleep(0.2)
            line.sendall(b"x")
        assert told(line).endswith(b"\r\n\r\n5")


def test_idle_connections_make_room_and_requests_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_GRACE", 0.0)
    with listening(max_connections=8) as port, ExitStack() as stack:
        kept = stack.enter_context(connect(port, GET))
        assert told(kept).startswith(b"HTTP/1.1 200")
        busy = stack.enter_context(connect(port, POST + b"12"))
        time.sleep(0.2)  # until its headers have been read
        idle = [stack.enter_context(connect(port)) for _ in range(20)]
        # All but one: a new connection takes the place of the one that has waited longest.
        with connect(port, GET) as line:
            assert told(line).startswith(b"HTTP/1.1 200")
        assert all(closed(line) for line in idle[:13])
        kept.sendall(GET)
        assert told(kept).startswith(b"HTTP/1.1 200")  # it was used: others went first
        busy.sendall(b"345")
        assert told(busy).endswith(b"\r\n\r\n5")


def test_of_many_that_come_at_once_each_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_GRACE", 60.0)
    with listening(max_connections=8) as port, ExitStack() as stack:
        lines = [stack.enter_context(connect(port)) for _ in range(20)]
        for line in lines:
            line.sendall(GET)
        answers = [told(line) for line in lines]
        codes = sorted(answer[:12] for answer in answers)  # accepted in any order
        assert codes == [b"HTTP/1.1 200"] * 8 + [b"HTTP/1.1 503"] * 12


def test_where_all_have_requests_others_are_told_so_but_for_health() -> None:
    metrics = Metrics()
    with listening(metrics, max_connections=8) as port, ExitStack() as stack:
        busy = [stack.enter_context(connect(port, POST)) for _ in range(8)]
        time.sleep(0.2)  # until their headers have been read
        with connect(port, GET) as line:
            found = told(line)
            assert found.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in found
            assert b"urn:noneq:problem:too-many-connections" in found
        with connect(port, GET.replace(b"/ ", b"/health/live ")) as line:
            assert told(line).startswith(b"HTTP/1.1 200")
        busy[0].sendall(b"12345")
        assert told(busy[0]).endswith(b"\r\n\r\n5")
        with connect(port, GET) as line:
            assert told(line).startswith(b"HTTP/1.1 200")


class Transport(asyncio.Transport):
    """One that sends nothing."""

    max_size = 0

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass


@pytest.mark.anyio
async def test_a_body_in_crumbs_keeps_nobody_waiting() -> None:
    """Of what takes long to parse little is read at once, so that others have their turn."""
    assert hasattr(asyncio.selector_events._SelectorSocketTransport, "max_size")
    config = uvicorn.Config(Starlette(), lifespan="off", log_config=None)
    state: dict[str, Any] = {}
    connection = limited(Settings(), Metrics())(config, ServerState(), state)
    transport = Transport()
    connection.connection_made(transport)
    assert transport.max_size <= 4096
    connection.data_received(POST)
    assert transport.max_size >= 65536  # as it is declared
    connection.data_received(b"12345")
    assert transport.max_size <= 4096
    connection.connection_lost(None)
    connection = limited(Settings(), Metrics())(config, ServerState(), state)
    connection.connection_made(transport)
    connection.data_received(HEAD.replace(b"GET", b"POST") + b"Transfer-Encoding: chunked\r\n\r\n1")
    assert transport.max_size <= 4096
    connection.connection_lost(None)


def test_open_files_limit_connections() -> None:
    assert room_for(8) == 8
