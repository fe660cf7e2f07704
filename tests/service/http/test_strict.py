"""A service with an operator's limits and keys."""

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from service.settings import Settings
from tests.service.http.caller import assert_problem

pytestmark = pytest.mark.anyio

MIXTURE: dict[str, Any] = {"model": "gaussian-mixture"}


@pytest.fixture(scope="module")
async def strict(
    folder: Path, serve: Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(
        models=folder,
        device="cpu",
        batch_size=8,
        max_body_bytes=2000,
        max_request_cost=1000,
        max_samples=20,
        max_data=3,
        api_keys=SecretStr("alpha, beta"),
        default_model="grey",
    )
    async with serve(settings) as found:
        found.headers["x-api-key"] = "beta"
        yield found


async def test_without_a_key_only_health_and_docs_answer(strict: httpx.AsyncClient) -> None:
    for headers in (
        {"x-api-key": ""},
        {"x-api-key": "gamma"},
        {"x-api-key": "", "authorization": "Bearer gamma"},
        {"x-api-key": "", "authorization": "Basic beta"},
    ):
        for path in ("/models", "/metrics"):
            response = await strict.get(path, headers=headers)
            document = assert_problem(response, 401, "unauthorized")
            assert "alpha" not in json.dumps(document)
            assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/health/live", "/health/ready", "/docs", "/openapi.json"):
            assert (await strict.get(path, headers=headers)).status_code == 200
    bearer = {"x-api-key": "", "authorization": "Bearer alpha"}
    assert (await strict.get("/models", headers=bearer)).status_code == 200
    assert (await strict.get("/models")).status_code == 200


async def test_an_oversized_body_is_refused_as_it_arrives(strict: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    declared = await strict.post("/sample", content=b" " * 2001)
    undeclared = await strict.post("/sample", content=pieces())
    assert "content-length" not in undeclared.request.headers
    for response in (declared, undeclared):
        document = assert_problem(response, 413, "body-too-large")
        assert document["expected"] == "at most 2000 bytes"
    just_fits = json.dumps({"sampler": {"name": "ddim", "steps": 1}}).ljust(2000).encode()
    assert (await strict.post("/sample", content=just_fits)).status_code == 200


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/sample", {"model": "gaussian-mixture", "num_samples": 11}),
        ("/loglik", {"model": "gaussian-mixture", "data": [[0, 0]] * 3, "terms": 400}),
        ("/inpaint", MIXTURE | {"observed": [[0, 0]], "known": [1, 0], "num_samples": 11}),
        ("/denoise", MIXTURE | {"observed": [[0, 0]] * 2, "noise_std": 1e6, "num_samples": 10}),
    ],
)
async def test_too_much_work_is_refused_before_any(
    strict: httpx.AsyncClient, path: str, asked: dict[str, Any]
) -> None:
    if path == "/loglik":
        assert (await strict.post(path, json=asked)).status_code == 200  # 107 terms are all
        return
    document = assert_problem(await strict.post(path, json=asked), 422, "too-expensive")
    assert document["received"] > 1000
    assert document["expected"] == "at most 1000"


async def test_limits_of_data_and_of_all_their_samples(strict: httpx.AsyncClient) -> None:
    many = MIXTURE | {"data": [[0, 0]] * 4}
    document = assert_problem(await strict.post("/loglik", json=many), 422, "too-expensive")
    assert (document["received"], document["expected"]) == (4, "at most 3")
    asked = MIXTURE | {"observed": [[0, 0]] * 3, "known": [1, 0], "num_samples": 7}
    document = assert_problem(await strict.post("/inpaint", json=asked), 422, "too-expensive")
    assert (document["received"], document["expected"]) == (21, "at most 20")
    counted = (await strict.get("/metrics")).text
    refused = re.search(r'noneq_refused_total\{cause="too-expensive"\} ([0-9.]+)', counted)
    assert refused is not None
    assert float(refused[1]) >= 2
