"""The socket that the server listens on."""

import asyncio
import socket

from service.__main__ import _listen
from service.settings import Settings


def test_small_packets_are_sent_at_once() -> None:
    """An answer is written in two: with Nagle's delay the second would wait 40 ms for the first."""
    found: list[int] = []

    async def accept() -> None:
        async def look(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            found.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = _listen(Settings(port=0))
        async with await asyncio.start_server(look, sock=listener):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            await reader.read()
            writer.close()

    asyncio.run(accept())
    assert found
    assert all(found)
