"""Answers on their way out: in pieces, each within a time, counted until the last is sent.

A client that stops reading would keep its answer in memory for ever, and nobody would know of it.
"""

import asyncio
from typing import Final, final

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from typing_extensions import override

from service.engine.results import Hold

PIECE: Final = 2**16  # bytes handed to the connection at once; it keeps no more than about two


class Stalled(Exception):
    """The client takes nothing more."""


async def send_within(send: Send, message: Message, seconds: float) -> None:
    """Send a message with a part of the body, in pieces.

    Raises:
        Stalled: the client did not take a piece within so many seconds.
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
    """A whole answer.

    Args:
        body: of it.
        media_type: of it.
        hold: the bytes that it is counted as.
        seconds: within which the client takes each piece.
    """

    def __init__(self, body: bytes, media_type: str, hold: Hold, seconds: float) -> None:
        super().__init__(body, media_type=media_type)
        self._hold, self._seconds = hold, seconds

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, and give back what it held."""
        try:
            head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(head)
            whole = {"type": "http.response.body", "body": self.body, "more_body": False}
            await send_within(send, whole, self._seconds)
        except Stalled:
            # Unfinished: the server closes the connection.
            scope.setdefault("state", {})["outcome"] = "client-left"
        finally:
            self._hold.release()
