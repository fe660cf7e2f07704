"""A stream tells the truth on its way and ends in the plain route's answer, or its problem."""

import asyncio
import base64
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from PIL import Image
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.plan import Ancestral
from diffusion.sampling import sample
from service import streams
from service.app import create_app
from service.settings import Settings

pytestmark = pytest.mark.anyio

EVENTS = {"accept": "text/event-stream"}
MIXTURE: dict[str, Any] = {"model": "gaussian-mixture", "seed": 7}
SHORT = {"sampler": {"name": "ancestral", "steps": 8}}
BITS: dict[str, Any] = {"model": "bit-patterns", "seed": 7}
QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("/sample", MIXTURE | {"num_samples": 5}),
    ("/sample", {"model": "grey", "seed": 7, "num_samples": 2}),
    ("/loglik", MIXTURE | {"data": [[0.5, -1.0], [9.0, 9.0]], "per_step": True}),
    ("/inpaint", MIXTURE | {"observed": [[0.5, 0.0]], "known": [1, 0], "num_samples": 3}),
    ("/denoise", MIXTURE | {"observed": [[0.5, -1.0]], "noise_std": 0.5, "num_samples": 3}),
    ("/denoise", BITS | {"observed": [[1, 0, 0, 0]], "flip_probability": 0.1}),
]

Event = tuple[str, Any]


@pytest.fixture(autouse=True)
def a_step_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each network call is a tick of its own, and can be watched."""
    monkeypatch.setattr("service.engine.scheduler.BURST_SECONDS", 0.0)


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


def assert_progress(events: list[Event], total: int) -> None:
    """It goes up, the last is all of it and has the timings."""
    told = [json.loads(data) for name, data in events if name == "progress"]
    steps = [progress["step"] for progress in told]
    assert steps == sorted(steps)
    assert {progress["total"] for progress in told} == {total}
    last = told[-1]
    assert (last["state"], last["step"], last["seconds_left"]) == ("done", total, 0.0)
    assert last["queue_seconds"] >= 0
    assert last["compute_seconds"] > 0
    assert all(progress["state"] != "done" for progress in told[:-1])


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
            "method": "POST",
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
async def starting(settings: Settings) -> AsyncIterator[FastAPI]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        while app.state.backend.state() is not None:
            await asyncio.sleep(0.01)
        yield app


@pytest.fixture(scope="module")
async def app(folder: Path) -> AsyncIterator[FastAPI]:
    async with starting(Settings(models=folder, device="cpu", batch_size=4, slots=6)) as found:
        yield found


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at the job all the time."""
    monkeypatch.setattr(streams, "CADENCE", 0.002)


def network(app: FastAPI, name: str = "gaussian-mixture") -> torch.nn.Module:
    model: DiffusionModel = app.state.backend.catalogue.served[name].model
    return model.network


@contextmanager
def stepping(app: FastAPI, name: str = "gaussian-mixture") -> Iterator[threading.Semaphore]:
    """Network calls that wait for the semaphore."""
    go = threading.Semaphore(0)

    def wait(*_: object) -> None:
        assert go.acquire(timeout=60)

    hook = network(app, name).register_forward_pre_hook(wait)
    try:
        yield go
    finally:
        hook.remove()
        go.release(1000)


@contextmanager
def held(app: FastAPI, name: str = "gaussian-mixture") -> Iterator[threading.Event]:
    """Network calls that wait for the event."""
    gate = threading.Event()

    def wait(*_: object) -> None:
        assert gate.wait(60)

    hook = network(app, name).register_forward_pre_hook(wait)
    try:
        yield gate
    finally:
        gate.set()
        hook.remove()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(("path", "asked"), QUESTIONS)
async def test_a_stream_ends_in_the_plain_answer(
    client: httpx.AsyncClient, path: str, asked: dict[str, Any]
) -> None:
    plain = await client.post(path, json=asked)
    assert plain.status_code == 200
    response = await client.post(path, json=asked, headers=EVENTS)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    assert "x-request-id" in response.headers
    assert "x-compute-time" not in response.headers  # none that is true
    events = parse(response.text)
    assert events[0][0] == "progress"
    assert events[-1] == ("result", plain.text)
    assert_progress(events, plain.json()["network_evaluations"])


@pytest.mark.usefixtures("hasty")
async def test_progress_is_told_on_the_way(app: FastAPI) -> None:
    asked = MIXTURE | {"num_samples": 6, "sampler": {"name": "ancestral", "steps": 20}}
    with stepping(app) as go:
        caller = Caller(app, asked, "text/event-stream", go=go)
        events = [await caller.event()]
        while events[-1][0] != "result":
            events.append(await caller.event())
    await asyncio.wait_for(caller.task, 60)
    assert_progress(events, 120)
    running = [json.loads(data) for name, data in events[:-1] if name == "progress"][1:-1]
    assert len(running) > 10
    assert all(progress["state"] == "running" for progress in running if progress["step"])
    assert all(progress["seconds_left"] >= 0 for progress in running if progress["step"])


