"""A service on a real socket that says what it is told to, and hangs up."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

CUT = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 500\r\n\r\nabc"
CUT_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    b"5\r\nevent\r\n"
)


def response(status: str, body: bytes, **headers: str) -> bytes:
    """A whole response."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


@contextmanager
def scripted(answers: Sequence[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """Its URL, and the requests as they came; one answer a connection, then it is closed.

    An empty answer is none: the connection stays open until the end.
    """
    asked: list[bytes] = []
    ended = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(20)

    def serve() -> None:
        for answer in answers:
            try:
                line, _ = listening.accept()
            except OSError:
                return
            with line:
                asked.append(whole_request(line))
                if answer:
                    line.sendall(answer)
                else:
                    ended.wait(20)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
    finally:
        ended.set()
        listening.shutdown(socket.SHUT_RDWR)  # wakes who waits for a connection
        listening.close()
        thread.join(20)


def whole_request(line: socket.socket) -> bytes:
    found = b""
    while b"\r\n\r\n" not in found:
        found += line.recv(65536)
    head, _, body = found.partition(b"\r\n\r\n")
    length = next(
        (int(x.split(b":")[1]) for x in head.lower().split(b"\r\n") if b"content-length" in x), 0
    )
    while len(body) < length:
        body += line.recv(65536)
    return head + b"\r\n\r\n" + body


@contextmanager
def cutting(url: str, after: int, cuts: int = 1) -> Iterator[tuple[str, list[bytes]]]:
    """A way to `url` that breaks once `after` bytes of an answer went through.

    It breaks the first `cuts` connections and lets the others be. Yields its URL, and the answers
    as they went through.
    """
    host, _, port = url.removeprefix("http://").partition(":")
    passed: list[bytes] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def forward(line: socket.socket, most: int | None) -> None:
        with line, socket.create_connection((host, int(port))) as service:
            service.sendall(whole_request(line).replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
            passed.append(b"")
            place = len(passed) - 1
            while piece := service.recv(65536):
                sent = piece if most is None else piece[: most - len(passed[place])]
                line.sendall(sent)
                passed[place] += sent
                if most is not None and len(passed[place]) >= most:
                    return

    def serve() -> None:
        while True:
            try:
                line, _ = listening.accept()
            except OSError:
                return
            forward(line, after if len(passed) < cuts else None)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", passed
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(20)
