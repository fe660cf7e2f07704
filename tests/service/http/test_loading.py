"""Models are loaded, reloaded and unloaded while the service answers, by those who may."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import torch
from fastapi import FastAPI

import noneq
from diffusion.checkpoint import save
from service.api import control
from service.engine.device import models as loaded
from service.memory import DeviceMemory
from service.settings import Settings
from tests.service.http.caller import ask, assert_problem, connect, held, starting, until
from tests.service.http.conftest import gaussian_mixture, grey_images, save_animals

pytestmark = pytest.mark.anyio

NAME = "gaussian-mixture"
ADMIN = {"authorization": "Bearer boss"}
FILE = Path(NAME) / "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model, which is warm within a moment."""
    save(tmp_path / FILE, *gaussian_mixture())
    return tmp_path


@pytest.fixture
async def app(folder: Path) -> AsyncIterator[FastAPI]:
    settings = Settings(models=folder, device="cpu", batch_size=8, slots=32, admin_keys="boss")
    async with starting(settings) as found:
        yield found


def write_other(folder: Path, shift: float) -> None:
    """Other weights in place of the mixture's, written beside and renamed."""
    model, metadata = gaussian_mixture()
    with torch.no_grad():
        dict(model.network.named_buffers())["means"].add_(shift)
    save(folder / "new" / "model.safetensors", model, metadata)
    (folder / "new" / "model.safetensors").replace(folder / FILE)
    (folder / "new").rmdir()


async def change(client: httpx.AsyncClient, name: str, what: str) -> dict[str, object]:
    response = await client.post(f"/models/{name}/{what}", headers=ADMIN, timeout=120)
    assert response.status_code == 200, response.text
    document: dict[str, object] = response.json()
    return document


async def test_a_reload_under_load_fails_no_request(app: FastAPI, folder: Path) -> None:
    """Answers are of one version or the other, each with its checksum, and never mixed."""
    drawn: dict[str, set[str]] = {}
    order: list[str] = []
    ended = asyncio.Event()

    async def load(client: httpx.AsyncClient) -> None:
        while not ended.is_set():
            asked = {"model": NAME, "num_samples": 2, "seed": 5, "sampler": {"steps": 4}}
            answer = await ask(client, "/sample", **asked)
            numbers = [round(x, 3) for row in answer["samples"] for x in row]
            drawn.setdefault(answer["checksum"], set()).add(str(numbers))
            order.append(answer["checksum"])

    async with connect(app) as client:
        callers = [asyncio.create_task(load(client)) for _ in range(4)]
        seen = [(await client.get(f"/models/{NAME}")).json()["checksum"]]
        for shift in (0.5, 1.0):
            await until(lambda: seen[-1] in order)
            write_other(folder, shift)
            changed = await change(client, NAME, "load")
            assert changed["replaced"] == seen[-1]
            seen.append(str(changed["checksum"]))
            assert (await client.get(f"/models/{NAME}")).json()["checksum"] == seen[-1]
            await until(lambda: seen[-1] in order)
        ended.set()
        await asyncio.gather(*callers)
    assert set(drawn) == set(seen)
    assert len(set(seen)) == 3
    assert [len(numbers) for numbers in drawn.values()] == [1, 1, 1]
    assert len(set.union(*drawn.values())) == 3


async def test_an_accepted_request_ends_on_its_version(app: FastAPI, folder: Path) -> None:
    asked = {"model": NAME, "num_samples": 2, "seed": 5, "sampler": {"steps": 4}}
    backend = app.state.backend
    async with connect(app) as client:
        before = await ask(client, "/sample", **asked)
        with held(app, NAME) as gate:
            waiting = asyncio.create_task(ask(client, "/sample", **asked))
            await until(lambda: backend.engine.pending > 0)
            write_other(folder, 0.5)
            loading = asyncio.create_task(change(client, NAME, "load"))
            await asyncio.sleep(0.05)
            gate.set()
            await loading
        assert (await waiting)["samples"] == before["samples"]
        after = await ask(client, "/sample", **asked)
        assert after["samples"] != before["samples"]
        assert after["checksum"] != before["checksum"]


