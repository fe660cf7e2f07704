"""A question can be followed event by event, and is taken back by who stops listening."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

from noneq import (
    AsyncClient,
    Busy,
    Client,
    ConnectionLost,
    Preview,
    Progress,
    Samples,
    UnknownModel,
    requests,
)
from service.api import streams
from service.app import create_app
from service.engine.engine import Engine
from service.settings import Settings
from tests.noneq.conftest import ONCE, on_a_socket
from tests.noneq.scripted import CUT_STREAM, scripted
from tests.noneq.test_connections import FULL, GOOD
from tests.service.http.caller import before_calls, network, stepping

Followed = list[Any]
LONG = requests.sample(51, model="gaussian-mixture", seed=4)  # 5100 network evaluations


@pytest.fixture(scope="module")
def app(folder: Path) -> FastAPI:
    return create_app(Settings(models=folder, device="cpu", batch_size=8, slots=512))


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with on_a_socket(app) as found:
        yield found


def engine(app: FastAPI) -> Engine:
    found: Engine = app.state.backend.engine
    return found


def wait(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.005)


def wait_in_mid_work(app: FastAPI, go: threading.Semaphore) -> None:
    """Until nothing is owed, though most of LONG's network calls were never let pass."""
    for _ in range(300):  # of 700; it learns of the leaving between two of them
        go.release()
        time.sleep(0.02)
        if engine(app).pending == 0:
            return
    pytest.fail("the rows are not freed")


def follow(url: str) -> Followed:
    request = requests.sample(3, model="grey", seed=7, previews=2)
    with Client(url) as client:
        return list(client.stream(request))


async def follow_async(url: str) -> Followed:
    request = requests.sample(3, model="grey", seed=7, previews=2)
    async with AsyncClient(url) as client:
        return [event async for event in client.stream(request)]


@pytest.mark.parametrize("follows", [follow, lambda url: asyncio.run(follow_async(url))])
def test_what_is_followed_ends_in_the_answer(
    app: FastAPI, url: str, follows: Callable[[str], Followed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "CADENCE", 0.01)
    with before_calls(network(app, "grey"), lambda *_: time.sleep(0.05)):
        *news, answer = follows(url)
    assert isinstance(answer, Samples)
    with Client(url) as client:
        assert np.allclose(
            answer.numpy(), client.sample(3, model="grey", seed=7).numpy(), atol=1
        )  # a level may be rounded the other way
    progress = [one for one in news if isinstance(one, Progress)]
    assert len(news) > len(progress) > 0
    assert all(len(one.rows) == 2 for one in news if isinstance(one, Preview))
    assert (progress[-1].state, progress[-1].step) == ("done", answer.network_evaluations)
    assert [one.step for one in progress] == sorted(one.step for one in progress)


def left(client: Client) -> None:
    for event in client.stream(LONG):
        assert isinstance(event, Progress)
        break


def told(client: Client) -> None:
    class Enough(Exception):
        pass

    def listen(_: object) -> None:
        raise Enough

    with pytest.raises(Enough):
        client.sample(51, model="gaussian-mixture", seed=4, progress=listen)


@pytest.mark.parametrize("leave", [left, told])
def test_who_leaves_frees_the_services_rows(
    app: FastAPI, url: str, leave: Callable[[Client], None]
) -> None:
    with stepping(app) as go, Client(url) as client:
        leave(client)
        wait_in_mid_work(app, go)


@pytest.mark.parametrize("closes", [True, False])
def test_coroutines_free_them_likewise(app: FastAPI, url: str, closes: bool) -> None:
    async def leave(client: AsyncClient) -> None:
        stream = client.stream(LONG)
        if closes:
            async with aclosing(stream) as events:
                await first(events)
        else:
            await first(stream)

    async def first(events: AsyncIterator[object]) -> None:
        async for event in events:
            assert isinstance(event, Progress)
            break

    async def run() -> None:
        async with AsyncClient(url) as client:
            await leave(client)
            await asyncio.to_thread(wait_in_mid_work, app, go)

    with stepping(app) as go:
        asyncio.run(run())


def test_what_is_followed_is_asked_again_and_refused_alike(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noneq.retries._FIRST", 0.0)
    with scripted([CUT_STREAM, GOOD]) as (cut, asked), Client(cut) as client:
        (answer,) = client.stream(requests.sample(1))
        assert isinstance(answer, Samples)
    assert len(asked) == 2
    assert asked[0] == asked[1]
    assert b"accept: text/event-stream" in asked[0]
    refused = ((CUT_STREAM, ConnectionLost), (FULL, Busy))
    for said, kind in refused:
        with (
            scripted([said]) as (line, _),
            Client(line, patience=ONCE) as client,
            pytest.raises(kind),
        ):
            list(client.stream(requests.sample(1)))
    with Client(url) as client, pytest.raises(UnknownModel):
        list(client.stream(requests.sample(1, model="nobody")))


def test_what_is_no_work_has_nothing_to_follow(url: str) -> None:
    with Client(url) as client:
        (found,) = client.stream(requests.models())
    assert not isinstance(found, Progress | Preview)
    assert len(found.models) == 3
