"""Previews: what the network takes the samples to be, on their way."""

import base64
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.samplers import Ancestral, sample
from tests.service.http.caller import (
    MIXTURE,
    SHORT,
    Caller,
    stepping,
)

pytestmark = pytest.mark.anyio


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


SEEN = [0.25, 0.25, -1.5, -1.5]


METHODS = [{"name": "product"}, {"name": "twisted", "particles": 2}, {"name": "repaint"}]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
async def test_previews_keep_what_was_seen(app: FastAPI, method: dict[str, Any]) -> None:
    asked = MIXTURE | {"method": method}
    asked |= {"observed": [[0.25, 9.0], [-1.5, 9.0]], "known": [1, 0], "num_samples": 2}
    asked |= SHORT
    previews = []
    with stepping(app) as go:
        caller = Caller(app, asked, "text/event-stream; previews=4", "/inpaint", go)
        while (found := await caller.next("preview", "result"))[0] == "preview":
            previews.append(found[1])
    assert previews
    for preview in previews:
        assert len(preview["estimates"]) == 4
        for row, x, seen in zip(*map(preview.get, ("rows", "estimates")), SEEN, strict=True):
            assert (x is None) == (row == "waiting")
            assert x is None or x[0] == seen


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