async def test_while_others_are_served_first_the_time_of_all_is_told(app: FastAPI) -> None:
    with held(app) as gate:
        first = Caller(app, MIXTURE | SHORT | {"num_samples": 4}, "text/event-stream")
        _, alone = await first.next("progress")
        assert (alone["state"], alone["step"], alone["seconds_left"]) == ("waiting", 0, None)
        second = Caller(app, MIXTURE | SHORT | {"num_samples": 1}, "text/event-stream")
        _, behind = await second.next("progress")
        assert behind["state"] == "waiting"
        assert behind["seconds_left"] is not None
        gate.set()
        for caller in (first, second):
            await caller.next("result")


@pytest.mark.usefixtures("hasty")
async def test_previews_are_the_estimates_of_each_step(
    app: FastAPI, mixture: DiffusionModel
) -> None:
    hats: list[Tensor] = []
    sampler = Ancestral(steps=8)
    sample(mixture, 6, seed=7, sampler=sampler, progress=lambda _, x_0: hats.append(x_0))
    asked = MIXTURE | {"num_samples": 6, "sampler": sampler.model_dump()}
    seen = []
    with stepping(app) as go:
        caller = Caller(app, asked, "text/event-stream; previews=5", go=go)
        while (found := await caller.next("preview", "result"))[0] == "preview":
            seen.append(found[1])
    samples = found[1]["samples"]
    first, rest = 4 * 8, 2 * 8  # four rows a job: 0..3 are done before 4 and 5 begin
    ways = set()
    for preview in seen:
        step, rows, estimates = preview["step"], preview["rows"], preview["estimates"]
        assert 0 < step < first + rest
        began = step > first
        ways.add(began)
        states = ["finished" if step >= first else "running"] * 4
        assert rows == [*states, "running" if began else "waiting"]
        if step < first:
            expected = mixture.space.to_data(hats[step // 4 - 1])[:4]
            assert np.allclose(estimates[:4], expected, rtol=1e-3, atol=1e-4)
        else:
            assert estimates[:4] == samples[:4]
        if began:
            expected = mixture.space.to_data(hats[(step - first) // 2 - 1])[4]
            assert np.allclose(estimates[4], expected, rtol=1e-3, atol=1e-4)
        else:
            assert estimates[4] is None
    assert ways == {False, True}


@pytest.mark.usefixtures("hasty")
async def test_images_are_previewed_as_pngs(app: FastAPI) -> None:
    asked = {"model": "grey", "seed": 1, "num_samples": 2}
    with stepping(app, "grey") as go:
        caller = Caller(app, asked, 'text/event-stream;q=0.9; Previews="9"', go=go)
        _, preview = await caller.next("preview")
        await caller.next("result")
    assert preview["rows"] == ["running", "running"]
    for estimate in preview["estimates"]:
        with Image.open(BytesIO(base64.b64decode(estimate))) as image:
            assert (image.format, image.size, image.mode) == ("PNG", (8, 6), "L")


@pytest.mark.usefixtures("hasty")
async def test_previews_keep_what_was_seen(app: FastAPI) -> None:
    asked = MIXTURE | {"observed": [[0.25, 9.0], [-1.5, 9.0]], "known": [1, 0], "num_samples": 2}
    asked |= SHORT
    previews = []
    with stepping(app) as go:
        caller = Caller(app, asked, "text/event-stream; previews=4", "/inpaint", go)
        while (found := await caller.next("preview", "result"))[0] == "preview":
            previews.append(found[1])
    assert previews
    for preview in previews:
        assert [estimate[0] for estimate in preview["estimates"]] == [0.25, 0.25, -1.5, -1.5]


@pytest.mark.usefixtures("hasty")
async def test_no_previews_are_sent_unasked_or_once_there_is_no_news(app: FastAPI) -> None:
    asked = MIXTURE | {"num_samples": 12, "sampler": {"name": "ancestral", "steps": 4}}
    for accept, most in (
        ("text/event-stream", 0),
        ("text/event-stream; previews=0", 0),
        ("text/event-stream; previews=1", 5),
    ):
        with stepping(app) as go:
            caller = Caller(app, asked, accept, go=go)
            finished, count = 0, 0
            while (found := await caller.next("preview", "result"))[0] == "preview":
                count += 1
                finished += found[1]["rows"] == ["finished"]
        assert (count > 0) == (most > 0)
        assert count <= most
        assert finished <= 1


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"model": "nobody"}, 404),
        (MIXTURE | {"num_samples": 0}, 422),
        (MIXTURE | {"num_samples": 10**9}, 422),
    ],
)
async def test_what_is_refused_is_no_stream(
    client: httpx.AsyncClient, asked: dict[str, Any], status: int
) -> None:
    response = await client.post("/sample", json=asked, headers=EVENTS)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.usefixtures("hasty")
