"""The states of samples on the way, over HTTP: in data units, as they are."""

import json
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from PIL import Image
from safetensors.torch import load

from diffusion.model import DiffusionModel
from tests.service.http.caller import Caller, ask, assert_problem
from tests.service.http.conftest import grey_images

pytestmark = pytest.mark.anyio

BINARY = {"accept": "application/octet-stream"}
PNG = {"accept": "image/png"}


@pytest.mark.parametrize("model", ["gaussian-mixture", "bit-patterns"])
async def test_each_estimate_is_the_networks_at_its_state(
    model: str, client: httpx.AsyncClient, mixture: DiffusionModel, patterns: DiffusionModel
) -> None:
    host = mixture if model == "gaussian-mixture" else patterns
    asked = {"model": model, "num_samples": 5, "seed": 3}
    plain = await ask(client, "/sample", **asked)
    answer = await ask(client, "/sample", **asked, frames=4)
    states = answer.pop("trajectory")
    del plain["trajectory"]
    assert answer == plain  # to the bit: JSON says all of a float32
    assert states["t"] == [host.T * (4 - i) // 4 for i in range(5)]
    assert states["x"][-1] == states["x_0"][-1] == plain["samples"]
    for t, x, x_0 in zip(*(states[name][:-1] for name in ("t", "x", "x_0")), strict=True):
        z = host.space.to_model(torch.tensor(x))
        expected = host.predict(z, torch.full((5,), t)).x_0
        assert np.allclose(x_0, host.space.to_data(expected), rtol=1e-3, atol=1e-3)


async def test_states_are_neither_rounded_nor_clipped(client: httpx.AsyncClient) -> None:
    """x_T of an image is a standard normal in model units: beyond 0..255 a third of the time."""
    asked: dict[str, Any] = {"model": "grey", "num_samples": 20, "seed": 3, "frames": 2}
    answer = await ask(client, "/sample", **asked)
    states = np.array(answer["trajectory"]["x"])
    outside = ((states[0] < 0) | (states[0] > 255)).mean()
    share = 0.3173  # of a normal beyond one deviation, which here is half the range
    assert abs(outside - share) < 4.5 * (share * (1 - share) / states[0].size) ** 0.5
    assert not np.array_equal(states, states.round())
    assert np.array_equal(states[-1].round().clip(0, 255), answer["samples"])


async def test_every_form_says_the_same(app: FastAPI, client: httpx.AsyncClient) -> None:
    asked = {"model": "grey", "num_samples": 3, "seed": 3, "frames": 4}
    plain = await ask(client, "/sample", **asked)
    raw = (await client.post("/sample", json=asked, headers=BINARY)).content
    tensors = load(raw)
    for name, value in plain["trajectory"].items():
        assert torch.equal(tensors[f"trajectory_{name}"], torch.tensor(value))
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert "trajectory" not in json.loads(header["__metadata__"]["answer"])
    caller = Caller(app, asked, "text/event-stream")
    _, streamed = await caller.next("result")
    assert streamed == plain
    # No more text than the engine counts before it begins.
    numbers = 2 * np.size(plain["trajectory"]["x"])
    text = json.dumps([plain["trajectory"][name] for name in ("x", "x_0")], separators=(",", ":"))
    assert len(text) <= 12 * numbers


@pytest.mark.parametrize("model", ["grey", "gaussian-mixture", "bit-patterns"])
async def test_a_sheet_shows_each_sample_on_its_way(client: httpx.AsyncClient, model: str) -> None:
    asked = {"model": model, "num_samples": 2, "seed": 3, "frames": 4}
    response = await client.post("/sample", json=asked, headers=PNG)
    assert response.status_code == 200, response.text
    sheet = Image.open(BytesIO(response.content))
    sheet.load()
    if model == "grey":  # five tiles by two, each with a gap of 2 pixels, enlarged
        factor = 64 // max(grey_images()[0].space.shape)
        assert sheet.size == (factor * (5 * (8 + 2) + 2), factor * (2 * (6 + 2) + 2))
        drawn = (await ask(client, "/sample", **asked))["samples"][1][0][-1][-1]
        assert np.asarray(sheet)[-3 * factor, -3 * factor].tolist() == [drawn] * 3


@pytest.mark.parametrize("frames", [-1, 101, 2.5, "4"])
async def test_frames_are_a_few(client: httpx.AsyncClient, frames: object) -> None:
    response = await client.post("/sample", json={"model": "grey", "frames": frames})
    document = assert_problem(response, 422, "invalid-request")
    assert document["location"] == "frames"
