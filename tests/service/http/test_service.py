"""The service around the questions: what is served, who may ask, and what is counted."""

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from tests.service.http.caller import Caller, starting, until

Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.mark.anyio
async def test_models_are_listed_with_those_refused_and_why(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/models")).json()
    assert [model["name"] for model in answer["models"]] == [
        "bit-patterns",
        "gaussian-mixture",
        "grey",
    ]
    assert answer["models"][1] | {"parameters": 0} == {
        "name": "gaussian-mixture",
        "kind": "vector",
        "shape": [2],
        "process": "gaussian",
        "steps": 100,
        "samplers": ["ancestral", "ddim", "dpmpp_2m"],
        "network": "gaussian-mixture",
        "parameters": 0,
        "conditional": True,
        "classifiers": [],
        "columns": None,
        "table": None,
    }
    assert answer["default"] is None
    refused = {entry["file"]: entry for entry in answer["refused"]}
    assert set(refused) == {"foreign/model.safetensors", "torn/model.safetensors"}
    assert "no noneq artefact" in refused["foreign/model.safetensors"]["reason"]
    assert "export" in refused["foreign/model.safetensors"]["fix"]
    assert refused["torn/model.safetensors"]["fix"]
    response = await client.post("/sample", json={"model": "torn"})
    assert response.status_code == 404
    assert "refused" in response.json()["detail"]


@pytest.mark.anyio
async def test_a_sampler_without_a_name_is_the_ancestral(client: httpx.AsyncClient) -> None:
    body = {"model": "gaussian-mixture", "num_samples": 2, "seed": 7, "sampler": {"steps": 5}}
    named = body | {"sampler": {"name": "ancestral", "steps": 5}}
    one, two = [await client.post("/sample", json=asked) for asked in (body, named)]
    assert one.status_code == 200
    assert one.json()["samples"] == two.json()["samples"]


@pytest.mark.anyio
async def test_a_field_that_a_sampler_has_not_is_not_looked_for_elsewhere(
    client: httpx.AsyncClient,
) -> None:
    body = {"model": "gaussian-mixture", "sampler": {"name": "ddim", "modle": 5}}
    problem = (await client.post("/sample", json=body)).json()
    assert problem["status"] == 422
    assert problem["detail"].endswith("modle: no such field; /docs shows those of sampler")


@pytest.mark.anyio
async def test_a_model_shows_its_artefact_and_card(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/models/gaussian-mixture")).json()
    assert answer["card"] == "# A mixture\n"
    assert answer["default_convention"] == "density"
    assert answer["artefact"]["process"]["T"] == 100
    assert answer["evaluation"] == []
    assert (await client.get("/models/grey")).json()["card"] is None


@pytest.mark.anyio
async def test_health_metrics_and_documentation(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health/live")).json()["status"] == "live"
    ready = (await client.get("/health/ready")).json()
    assert ready["models"] == ["bit-patterns", "gaussian-mixture", "grey"]
    await client.post("/sample", json={"model": "grey"})
    await client.post("/sample", json={"model": "nobody"})
    exposition = (await client.get("/metrics")).text
    assert re.search(r'noneq_requests_total{outcome="ok",route="/sample"} [1-9]', exposition)
    assert 'outcome="unknown-model",route="/sample"' in exposition
    page = await client.get("/docs")
    assert page.status_code == 200
    links = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert len(links) == 3
    for link in links:  # all of it from here: /docs opens without a network
        assert (await client.get(link)).status_code == 200, link


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path",
    ["/health/live", "/health/ready", "/metrics", "/models", "/models/grey", "/docs", "/"],
)
async def test_head_is_answered_as_get_is(client: httpx.AsyncClient, path: str) -> None:
    head, get = await client.head(path), await client.get(path)
    assert head.status_code == get.status_code
    assert head.headers.get("content-type") == get.headers.get("content-type")
    assert head.content == b""
    refused = await client.post(path)
    assert refused.status_code == 405
    assert refused.headers["allow"] == "GET, HEAD"


@pytest.mark.anyio
async def test_a_probe_by_head_sees_that_the_service_is_not_ready(
    tmp_path: Path, serve: Serve
) -> None:
    async with serve(Settings(models=tmp_path, device="cpu"), ready=False) as client:
        assert (await client.head("/health/live")).status_code == 200
        assert (await client.head("/health/ready")).status_code == 503


@pytest.mark.anyio
async def test_head_is_no_route_of_its_own_in_the_document(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert {method for operations in paths.values() for method in operations} == {
        "get",
        "post",
        "delete",
    }


@pytest.mark.anyio
async def test_openapi_documents_every_question(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for name in ("Sample", "Loglik", "Posterior", "Inpaint", "Denoise"):
        operation = document["paths"][f"/{name.lower()}"]["post"]
        content = operation["requestBody"]["content"]
        rows = set() if name == "Sample" else {"text/csv"}
        assert set(content) == {"application/json", "application/octet-stream"} | rows
        assert content["application/json"]["schema"]["$ref"].endswith(f"/{name}Request")
        assert schemas[f"{name}Request"]["examples"]
        assert {"application/json", "text/event-stream"} <= set(
            operation["responses"]["200"]["content"]
        )
        assert "application/problem+json" in operation["responses"]["422"]["content"]
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= set(schemas)


@pytest.mark.anyio
async def test_request_ids_are_echoed_when_sane(client: httpx.AsyncClient) -> None:
    sane = await client.get("/models", headers={"x-request-id": "trace-1.a"})
    assert sane.headers["x-request-id"] == "trace-1.a"
    for mad in ("", "a b", "x" * 129, "<script>"):
        response = await client.get("/models", headers={"x-request-id": mad})
        assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])


@pytest.mark.anyio
async def test_answers_carry_their_timings(client: httpx.AsyncClient) -> None:
    response = await client.post("/sample", json={"model": "grey"})
    assert float(response.headers["x-compute-time"]) > 0
    assert float(response.headers["x-queue-time"]) >= 0


@pytest.mark.anyio
async def test_one_model_needs_no_name(folder: Path, tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "only").symlink_to(folder / "grey")
    async with serve(Settings(models=tmp_path, device="cpu", batch_size=8)) as client:
        assert (await client.post("/sample", json={})).json()["model"] == "only"
    chosen = Settings(models=folder, device="cpu", batch_size=8, default_model="bit-patterns")
    async with serve(chosen) as client:
        assert (await client.post("/sample", json={})).json()["model"] == "bit-patterns"


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["", "absent"])
async def test_without_models_it_starts_and_says_what_to_do(
    tmp_path: Path, serve: Serve, name: str
) -> None:
    async with serve(Settings(models=tmp_path / name, device="cpu"), ready=False) as client:
        assert (await client.get("/health/live")).status_code == 200
        while "loaded" in (response := await client.get("/health/ready")).json()["detail"]:
            await asyncio.sleep(0.01)
        assert response.status_code == 503
        assert "NONEQ_MODELS" in response.json()["expected"]
        assert "retry-after" in response.headers
        assert (await client.post("/sample", json={})).status_code == 503
        assert (await client.get("/models")).json()["models"] == []


@pytest.mark.anyio
async def test_a_full_queue_says_when_to_come_back(single: Path, serve: Serve) -> None:
    settings = Settings(
        models=single, device="cpu", batch_size=8, max_queue_cost=1000, max_request_cost=1000
    )
    asked = {"model": "gaussian-mixture", "num_samples": 9}
    async with serve(settings) as client:
        responses = await asyncio.gather(*(client.post("/sample", json=asked) for _ in range(3)))
    accepted = [response for response in responses if response.status_code == 200]
    refused = [response for response in responses if response.status_code == 503]
    assert accepted
    assert refused
    for response in refused:
        assert response.json()["type"].endswith("queue-full")
        assert int(response.headers["retry-after"]) >= 1


@pytest.mark.anyio
async def test_a_client_that_leaves_frees_its_rows(single: Path) -> None:
    async with starting(Settings(models=single, device="cpu", batch_size=8)) as app:
        backend = app.state.backend
        asked = {"model": "gaussian-mixture", "num_samples": 4000}
        caller = Caller(app, asked, "application/json")
        await until(lambda: backend.engine.pending > 0)
        await caller.leave()
        assert (await caller.sent.get())["status"] == 499
        await until(lambda: backend.engine.pending == 0)
        assert 'outcome="client-left"' in backend.metrics.render().decode()


@pytest.mark.anyio
async def test_a_dead_engine_asks_for_a_restart(single: Path, serve: Serve) -> None:
    async with serve(Settings(models=single, device="cpu", batch_size=8)) as client:
        transport = client._transport
        assert isinstance(transport, httpx.ASGITransport)
        transport.app.state.backend.engine.stop()  # type: ignore[attr-defined]
        for path in ("/health/live", "/health/ready"):
            response = await client.get(path)
            assert response.json()["type"].endswith("engine-dead")
