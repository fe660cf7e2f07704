"""What goes in and what comes out: JSON, PNG and safetensors say the same thing."""

import json
from collections.abc import Callable
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from diffusion.posterior.diagnostics import Summary
from service.handlers.loglik import TERM_BYTES
from tests.service.http.caller import ask

pytestmark = pytest.mark.anyio

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
BINARY = {"accept": "application/octet-stream"}


def metadata(raw: bytes) -> dict[str, Any]:
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    answer: dict[str, Any] = json.loads(header["__metadata__"]["answer"])
    return answer


async def test_a_sample_is_answered_as_documented(client: httpx.AsyncClient) -> None:
    answer = await ask(client, "/sample", model="gaussian-mixture", num_samples=3, seed=7)
    assert set(answer) == {
        "model", "seed", "exact", "sampler", "shape", "columns", "table", "samples",
        "trajectory", "network_evaluations", "checksum",
    }  # fmt: skip
    assert answer["exact"] is False
    assert answer["model"] == "gaussian-mixture"
    assert answer["seed"] == 7
    assert answer["sampler"] == {"name": "ancestral", "steps": 100}
    assert answer["shape"] == [2]
    assert np.shape(answer["samples"]) == (3, 2)
    assert answer["trajectory"] is None
    assert answer["network_evaluations"] == 300


@pytest.mark.parametrize(
    "sampler",
    [
        {"name": "ancestral", "steps": 5},
        {"name": "ddim", "steps": 4, "eta": 0},
        {"name": "dpmpp_2m", "steps": 3},
    ],
)
async def test_every_sampler_is_served_and_stated(
    client: httpx.AsyncClient, sampler: dict[str, Any]
) -> None:
    answer = await ask(
        client, "/sample", model="gaussian-mixture", num_samples=2, seed=1, sampler=sampler
    )
    assert answer["sampler"] == sampler
    assert answer["network_evaluations"] == 2 * sampler["steps"]


async def test_an_absent_seed_is_drawn_stated_and_repeats_the_answer(
    client: httpx.AsyncClient,
) -> None:
    asked = {"model": "gaussian-mixture", "sampler": {"name": "ancestral", "steps": 5}}
    first = await ask(client, "/sample", **asked)
    other = await ask(client, "/sample", **asked)
    assert first["seed"] != other["seed"]
    assert await ask(client, "/sample", seed=first["seed"], **asked) == first


async def test_binary_samples_are_those_of_json(client: httpx.AsyncClient) -> None:
    asked = {"model": "gaussian-mixture", "num_samples": 3, "seed": 5}
    plain = (await client.post("/sample", json=asked)).json()
    response = await client.post("/sample", json=asked, headers=BINARY)
    assert response.headers["content-type"] == "application/octet-stream"
    samples = load(response.content)["samples"]
    assert samples.dtype == torch.float32
    assert torch.equal(samples, torch.tensor(plain.pop("samples")))  # JSON is exact as well
    del plain["trajectory"]  # there was none
    assert metadata(response.content) == plain


