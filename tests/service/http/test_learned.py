"""Method `learned` over HTTP: the offline answer, the exact posterior, and who gets it unasked."""

import base64
import math
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from PIL import Image

from diffusion.checkpoint import save
from diffusion.model import DiffusionModel
from diffusion.networks import GaussianMixture
from diffusion.posterior import Learned, sample_posterior
from diffusion.samplers import Ancestral
from noneq.models import read_model
from service.settings import Settings
from tests.service.http.caller import Caller, ask, assert_problem, connect, starting, stepping
from tests.service.http.conftest import (
    PATTERNS,
    SCALE,
    SHIFT,
    WEIGHTS,
    bit_patterns,
    gaussian_mixture,
    told_images,
)

pytestmark = pytest.mark.anyio
SIGMAS = 4.5
MIXTURE: dict[str, Any] = {"model": "gaussian-mixture", "seed": 7, "method": "learned"}


@pytest.fixture(scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FastAPI]:
    """Mixtures, which are conditional in closed form, and a network certified for exact pixels."""
    folder: Path = tmp_path_factory.mktemp("told")
    for make in (gaussian_mixture, bit_patterns, told_images):
        model, metadata = make()
        save(folder / metadata.name / "model.safetensors", model, metadata)
    async with starting(Settings(models=folder, device="cpu", batch_size=64, slots=512)) as found:
        yield found


@pytest.fixture(scope="module")
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(app) as found:
        yield found


@pytest.mark.parametrize("method", ["learned", {"name": "learned"}])
async def test_the_served_answer_is_the_librarys(
    client: httpx.AsyncClient, mixture: DiffusionModel, method: object
) -> None:
    """By name or object; 40 steps of one evaluation each, however few were asked for."""
    seen = {"observed": [[1.2, 0.0], [0.0, -2.0]], "known": [[1, 0], [0, 1]]}
    answer = await ask(client, "/inpaint", **MIXTURE | {"method": method}, num_samples=3, **seen)
    assert (answer["method"], answer["biased"]) == ("learned", False)
    assert answer["sampler"]["steps"] == 40
    assert answer["network_evaluations"] == 2 * 3 * 40
    y, known = torch.tensor(seen["observed"]), torch.tensor(seen["known"]).bool()
    observation = mixture.process.saw(mixture.space.to_model(y), known, torch.zeros_like(y))
    offline = sample_posterior(
        mixture, observation, 3, seed=7, method=Learned(), sampler=Ancestral(steps=40)
    )
    samples = torch.tensor([each["samples"] for each in answer["results"]])
    expected = mixture.space.to_data(offline.samples.flatten(0, 1)).reshape(samples.shape)
    torch.testing.assert_close(samples.float(), expected, rtol=1e-4, atol=1e-3)
    there = known[:, None].expand_as(samples)
    assert torch.equal(samples[there], y[:, None].expand_as(samples)[there])
    for each in answer["results"]:
        told = each["diagnostics"]
        assert "calibrate" in told["warning"]  # nobody has measured the mixture
        assert told["log_evidence"] is None
        assert (told["particles"], told["systems"], told["calibration"]) == (1, 1, None)


@pytest.mark.parametrize("noise", [0.0, 0.8])
async def test_a_mixture_has_its_exact_posterior(
    client: httpx.AsyncClient, mixture: DiffusionModel, noise: float
) -> None:
    """Mean and deviation of 300 draws, one element seen exactly or both with noise."""
    network, n = mixture.network, 300
    assert isinstance(network, GaussianMixture)
    y = torch.tensor([1.6, -2.5])
    path, more = ("/inpaint", {"known": [1, 0]}) if noise == 0 else ("/denoise", {})
    answer = await ask(
        client,
        path,
        **MIXTURE,
        observed=[y.tolist()],
        num_samples=n,
        noise_std=noise,
        sampler={"steps": 100},
        **more,
    )
    z, eye = (y - torch.tensor(SHIFT)) / SCALE, torch.eye(2)
    rows = eye[:1] if noise == 0 else eye
    var = torch.full((len(rows),), (noise / SCALE) ** 2 + 1e-10)
    exact, _ = network.posterior(rows, z[: len(rows)], var)
    std = exact.covariance().diagonal().sqrt() * SCALE
    mean = exact.mean() * SCALE + torch.tensor(SHIFT)
    (found,) = answer["results"]
    free = slice(1, 2) if noise == 0 else slice(2)
    off = (torch.tensor(found["mean"]) - mean)[free].abs()
    assert bool((off < SIGMAS * (std / n**0.5)[free] + 0.02).all())
    # A mixture's fourth moment is bounded by the spread of its components: twice a Normal's.
    off = (torch.tensor(found["std"]) / std - 1)[free].abs()
    assert bool((off < SIGMAS * 2 / math.sqrt(2 * n)).all())