async def test_a_request_that_is_prepared_during_the_switch_is_prepared_again(
    app: FastAPI, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = app.state.backend
    submit, submitted = backend.submit, []

    def late(job: object, *args: object, **keys: object) -> object:
        if not submitted:
            write_other(folder, 0.5)
            backend.repository.load(NAME)
        submitted.append(job)
        return submit(job, *args, **keys)

    monkeypatch.setattr(type(backend), "submit", lambda _, *args, **keys: late(*args, **keys))
    async with connect(app) as client:
        answer = await ask(client, "/sample", model=NAME, sampler={"steps": 2})
    assert [job.version for job in submitted] == [0, 1]  # type: ignore[attr-defined]
    assert answer["checksum"] == backend.catalogue.served[NAME].checksum


async def test_a_file_that_cannot_be_served_leaves_the_old_one(app: FastAPI, folder: Path) -> None:
    whole = (folder / FILE).read_bytes()
    async with connect(app) as client:
        before = await ask(client, "/sample", model=NAME, seed=1, sampler={"steps": 2})
        (folder / FILE).write_bytes(whole[:-100])
        response = await client.post(f"/models/{NAME}/load", headers=ADMIN)
        problem = assert_problem(response, 422, "model-failed")
        assert "not a readable" in problem["detail"]
        assert str(folder) not in response.text
        models = (await client.get("/models")).json()
        assert NAME in [model["name"] for model in models["models"]]
        (refused,) = models["refused"]
        assert refused["file"] == FILE.as_posix()
        assert refused["reason"] == problem["detail"]
        after = await ask(client, "/sample", model=NAME, seed=1, sampler={"steps": 2})
        assert after == before
        (folder / FILE).write_bytes(whole)
        changed = await change(client, NAME, "load")
        assert changed["checksum"] == changed["replaced"] == before["checksum"]
        assert not (await client.get("/models")).json()["refused"]


async def test_a_model_that_fails_its_warm_up_leaves_the_old_one(
    app: FastAPI, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no kernel for this")

    write_other(folder, 0.5)
    async with connect(app) as client:
        with monkeypatch.context() as broken:
            broken.setattr(loaded, "warm_up", fail)
            response = await client.post(f"/models/{NAME}/load", headers=ADMIN, timeout=60)
        problem = assert_problem(response, 422, "model-failed")
        assert "no kernel for this" in problem["detail"]
        await ask(client, "/sample", model=NAME, sampler={"steps": 2})
        metrics = (await client.get("/metrics")).text
        assert 'noneq_model_loads_total{outcome="failed"} 1.0' in metrics
        await change(client, NAME, "load")
        metrics = (await client.get("/metrics")).text
        assert 'noneq_model_loads_total{outcome="loaded"} 1.0' in metrics


async def test_what_does_not_fit_is_refused_with_the_numbers(
    app: FastAPI, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_other(folder, 0.5)
    size = (folder / FILE).stat().st_size
    monkeypatch.setattr(DeviceMemory, "used", property(lambda memory: memory.limit - size + 1))
    async with connect(app) as client:
        response = await client.post(f"/models/{NAME}/load", headers=ADMIN)
        problem = assert_problem(response, 507, "no-device-memory")
        assert problem["received"] == size
        assert problem["expected"] == f"at most {size - 1} bytes"
        assert problem["limit"] - problem["used"] == size - 1
        await ask(client, "/sample", model=NAME, sampler={"steps": 2})


async def test_a_model_comes_and_goes(app: FastAPI, folder: Path) -> None:
    """A classifier too; models that it fits can be asked about its labels from then on."""
    save(folder / "grey" / "model.safetensors", *grey_images())
    async with connect(app) as client:
        await change(client, "grey", "load")
        changed = await change(client, NAME, "unload")
        assert changed["checksum"] is None
        response = await client.post("/sample", json={"model": NAME})
        assert_problem(response, 404, "unknown-model")
        assert (await client.get("/models")).json()["default"] == "grey"
        save_animals(folder)
        await change(client, "animals", "load")
        (grey,) = (await client.get("/models")).json()["models"]
        assert [each["name"] for each in grey["classifiers"]] == ["animals"]
        await change(client, "animals", "unload")
        await change(client, "grey", "unload")
        assert_problem(await client.get("/health/ready"), 503, "not-ready")
        assert_problem(await client.post("/sample", json={}), 503, "not-ready")
        assert (await client.get("/health/live")).status_code == 200
        await change(client, NAME, "load")
        assert (await client.get("/health/ready")).json()["models"] == [NAME]
        await ask(client, "/sample", sampler={"steps": 2})


async def test_only_folders_of_the_models_folder_can_be_named(app: FastAPI, folder: Path) -> None:
    save(folder.parent / "outside" / "model.safetensors", *gaussian_mixture())
    names = ["nothing", "..", "%2e%2e", "..%2f..%2fetc", f"{NAME}%00", f"{NAME}/x", "..%2foutside"]
    async with connect(app) as client:
        for name in names:
            response = await client.post(f"/models/{name}/load", headers=ADMIN)
            assert response.status_code in (404, 405), name
    assert set(app.state.backend.catalogue.served) == {NAME}


async def test_who_has_no_admin_key_may_not(app: FastAPI) -> None:
    async with connect(app) as client:
        for headers in ({}, {"x-api-key": "guess"}):
            response = await client.post(f"/models/{NAME}/unload", headers=headers)
            assert_problem(response, 403, "forbidden")
            response = await client.post(f"/v2/repository/models/{NAME}/unload", headers=headers)
            assert response.status_code == 403
            assert "may not load or unload" in response.json()["error"]
        await ask(client, "/sample", model=NAME, sampler={"steps": 2})  # which needs no key


def test_without_admin_keys_the_services_own_user_may_on_its_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not who comes through a proxy, whether it says so or connects as another user."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as caller:
            client = caller.getsockname()
            scope = {"type": "http", "client": client, "server": ("127.0.0.1", port), "headers": []}
            assert control.is_local(scope)
            mapped = (f"::ffff:{client[0]}", client[1])
            assert control.is_local({**scope, "client": mapped})
            through = {**scope, "headers": [(b"x-forwarded-for", b"127.0.0.1")]}
            assert not control.is_local(through)
            assert not control.is_local({**scope, "client": ("192.0.2.1", client[1])})
            assert not control.is_local({**scope, "client": None})
            if control._SOCKETS[0].exists():
                monkeypatch.setattr(os, "geteuid", lambda: 4321)
                assert not control.is_local(scope)


async def test_tritons_repository_routes_do_the_same(app: FastAPI, folder: Path) -> None:
    save_animals(folder)
    async with connect(app) as client:
        path = f"/v2/repository/models/{NAME}"
        await change(client, "animals", "load")
        options = {"parameters": {"unload_dependents": False}}
        response = await client.post(f"{path}/unload", json=options, headers=ADMIN)
        assert (response.status_code, response.content) == (200, b"")
        index = (await client.post("/v2/repository/index", json={})).json()
        assert {each["name"]: each["state"] for each in index} == {
            NAME: "UNAVAILABLE",
            "animals": "READY",
        }
        ready = (await client.post("/v2/repository/index", json={"ready": True})).json()
        assert [each["name"] for each in ready] == ["animals"]
        response = await client.post(f"{path}/load", headers=ADMIN, timeout=60)
        assert (response.status_code, response.content) == (200, b"")
        assert NAME in app.state.backend.catalogue.served
        foreign = {"parameters": {"file:1/model.onnx": "AAAA"}}
        response = await client.post(f"{path}/load", json=foreign, headers=ADMIN)
        assert response.status_code == 422
        assert "file:1/model.onnx" in response.json()["error"]
        for where in ("/v2/repository/index", f"{path}/load"):
            response = await client.post(where, content=bytes(70_000), headers=ADMIN)
            assert response.status_code == 413


async def test_the_client_loads_and_unloads(app: FastAPI, folder: Path) -> None:
    transport = httpx.ASGITransport(app)
    async with noneq.AsyncClient("http://noneq", api_key="boss", transport=transport) as client:
        write_other(folder, 0.5)
        change = await client.load(NAME)
        assert change.checksum != change.replaced
        assert (await client.sample(1, model=NAME, steps=2)).checksum == change.checksum
        assert (await client.unload(NAME)).checksum is None
        with pytest.raises(noneq.UnknownModel):
            await client.unload(NAME)
    async with noneq.AsyncClient("http://noneq", transport=transport) as client:
        with pytest.raises(noneq.Unauthorized, match="may not load or unload"):
            await client.load(NAME)


async def test_changes_wait_for_each_other(app: FastAPI, folder: Path) -> None:
    """Whoever leaves does not undo what was begun."""
    backend = app.state.backend
    async with connect(app) as client:
        write_other(folder, 0.5)
        leaving = asyncio.create_task(client.post(f"/models/{NAME}/load", headers=ADMIN))
        await until(lambda: backend.changing.locked())
        leaving.cancel()
        results = await asyncio.gather(*(change(client, NAME, "load") for _ in range(3)))
        assert len({result["checksum"] for result in results}) == 1
        assert backend.catalogue.served[NAME].checksum == results[0]["checksum"]
        assert threading.active_count() < 60