async def test_what_fails_on_the_way_ends_in_the_plain_problem(app: FastAPI) -> None:
    asked = MIXTURE | {"num_samples": 3}
    calls = 0

    def spoil(_module: object, _given: object, out: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return out * torch.nan if calls % 10 == 0 else out

    hook = network(app).register_forward_hook(spoil)
    transport = httpx.ASGITransport(app)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://noneq") as client:
            plain = await client.post("/sample", json=asked)
            response = await client.post("/sample", json=asked, headers=EVENTS)
            exposition = (await client.get("/metrics")).text
    finally:
        hook.remove()
    assert plain.status_code == 500
    assert response.status_code == 200  # it had begun
    events = parse(response.text)
    assert [name for name, _ in events].count("error") == 1
    name, data = events[-1]
    document = json.loads(data)
    assert document["request_id"] == response.headers["x-request-id"]
    assert name == "error"
    assert document | {"request_id": 0} == plain.json() | {"request_id": 0}
    assert 'noneq_requests_total{outcome="numerical-failure",route="/sample"} 2.0' in exposition


async def test_an_unforeseen_failure_tells_no_secrets(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr("service.work.sample.SampleWork.answer", fail)
    asked = MIXTURE | {"sampler": {"name": "ddim", "steps": 1}}
    response = await client.post("/sample", json=asked, headers=EVENTS)
    name, data = parse(response.text)[-1]
    assert (name, json.loads(data)["type"]) == ("error", "urn:noneq:problem:internal-error")
    assert "secret" not in response.text


@pytest.mark.usefixtures("hasty")
async def test_silence_is_broken_by_comments(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT", 0.01)
    with held(app) as gate:
        caller = Caller(app, MIXTURE | SHORT, "text/event-stream")
        names = [(await caller.event())[0] for _ in range(4)]
        assert names[0] == "progress"
        assert names.count("") >= 2  # the first tick may begin in between, which is news once
        gate.set()
        await caller.next("result")


@pytest.mark.parametrize("previews", [0, 4])
async def test_a_client_that_leaves_frees_its_rows(app: FastAPI, previews: int) -> None:
    backend = app.state.backend
    with held(app) as gate:
        accept = f"text/event-stream; previews={previews}"
        caller = Caller(app, MIXTURE | {"num_samples": 2000}, accept)
        await caller.next("progress")
        assert backend.engine.owed == 200_000
        await caller.leave()  # at once, though the engine is in the middle of a tick
        gate.set()
        await until(lambda: backend.engine.owed == 0)
    assert 'noneq_requests_total{outcome="client-left",route="/sample"}' in (
        backend.metrics.render().decode()
    )


@pytest.mark.usefixtures("hasty")
async def test_a_client_that_leaves_while_a_preview_is_awaited(app: FastAPI) -> None:
    backend = app.state.backend
    with stepping(app) as go:
        go.release()
        caller = Caller(app, MIXTURE | {"num_samples": 100}, "text/event-stream; previews=4")
        while (await caller.next("progress"))[1]["step"] == 0:
            pass
        await caller.leave()  # the second call is under way, and the preview waits for its end
    await until(lambda: backend.engine.owed == 0)


async def test_a_drain_lets_an_open_stream_finish(folder: Path) -> None:
    async with starting(Settings(models=folder, device="cpu")) as app:
        backend = app.state.backend
        with held(app) as gate:
            caller = Caller(app, MIXTURE | SHORT, "text/event-stream; previews=1")
            await caller.next("progress")
            closing = asyncio.create_task(asyncio.to_thread(backend.close))
            await until(lambda: not backend.engine.ready)
            refused = Caller(app, MIXTURE, "text/event-stream")
            await asyncio.wait_for(refused.task, 60)
            assert (await refused.sent.get())["status"] == 503
            gate.set()
            await caller.next("result")
            await closing
        await asyncio.wait_for(caller.task, 60)


@pytest.mark.parametrize("fault", ["drained", "dead"])
async def test_when_the_engine_ends_first_the_stream_ends_in_its_problem(
    folder: Path, fault: str
) -> None:
    settings = Settings(models=folder, device="cpu", drain_seconds=0.01)
    async with starting(settings) as app:
        backend = app.state.backend
        with held(app) as gate:
            caller = Caller(app, MIXTURE | {"num_samples": 64}, "text/event-stream; previews=1")
            await caller.next("progress")
            if fault == "dead":

                def die(*_: object) -> None:
                    raise SystemExit

                network(app).register_forward_hook(die)
                gate.set()
            else:
                closing = asyncio.create_task(asyncio.to_thread(backend.close))
                await asyncio.sleep(0.1)
                gate.set()
                await closing
            _, problem = await caller.next("error")
        slug = {"drained": "draining", "dead": "engine-dead"}[fault]
        assert problem["type"] == f"urn:noneq:problem:{slug}"
        await asyncio.wait_for(caller.task, 60)