async def test_one_image_as_png_is_the_image_itself(client: httpx.AsyncClient) -> None:
    asked = {"model": "grey", "seed": 5}
    plain = (await client.post("/sample", json=asked)).json()
    response = await client.post("/sample", json=asked, headers={"accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    pixels = np.asarray(Image.open(BytesIO(response.content)))
    assert np.array_equal(pixels, np.array(plain["samples"])[0, 0])
    assert all(isinstance(value, int) for value in np.array(plain["samples"]).flatten().tolist())


@pytest.mark.parametrize("model", ["grey", "gaussian-mixture", "bit-patterns"])
@pytest.mark.parametrize("count", [1, 7])
async def test_every_kind_of_data_has_a_contact_sheet(
    client: httpx.AsyncClient, model: str, count: int
) -> None:
    sampler = {"name": "ancestral", "steps": 4}
    asked = {"model": model, "num_samples": count, "seed": 1, "sampler": sampler}
    response = await client.post("/sample", json=asked, headers={"accept": "image/png"})
    assert response.status_code == 200
    sheet = Image.open(BytesIO(response.content))
    sheet.load()
    assert sheet.format == "PNG"


@pytest.mark.parametrize(
    ("model", "observed", "known"),
    [
        ("grey", GREY.tolist(), [[1] * 8] * 3 + [[0] * 8] * 3),
        ("gaussian-mixture", [1.0, 0.0], [1, 0]),
        ("bit-patterns", [1, 0, 0, 0], [1, 1, 0, 0]),
    ],
)
async def test_every_posterior_has_a_contact_sheet(
    client: httpx.AsyncClient, model: str, observed: list[Any], known: list[Any]
) -> None:
    asked = {
        "model": model,
        "observed": [observed, observed],
        "known": known,
        "num_samples": 18,
        "sampler": {"name": "ancestral", "steps": 4},
    }
    response = await client.post("/inpaint", json=asked, headers={"accept": "image/png"})
    assert response.status_code == 200, response.text
    Image.open(BytesIO(response.content)).load()


async def test_an_image_may_be_an_array_a_png_or_a_data_url(
    client: httpx.AsyncClient, png: Callable[..., str]
) -> None:
    forms = [
        GREY.tolist(),
        [GREY.tolist()],
        png(GREY),
        "data:image/png;base64," + png(GREY),
        png(np.repeat(GREY[..., None], 3, axis=-1)),  # grey, saved as colour
    ]
    for form in forms:
        answer = await ask(client, "/loglik", model="grey", data=[form], seed=3)
        if form is forms[0]:
            expected = answer
        assert answer == expected
    mixed = await ask(client, "/loglik", model="grey", data=[forms[1], forms[2]], seed=3)
    assert mixed["results"][0] == expected["results"][0]


async def test_a_likelihood_has_its_parts_units_and_terms(client: httpx.AsyncClient) -> None:
    answer = await ask(client, "/loglik", model="grey", data=[GREY.tolist()], seed=3, per_step=True)
    (found,) = answer["results"]
    assert (answer["convention"], answer["estimator"]) == ("discretised", "bound")
    assert answer["network_evaluations"] == answer["terms"] == len(found["per_step"])
    assert found["bound"] == pytest.approx(sum(found["parts"].values()))
    assert found["bits"] == pytest.approx(found["bound"] / np.log(2))
    assert found["bits_per_dim"] == pytest.approx(-found["bits"] / 48)
    # No more text than the engine counts before it begins.
    assert len(json.dumps(found["per_step"], separators=(",", ":"))) <= TERM_BYTES * answer["terms"]
    terms = sum(term["weight"] * term["value"] for term in found["per_step"])
    assert found["parts"]["steps"] + found["parts"]["last"] == pytest.approx(terms, rel=1e-5)
    asked = {"model": "grey", "data": [GREY.tolist()], "seed": 3, "per_step": True}
    several = await ask(client, "/loglik", trajectories=2, **asked)
    found = several["results"][0]
    assert several["terms"] == several["network_evaluations"] == len(found["per_step"])
    assert [term["t"] for term in found["per_step"]] == [*range(1, several["terms"] // 2 + 1)] * 2
    terms = sum(term["weight"] * term["value"] for term in found["per_step"])
    parts = found["parts"]
    assert parts["steps"] + parts["last"] == pytest.approx(terms, rel=1e-5)
    assert found["bound"] == pytest.approx(sum(parts.values()))
    fewer = await ask(client, "/loglik", model="grey", data=[GREY.tolist()], seed=3, terms=5)
    assert fewer["terms"] == 5
    assert fewer["results"][0]["per_step"] is None


async def test_conventions_are_chosen_by_name(client: httpx.AsyncClient) -> None:
    bounds = {}
    for convention in ("density", "paper"):
        answer = await ask(
            client,
            "/loglik",
            model="gaussian-mixture",
            data=[[0.0, 0.0]],
            convention=convention,
            seed=1,
        )
        assert answer["convention"] == convention
        bounds[convention] = answer["results"][0]["bound"]
    assert bounds["density"] != bounds["paper"]


async def test_binary_bodies_are_safetensors(client: httpx.AsyncClient) -> None:
    data = torch.tensor([[0.5, 1.0], [2.0, -3.0]])
    asked = {"model": "gaussian-mixture", "seed": 2, "per_step": True}
    body = save({"data": data}, metadata={"request": json.dumps(asked)})
    headers = {"content-type": "application/octet-stream"}
    found = await client.post("/loglik", content=body, headers=headers)
    assert found.json() == await ask(client, "/loglik", data=data.tolist(), **asked)
    binary = await client.post("/loglik", content=body, headers=headers | BINARY)
    tensors = load(binary.content)
    bounds = [result["bound"] for result in found.json()["results"]]
    assert tensors["bound"].tolist() == bounds
    assert tensors["term_value"].shape == (2, found.json()["terms"])
    assert "results" not in metadata(binary.content)


async def test_what_was_observed_comes_back_bit_for_bit(client: httpx.AsyncClient) -> None:
    observed, known = torch.tensor([[0.1234567, 9.0], [-3.3, 2.7182817]]), [[1, 0], [0, 1]]
    asked = {"model": "gaussian-mixture", "known": known, "num_samples": 5, "seed": 4}
    body = save({"observed": observed}, metadata={"request": json.dumps(asked)})
    headers = {"content-type": "application/octet-stream"} | BINARY
    response = await client.post("/inpaint", content=body, headers=headers)
    tensors = load(response.content)
    assert tensors["samples"].shape == (2, 5, 2)
    assert bool((tensors["samples"][0, :, 0] == observed[0, 0]).all())
    assert bool((tensors["samples"][1, :, 1] == observed[1, 1]).all())
    answer = metadata(response.content)
    weights = torch.tensor([result["weights"] for result in answer["results"]])
    told = Summary.of(tensors["samples"], weights)
    assert torch.allclose(tensors["mean"], told.mean)
    assert torch.allclose(tensors["std"], told.std)
    assert bool((tensors["samples"].std(1) > 0).any())
    assert (answer["method"], answer["biased"]) == ("twisted", False)


async def test_transparent_pixels_are_what_was_not_observed(
    client: httpx.AsyncClient, png: Callable[..., str]
) -> None:
    known = np.zeros((6, 8), dtype=np.uint8)
    known[:, :3] = 1
    transparent = np.stack([GREY, known * 255], axis=-1)  # grey and alpha
    whole = {"model": "grey", "num_samples": 2, "seed": 9}
    by_alpha = await ask(client, "/inpaint", observed=[png(transparent)], **whole)
    masks = [known.tolist(), [known.tolist()], [[known.tolist()]], png(known * 255)]
    for mask in (*masks, [png(known * 255)]):
        by_mask = await ask(client, "/inpaint", observed=[png(GREY)], known=mask, **whole)
        assert by_mask == by_alpha
    samples = np.array(by_alpha["results"][0]["samples"])
    assert samples.shape == (2, 1, 6, 8)
    assert bool((samples[:, 0, :, :3] == GREY[:, :3]).all())
    assert by_alpha["results"][0]["diagnostics"]["ancestors"] == 1


async def test_noise_on_everything_is_matched_and_said_so(client: httpx.AsyncClient) -> None:
    noisy = (GREY + 0.25).tolist()  # noisy pixels need be no whole numbers
    answer = await ask(client, "/denoise", model="grey", observed=[noisy], noise_std=17.26, seed=1)
    assert (answer["method"], answer["biased"]) == ("matched", False)
    (result,) = answer["results"]
    assert result["std"] is None  # one sample has no spread
    assert 1 <= result["diagnostics"]["start"] <= 8
    assert answer["network_evaluations"] == result["diagnostics"]["start"]
    same = await ask(
        client,
        "/inpaint",
        model="grey",
        observed=[noisy],
        known=[[1] * 8] * 6,
        noise_std=17.26,
        seed=1,
    )
    assert same["results"] == answer["results"]
    forced = await ask(
        client,
        "/denoise",
        model="grey",
        observed=[noisy],
        noise_std=17.26,
        method="product",
        seed=1,
    )
    assert (forced["method"], forced["biased"]) == ("product", True)
    assert forced["results"][0]["diagnostics"]["start"] is None


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("*/*", "application/json"),
        ("", "application/json"),
        ("application/*", "application/json"),
        ("image/*", "image/png"),
        ("image/png;q=0.5, application/octet-stream", "application/octet-stream"),
        ("application/json;q=0, */*;q=0.1", "image/png"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "application/json"),
        ("IMAGE/PNG; charset=x", "image/png"),
    ],
)
async def test_accept_is_negotiated(client: httpx.AsyncClient, accept: str, form: str) -> None:
    asked = {"model": "grey", "seed": 1, "sampler": {"name": "ddim", "steps": 1}}
    response = await client.post("/sample", json=asked, headers={"accept": accept})
    assert response.headers["content-type"] == form