async def test_bits_have_the_posterior_of_enumeration(client: httpx.AsyncClient) -> None:
    n, y, known = 200, torch.tensor([0, 1, 0, 0]), torch.tensor([1, 0, 0, 0]).bool()
    answer = await ask(
        client,
        "/posterior",
        model="bit-patterns",
        seed=7,
        method="learned",
        observed=[y.tolist()],
        known=[1, 0, 0, 0],
        flip_probability=0.15,
        num_samples=n,
        sampler={"steps": 200},
    )
    wrong = (PATTERNS[:, known] != y[known]).sum(1)
    joint = WEIGHTS * 0.15**wrong * 0.85 ** (1 - wrong)
    samples = torch.tensor(answer["results"][0]["samples"])
    for pattern, p in zip(PATTERNS, (joint / joint.sum()).tolist(), strict=True):
        share = float((samples == pattern).all(1).double().mean())
        assert abs(share - p) < SIGMAS * math.sqrt(p * (1 - p) / n) + 0.01


HALF = {"model": "told", "observed": [np.full((6, 8), 200).tolist()], "seed": 3}
LEFT = np.concatenate((np.ones((6, 4)), np.zeros((6, 4))), 1).tolist()


async def test_what_is_certified_is_learned_unasked(client: httpx.AsyncClient) -> None:
    """With the certificate in a sentence, and no warning."""
    answer = await ask(client, "/inpaint", **HALF, known=LEFT, num_samples=4)
    assert (answer["method"], answer["sampler"]["steps"]) == ("learned", 40)
    told = answer["results"][0]["diagnostics"]
    assert told["warning"] is None
    assert "95% intervals cover 94.8%" in told["calibration"]
    samples = np.array(answer["results"][0]["samples"])
    assert (samples[..., :4] == 200).all()


async def test_what_is_not_certified_is_twisted_or_warned_of(client: httpx.AsyncClient) -> None:
    """Noise in some pixels failed its calibration; asked for by name, the answer says so."""
    noisy = HALF | {"known": LEFT, "noise_std": 40.0, "sampler": {"steps": 8}}
    by_default = await ask(client, "/inpaint", **noisy)
    assert by_default["method"] == "twisted"
    answer = await ask(client, "/inpaint", **noisy, method="learned")
    assert "refute" in answer["results"][0]["diagnostics"]["warning"]
    few = await ask(client, "/inpaint", **HALF, known=LEFT, sampler={"steps": 8})
    assert "chains of 40 steps, these have 8" in few["results"][0]["diagnostics"]["warning"]


async def test_a_models_facts_have_its_calibration(client: httpx.AsyncClient) -> None:
    """The families that passed, and what was measured of all; the client reads both."""
    document = (await client.get("/models/told")).json()
    assert document["certified"] == [{"kind": "exact", "patterns": ["half"]}]
    facts = read_model(document)
    assert [each["family"]["kind"] for each in facts.calibration] == ["exact", "noisy"]
    assert facts.calibration[0]["coverage"][0]["share"] == 0.948
    assert facts.certified == tuple(document["certified"])
    assert "calibration" not in facts.artefact
    other = read_model((await client.get("/models/gaussian-mixture")).json())
    assert other.certified == other.calibration == ()


@pytest.mark.usefixtures("hasty")
async def test_previews_have_what_was_seen(app: FastAPI) -> None:
    """From the first step on."""
    asked, previews = HALF | {"known": LEFT}, 0
    with stepping(app, "told") as go:
        caller = Caller(app, asked, "text/event-stream; previews=1", "/inpaint", go)
        while (found := await caller.next("preview", "result"))[0] == "preview":
            (estimate,) = found[1]["estimates"]
            pixels = np.asarray(Image.open(BytesIO(base64.b64decode(estimate))))
            assert (pixels[:, :4] == 200).all()
            previews += 1
    assert previews
    assert found[1]["method"] == "learned"


async def test_a_contact_sheet(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/inpaint", json=HALF | {"known": LEFT}, headers={"accept": "image/png"}
    )
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("model", "fields", "expected"),
    [
        ("grey", {"observed": [np.zeros((6, 8)).tolist()]}, "cannot be told"),
        (
            "gaussian-mixture",
            {"observed": [[0.3]], "operator": {"kind": "dense", "rows": [[1.0, 0.5]]}},
            "operator",
        ),
        ("gaussian-mixture", {"expert": "gaussian-mixture"}, "no other factor"),
    ],
)
async def test_what_a_network_cannot_be_told_is_refused(
    model: str,
    fields: dict[str, Any],
    expected: str,
    folder: Path,
) -> None:
    settings = Settings(models=folder, device="cpu", batch_size=16, slots=64)
    async with starting(settings) as app, connect(app) as client:
        asked = {"model": model, "method": "learned"} | fields
        response = await client.post("/posterior", json=asked)
    document = assert_problem(response, 422, "invalid-request")
    assert document["location"] == "method"
    assert expected in document["detail"]


async def test_the_reference_names_it(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    method = document["components"]["schemas"]["InpaintRequest"]["properties"]["method"]
    assert "learned" in method["anyOf"][0]["enum"]
    assert "`learned`: A plain chain" in method["description"]
