"""Answers on their way out: they count until they are sent, and a client may not stop reading."""

import asyncio
import json
from pathlib import Path

import pytest
from starlette.types import Message, Scope

from service.api import body as bodies
from service.api.body import Answer, Stalled, send_within
from service.engine.results import Hold
from service.settings import Settings
from tests.service.http.caller import starting

pytestmark = pytest.mark.anyio


async def test_a_body_goes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "PIECE", 3)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    for more in (False, True):
        for body in (b"", b"a", b"abc", b"abcdefgh"):
            sent.clear()
            message = {"type": "http.response.body", "body": body, "more_body": more}
            await send_within(send, message, 9)
            assert b"".join(piece["body"] for piece in sent) == body
            assert max(len(piece["body"]) for piece in sent) <= 3
            assert [piece["more_body"] for piece in sent] == [True] * (len(sent) - 1) + [more]


async def nothing() -> Message:
    await asyncio.sleep(60)
    raise AssertionError("nobody waits so long")


@pytest.mark.parametrize("reads", [True, False])
async def test_an_answer_holds_its_bytes_until_it_is_sent_or_nobody_reads_it(reads: bool) -> None:
    held = [100]
    hold = Hold(100, lambda change: held.append(held[-1] + change))
    hold.resize(30)

    async def send(message: Message) -> None:
        assert held[-1] == 30
        if message["type"] == "http.response.body" and not reads:
            await asyncio.sleep(60)

    scope: Scope = {"type": "http", "state": {}}
    await Answer(b"x" * 30, "text/plain", hold, 0.05)(scope, nothing, send)
    assert held[-1] == 0
    assert scope["state"] == ({} if reads else {"outcome": "client-left"})


async def test_a_piece_that_nobody_takes() -> None:
    async def send(_: Message) -> None:
        await asyncio.sleep(60)

    with pytest.raises(Stalled):
        await send_within(send, {"type": "x", "body": b"", "more_body": False}, 0.01)


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_whoever_stops_reading_frees_what_he_held(single: Path, accept: str) -> None:
    settings = Settings(models=single, device="cpu", batch_size=8, write_seconds=0.5)
    async with starting(settings) as app:
        engine = app.state.backend.engine
        body = json.dumps({"num_samples": 500, "sampler": {"steps": 2}, "seed": 1}).encode()
        stuck, seen = asyncio.Event(), list[int]()

        given = iter([body])

        async def receive() -> Message:
            for part in given:
                return {"type": "http.request", "body": part, "more_body": False}
            return await nothing()

        async def send(message: Message) -> None:
            if len(message.get("body", b"")) > 1000:
                stuck.set()
                seen.append(engine.held)
                await asyncio.sleep(60)

        headers = [(b"content-type", b"application/json"), (b"accept", accept.encode())]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/sample",
            "raw_path": b"/sample",
            "query_string": b"",
            "headers": [*headers, (b"host", b"localhost")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        await asyncio.wait_for(app(scope, receive, send), 60)
        assert stuck.is_set()
        assert seen[0] > 5000  # it counts while it is on its way
        assert engine.held == 0
