"""A caller of the app itself, and network calls that wait until they are let go."""

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from unittest import mock

import httpx
import torch
from fastapi import FastAPI

from diffusion.model import DiffusionModel
from service.app import create_app
from service.settings import Settings

MIXTURE: dict[str, Any] = {"model": "gaussian-mixture", "seed": 7}
SHORT = {"sampler": {"name": "ancestral", "steps": 8}}
Event = tuple[str, Any]


def parse(text: str) -> list[Event]:
    """Name and data of each event; a comment's name is ""."""
    found: list[Event] = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            found.append(("", block[1:]))
            continue
        name, data = block.split("\n")
        assert (name[:7], data[:6]) == ("event: ", "data: ")
        found.append((name[7:], data[6:]))
    return found


async def ask(client: httpx.AsyncClient, path: str, **asked: object) -> dict[str, Any]:
    """The answer to a question that has one."""
    response = await client.post(path, json=asked, timeout=120)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def assert_problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["type"] == f"urn:noneq:problem:{slug}"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["request_id"] == response.headers["x-request-id"]
    assert {"x-queue-time", "x-compute-time"} <= set(response.headers)
    return document


class Caller:
    """Asks the app itself; sees each event when it is sent, and may leave.

    With `go`, each progress it reads lets a network call pass.
    """

    def __init__(
        self,
        app: FastAPI,
        asked: dict[str, Any],
        accept: str,
        path: str = "/sample",
        go: threading.Semaphore | None = None,
        method: str = "POST",
    ) -> None:
        self.go = go
        self.body = json.dumps(asked).encode()
        self.sent: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self.left = asyncio.Event()
        self.events: deque[Event] = deque()
        self.status, self.whole = 0, False
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"accept", accept.encode())],
            "server": ("noneq", 80),
            "client": ("caller", 1),
        }
        self.task = asyncio.ensure_future(app(scope, self.receive, self.sent.put))

    async def receive(self) -> dict[str, Any]:
        if self.body:
            body, self.body = self.body, b""
            return {"type": "http.request", "body": body}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def event(self) -> Event:
        """The next one."""
        while not self.events:
            message = await asyncio.wait_for(self.sent.get(), 60)
            if message["type"] == "http.response.start":
                self.status = message["status"]
                continue
            if message["body"]:
                self.events.extend(parse(message["body"].decode()))
            self.whole = not message["more_body"]
        found = self.events.popleft()
        if self.go is not None and found[0] == "progress":
            self.go.release()
        return found

    async def next(self, *names: str) -> tuple[str, Any]:
        """The next one of these names, its data read."""
        while True:
            name, data = await self.event()
            if name in names:
                return name, json.loads(data)

    async def leave(self) -> None:
        self.left.set()
        await asyncio.wait_for(self.task, 60)


@asynccontextmanager
async def starting(settings: Settings, ready: bool = True) -> AsyncIterator[FastAPI]:
    """The app in this process, from its lifespan's start, or from readiness, to its end."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        while ready and app.state.backend.state() is not None:
            await asyncio.sleep(0.01)
        yield app


def connect(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://noneq")


def network(app: FastAPI, name: str = "gaussian-mixture") -> torch.nn.Module:
    model: DiffusionModel = app.state.backend.catalogue.served[name].model
    return model.network


@contextmanager
def before_calls(network: torch.nn.Module, act: Callable[..., None]) -> Iterator[None]:
    """Something is done before each network call, and each is a tick of its own."""
    hook = network.register_forward_pre_hook(act)
    try:
        with mock.patch("service.engine.scheduling.scheduler.MULTI_STEP_SECONDS", 0.0):
            yield
    finally:
        hook.remove()


@contextmanager
def stepping(app: FastAPI, name: str = "gaussian-mixture") -> Iterator[threading.Semaphore]:
    """Network calls that wait for the semaphore, each a tick of its own."""
    go = threading.Semaphore(0)

    def wait(*_: object) -> None:
        assert go.acquire(timeout=60)

    try:
        with before_calls(network(app, name), wait):
            yield go
    finally:
        go.release()  # the call that is under way; no other waits


@contextmanager
def held(app: FastAPI, name: str = "gaussian-mixture") -> Iterator[threading.Event]:
    """Network calls that wait for the event, each a tick of its own."""
    gate = threading.Event()

    def wait(*_: object) -> None:
        assert gate.wait(60)

    try:
        with before_calls(network(app, name), wait):
            yield gate
    finally:
        gate.set()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)
