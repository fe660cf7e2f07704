"""Held-out data over HTTP: what was written beside the artefact, and what can be asked with it."""

import logging
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from diffusion import heldout
from diffusion.checkpoint import save
from service.catalogue import load_folder
from service.settings import Settings
from tests.service.http.caller import ask, assert_problem
from tests.service.http.conftest import bit_patterns, gaussian_mixture, grey_images, serving

pytestmark = pytest.mark.anyio

GREYS = torch.arange(20 * 48).reshape(20, 1, 6, 8) % 256
POINTS = torch.tensor([[0.25, -1.5], [0.1234567, 2.0]])
BINARY = {"accept": "application/octet-stream"}
PNG = {"accept": "image/png"}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and points with examples, bits without."""
    found = tmp_path_factory.mktemp("shipped")
    for make, data in ((grey_images, GREYS), (gaussian_mixture, POINTS), (bit_patterns, None)):
        model, metadata = make()
        path = found / metadata.name
        save(path / "model.safetensors", model, metadata)
        if data is not None:
            heldout.write(path, data, model.space)
    return found


@pytest.fixture(scope="module")
async def shop(shipped: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(Settings(models=shipped, device="cpu", batch_size=8, slots=64)) as found:
        yield found


async def test_examples_come_back_as_data(shop: httpx.AsyncClient) -> None:
    answer = (await shop.get("/models/grey/examples")).json()
    assert answer == {"model": "grey", "split": "test", "data": GREYS[:16].tolist()}
    few = (await shop.get("/models/grey/examples", params={"count": 3})).json()
    assert few["data"] == GREYS[:3].tolist()
    every = (await shop.get("/models/grey/examples", params={"count": 32})).json()
    assert every["data"] == GREYS.tolist()
    points = (await shop.get("/models/gaussian-mixture/examples")).json()["data"]
    assert torch.equal(torch.tensor(points), POINTS)
    scored = await ask(shop, "/loglik", model="gaussian-mixture", data=points, terms=4)
    assert len(scored["results"]) == len(POINTS)


async def test_examples_as_tensors_and_as_a_sheet(shop: httpx.AsyncClient) -> None:
    raw = (await shop.get("/models/grey/examples", params={"count": 5}, headers=BINARY)).content
    assert torch.equal(load(raw)["data"], GREYS[:5].float())
    one = await shop.get("/models/grey/examples", params={"count": 1}, headers=PNG)
    assert one.headers["content-type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(BytesIO(one.content))), GREYS[0, 0].numpy())
    sheet = await shop.get("/models/gaussian-mixture/examples", headers=PNG)
    Image.open(BytesIO(sheet.content)).load()


async def test_a_model_without_examples_says_so(shop: httpx.AsyncClient) -> None:
    answer = await shop.get("/models/bit-patterns/examples")
    assert answer.json() == {"model": "bit-patterns", "split": "test", "data": []}
    drawn = await shop.get("/models/bit-patterns/examples", headers=PNG)
    document = assert_problem(drawn, 406, "not-acceptable")
    assert "training heldout bit-patterns" in document["fix"]


@pytest.mark.parametrize("count", ["0", "33", "many"])
async def test_a_count_that_cannot_be(shop: httpx.AsyncClient, count: str) -> None:
    refused = await shop.get("/models/grey/examples", params={"count": count})
    assert_problem(refused, 422, "invalid-request")
    assert_problem(await shop.get("/models/nobody/examples"), 404, "unknown-model")


async def test_the_document_knows_them(shop: httpx.AsyncClient) -> None:
    paths: dict[str, Any] = (await shop.get("/openapi.json")).json()["paths"]
    operation = paths["/models/{name}/examples"]["get"]
    assert {"application/json", "image/png", "application/octet-stream"} <= set(
        operation["responses"]["200"]["content"]
    )
    assert {"name", "count"} == {parameter["name"] for parameter in operation["parameters"]}


def test_spoilt_examples_do_not_keep_a_model_from_being_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, metadata = bit_patterns()
    save(tmp_path / "bits" / "model.safetensors", model, metadata)
    (tmp_path / "bits" / heldout.FILE).write_bytes(b"torn")
    with caplog.at_level(logging.ERROR):
        found = load_folder(tmp_path, "cpu")
    assert found.served["bits"].examples.shape == (0, 4)
    assert "bits is served without examples" in caplog.text
