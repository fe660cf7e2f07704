"""A minimal HTTP client with one request per connection.

It is cheap because the load generator shares the servers' cores.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson

from benchmarks.server import HOST

BINARY = "application/octet-stream"


@dataclass(frozen=True)
class Answer:
    """A status and a body."""

    status: int
    body: bytes


async def post(port: int, path: str, body: Any, accept: str = "*/*") -> Answer:  # noqa: ANN401, JSON
    """Send `body` as JSON by POST."""
    raw = orjson.dumps(body)
    head = f"content-type: application/json\r\ncontent-length: {len(raw)}\r\naccept: {accept}\r\n"
    return await _ask(port, f"POST {path}", head, raw)


async def get(port: int, path: str) -> Answer:
    """Send a GET request."""
    return await _ask(port, f"GET {path}", "", b"")


async def _ask(port: int, line: str, head: str, body: bytes) -> Answer:
    """Send a request and read until the connection closes.

    Raises:
        OSError: the connection failed.
        ConnectionError: the connection closed in the middle of the answer.
    """
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        start = f"{line} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n{head}\r\n"
        writer.write(start.encode() + body)
        answer, _, found = (await reader.read(-1)).partition(b"\r\n\r\n")
    finally:
        writer.close()
    if not answer.startswith(b"HTTP/1.1 "):
        raise ConnectionError("the connection ended before an answer")
    return Answer(int(answer[9:12]), found)
