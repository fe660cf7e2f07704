"""The client reads the same answer from every format the service sends, and from saved files."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from PIL import Image
from pydantic import BaseModel

from diffusion import checkpoint, heldout
from noneq import (
    AsyncClient,
    Classifier,
    Likelihoods,
    NotPictured,
    Posterior,
    Preview,
    Progress,
    Samples,
    UnreadableAnswer,
    load,
    requests,
)
from noneq.codec import Body, encode, likelihoods_from_json, posterior_from_json
from noneq.requests import Request
from service.schemas.conditions import DenoiseRequest, InpaintRequest, PosteriorRequest
from service.schemas.requests import LoglikRequest, SampleRequest
from service.settings import Settings
from tests.service.http.caller import connect, starting

pytestmark = pytest.mark.anyio

POINTS = np.array([[0.5, -1.0], [9.0, 9.0]])
GREY = np.arange(48, dtype=np.uint8).reshape(1, 6, 8) * 5
LEFT = np.arange(8) < 4
Ask = Callable[..., Request[Any]]
CALLS: list[tuple[Ask, tuple[Any, ...], dict[str, Any]]] = [
    (requests.sample, (5,), {"model": "gaussian-mixture", "steps": 7}),
    (requests.sample, (2,), {"model": "grey", "sampler": {"name": "ddim", "steps": 3, "eta": 0}}),
    (requests.sample, (3,), {"model": "grey", "frames": 4}),
    (requests.loglik, (POINTS,), {"model": "gaussian-mixture", "per_step": True}),
    (requests.loglik, ([GREY, GREY // 2],), {"model": "grey", "terms": 4}),
    (requests.loglik, ([[1, 1, 1, 1], [1, 0, 0, 0]],), {"model": "bit-patterns", "terms": 5}),
    (
        requests.inpaint,
        (POINTS, [1, 0]),
        {"model": "gaussian-mixture", "num_samples": 3, "steps": 9},
    ),
    (requests.inpaint, ([GREY], np.tile(LEFT, (6, 1))), {"model": "grey", "num_samples": 2}),
    (requests.denoise, (POINTS,), {"model": "gaussian-mixture", "noise_std": 0.5}),
    (requests.denoise, ([[1, 0, 0, 0]],), {"model": "bit-patterns", "flip_probability": 0.1}),
    (
        requests.posterior,
        (),
        {
            "model": "grey",
            "label": ["dog", 2],
            "label_probabilities": True,
            "num_samples": 2,
            "method": {"name": "auto", "particles": 2},
            "quantiles": [0.5],
        },
    ),
]


@pytest.mark.parametrize(("ask", "given", "keys"), CALLS)
async def test_a_stream_and_a_file_say_the_same_to_the_bit(
    client: AsyncClient, ask: Ask, given: tuple[Any, ...], keys: dict[str, Any]
) -> None:
    told: list[Progress | Preview] = []
    plain = await client.send(ask(*given, **keys, seed=7))
    streamed = await client.send(ask(*given, **keys, seed=7, progress=told.append))
    assert type(plain) is type(streamed)
    assert plain.body.fields == streamed.body.fields
    assert set(plain.body.tensors) == set(streamed.body.tensors)
    for name, array in plain.body.tensors.items():
        other = streamed.body.tensors[name]
        assert (array.dtype, array.shape) == (other.dtype, other.shape), name
        assert np.array_equal(array, other, equal_nan=True), name
    last = told[-1]
    assert isinstance(last, Progress)
    assert (last.state, last.step, last.total) == ("done",) + (plain.network_evaluations,) * 2
    for answer in (plain, streamed):
        assert answer.timing.request_id
        assert answer.timing.compute_seconds > 0


async def test_the_answer_is_that_of_plain_json(app: FastAPI, client: AsyncClient) -> None:
    asked = {"model": "gaussian-mixture", "seed": 7}
    async with connect(app) as plain:
        data = {**asked, "data": POINTS.tolist(), "terms": 5}
        said = (await plain.post("/loglik", json=data)).json()
        drawn = (await plain.post("/sample", json={**asked, "num_samples": 3})).json()
        given = (await plain.post("/loglik", json=data | {"known": [1, 0]})).json()
    found = await client.loglik(POINTS, model="gaussian-mixture", seed=7, terms=5)
    of_one = await client.loglik(POINTS, [1, 0], model="gaussian-mixture", seed=7, terms=5)
    for name in ("bound", "bits_per_dim"):  # per element that is not given
        wanted = [result[name] for result in given["results"]]
        assert np.allclose(getattr(of_one, name), wanted, rtol=1e-12)
    for i, result in enumerate(said["results"]):
        for name in ("bound", "standard_error", "relative_to_prior", "bits_per_dim"):
            assert getattr(found, name)[i] == pytest.approx(result[name], rel=1e-12)
        assert {name: x[i] for name, x in found.parts.items()} == result["parts"]
    assert found.convention == said["convention"]
    assert np.allclose(found.bound, sum(found.parts.values()), rtol=1e-12)
    samples = await client.sample(3, model="gaussian-mixture", seed=7)
    assert samples.numpy().tolist() == np.float32(drawn["samples"]).tolist()
    assert samples.sampler == drawn["sampler"]


def test_an_example_that_the_model_excludes_is_minus_infinity() -> None:
    document = {
        "results": [{
            "bound": None, "standard_error": None, "relative_to_prior": None, "per_step": None,
            "parts": {"prior": 0.0, "steps": -1.0, "last": None, "gain": 0.0},
        }]
    }  # fmt: skip
    tensors = likelihoods_from_json(document).tensors
    assert tensors["bound"] == tensors["relative_to_prior"] == tensors["last"] == -math.inf
    assert np.isnan(tensors["standard_error"])


def test_a_rarity_is_read_where_it_is_known() -> None:
    result = {
        "bound": -1.0, "standard_error": 0.1, "relative_to_prior": 2.0, "per_step": None,
        "parts": {"prior": 0.0, "steps": -1.0, "last": 0.0, "gain": 0.0},
    }  # fmt: skip
    known = likelihoods_from_json({"results": [{**result, "rarer_than": x} for x in (0.25, 0.997)]})
    assert known.tensors["rarer_than"].tolist() == [0.25, 0.997]
    unknown = likelihoods_from_json({"results": [{**result, "rarer_than": None}, result]})
    assert "rarer_than" not in unknown.tensors


async def test_a_trajectory_ends_in_the_samples(client: AsyncClient) -> None:
    found = await client.sample(3, model="gaussian-mixture", seed=7, frames=5)
    assert found.trajectory is not None
    t, x, x_0 = found.trajectory
    assert t.tolist() == [100, 80, 60, 40, 20, 0]
    assert x.shape == x_0.shape == (6, 3, 2)
    assert np.array_equal(x[-1], found.samples)
    assert np.array_equal(x_0[-1], found.samples)
    assert (await client.sample(model="gaussian-mixture", steps=3)).trajectory is None


async def test_without_a_seed_one_is_drawn_and_repeats_the_answer(client: AsyncClient) -> None:
    first = await client.sample(2, model="gaussian-mixture", steps=4)
    other = await client.sample(2, model="gaussian-mixture", steps=4)
    assert first.seed != other.seed
    again = await client.sample(2, model="gaussian-mixture", steps=4, seed=first.seed)
    assert np.array_equal(first.numpy(), again.numpy())


async def test_what_was_observed_exactly_comes_back_bit_for_bit(client: AsyncClient) -> None:
    known = np.broadcast_to(np.tile(LEFT, (6, 1)), (1, 6, 8))
    found = await client.inpaint([GREY], known, model="grey", num_samples=3, seed=2)
    assert found.samples.shape == (1, 3, 1, 6, 8)
    assert np.array_equal(found.samples[0][:, known], np.tile(GREY[known], (3, 1)))
    assert found.std is not None
    assert np.all(found.std[0][known] == 0)
    assert not found.biased
    assert found.method == "twisted"
    assert found.diagnostics[0]["particles"] == 8


async def test_a_posterior_through_an_operator(client: AsyncClient) -> None:
    """Quantiles and the evidence come along; noise for each number is an array."""
    found = await client.posterior(
        np.array([[0.3, 0.1], [0.5, -0.2]]),
        operator={"kind": "dense", "rows": [[1.0, 0.5], [0.0, 1.0]]},
        noise_std=np.array([[0.1, 0.2], [0.3, 0.1]]),
        num_samples=4,
        quantiles=[0.1, 0.9],
        method={"name": "twisted", "particles": 4, "systems": "joint"},
        steps=10,
        model="gaussian-mixture",
        seed=3,
    )
    assert found.method == "twisted"
    assert found.samples.shape == (2, 4, 2)
    assert found.quantiles is not None
    assert found.quantiles.shape == (2, 2, 2)
    assert np.all(found.quantiles[:, 0] <= found.quantiles[:, 1])
    assert all(math.isfinite(one["log_evidence"]) for one in found.diagnostics)


async def test_an_old_spelling_warns(client: AsyncClient) -> None:
    old: dict[str, Any] = {"particles": 2}
    asked: dict[str, Any] = {"model": "gaussian-mixture", "steps": 3, **old}
    with pytest.warns(DeprecationWarning, match="`particles` is now a field of `method`"):
        await client.posterior(POINTS, [1, 0], **asked)


async def test_a_label_and_another_model_multiply_a_posterior(client: AsyncClient) -> None:
    """What the data show is asked and told by name; numpy's own numbers are as good as any."""
    found = await client.posterior(
        label=np.array([0, 2]),
        classifier="animals",
        label_probabilities=True,
        num_samples=2,
        model="grey",
        seed=3,
    )
    assert list(found.label) == ["cat", "crow"]
    assert found.labels is not None
    for likely in found.labels:
        assert list(likely) == ["cat", "dog", "crow"]
        assert sum(likely.values()) == pytest.approx(1, abs=1e-5)
    product = await client.posterior(
        expert="gaussian-mixture",
        num_samples=4,
        steps=10,
        method={"name": "auto", "particles": 4},
        model="gaussian-mixture",
        seed=3,
    )
    assert product.samples.shape == (1, 4, 2)
    assert list(product.label) == [None]
    assert product.labels is None
    kernel = np.array([[0.25, 0.5, 0.25]])
    blurred = await client.posterior(
        [GREY], operator={"kind": "blur", "kernel": kernel}, noise_std=9, model="grey", seed=3
    )
    assert blurred.samples.shape == (1, 1, 1, 6, 8)


@pytest.mark.parametrize(
    ("ask", "request_of"),
    [
        (requests.sample, SampleRequest),
        (requests.loglik, LoglikRequest),
        (requests.posterior, PosteriorRequest),
        (requests.inpaint, InpaintRequest),
        (requests.denoise, DenoiseRequest),
    ],
)
def test_every_field_of_a_request_is_an_argument(ask: Ask, request_of: type[BaseModel]) -> None:
    """Of its name; the sampler of a posterior is said by its `steps`, there is one estimator."""
    takes = {name for name, one in signature(ask).parameters.items() if one.kind != one.VAR_KEYWORD}
    (rest,) = get_args(get_type_hints(ask)["options"])
    takes |= set(get_type_hints(rest))
    own = {"progress", "previews", "deadline", "steps"}
    assert set(request_of.model_fields) - takes <= {"sampler", "estimator"}
    assert takes - set(request_of.model_fields) <= own


async def test_models_tell_what_they_are(client: AsyncClient) -> None:
    found = await client.models()
    assert [model.name for model in found.models] == ["bit-patterns", "gaussian-mixture", "grey"]
    assert found.default is None
    grey = await client.model("grey")
    assert (grey.kind, grey.shape, grey.steps) == ("image", (1, 6, 8), 8)
    assert grey.artefact["process"]["kind"] == "gaussian"
    assert grey.name == found.models[2].name
    assert grey.samplers == ("ancestral", "ddim", "dpmpp_2m")
    assert found.models[0].samplers == ("ancestral",)
    assert grey.classifiers == (Classifier("animals", ("cat", "dog", "crow")),)
    assert [model.classifiers for model in found.models] == [(), (), grey.classifiers]


async def test_examples_are_data_to_ask_about(
    client: AsyncClient, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "grey", tmp_path / "grey")
    space = checkpoint.load(tmp_path / "grey" / "model.safetensors")[0].space
    data = torch.arange(5 * 48).reshape(5, 1, 6, 8) % 256
    heldout.write(tmp_path / "grey", data, space)
    async with (
        starting(Settings(models=tmp_path, device="cpu", batch_size=8)) as app,
        AsyncClient(transport=httpx.ASGITransport(app)) as shop,
    ):
        found = await shop.examples("grey", 3)
        assert found.tolist() == data[:3].tolist()
        assert len((await shop.loglik(found, model="grey", terms=4)).bound) == 3
    assert (await client.examples("grey")).size == 0


@pytest.mark.parametrize(("ask", "given", "keys"), CALLS)
async def test_what_is_saved_is_loaded_whole(
    client: AsyncClient, tmp_path: Path, ask: Ask, given: tuple[Any, ...], keys: dict[str, Any]
) -> None:
    answer = await client.send(ask(*given, **keys, seed=7))
    path = answer.save(tmp_path / "answer.safetensors")
    again = load(path)
    assert type(again) is type(answer)
    assert again.body.fields == answer.body.fields
    assert all(np.array_equal(again.body.tensors[n], x) for n, x in answer.body.tensors.items())
    assert np.array_equal(np.load(answer.save(tmp_path / "a.npy")), answer.numpy())
    with np.load(answer.save(tmp_path / "a.npz")) as arrays:
        assert set(arrays) == set(answer.body.tensors)
    document = json.loads(answer.save(tmp_path / "a.json").read_text())
    assert document["model"] == answer.model
    with answer.save(tmp_path / "a.csv").open() as file:
        names, *lines = csv.reader(file)
    if isinstance(answer, Likelihoods):
        assert np.allclose([float(line[0]) for line in lines], answer.bound, rtol=1e-15)
        with pytest.raises(NotPictured, match="csv"):
            answer.save(tmp_path / "a.png")
    else:
        flat = answer.numpy().reshape(len(lines), -1)
        numbers = np.array([line[len(names) - flat.shape[1] :] for line in lines], np.float32)
        assert np.array_equal(numbers, flat)
        with Image.open(answer.save(tmp_path / "a.png")) as picture:
            assert picture.size == answer.image().size
    with pytest.raises(ValueError, match=r"\.npy"):
        answer.save(tmp_path / "a.doc")


async def test_one_image_as_a_picture_is_the_image_itself(client: AsyncClient) -> None:
    found = await client.sample(1, model="grey", seed=5)
    pixels = np.asarray(found.image())
    assert np.array_equal(pixels, np.repeat(found.numpy()[0, 0][..., None], 3, axis=-1))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(encode(Body({"kind": "poem"}, {"x": np.zeros(1)}), "answer")[0])
    with pytest.raises(UnreadableAnswer, match="poem"):
        load(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UnreadableAnswer, match="safetensors"):
        load(path)


@pytest.mark.parametrize("kind", [Samples, Posterior, Likelihoods])
def test_an_answer_that_lacks_its_arrays_is_no_answer(kind: type[Samples]) -> None:
    with pytest.raises(UnreadableAnswer, match="seed"):
        kind(Body({"model": "mnist"}))


async def test_further_fields_are_sent_as_they_are(client: AsyncClient, app: FastAPI) -> None:
    found = await client.loglik(
        POINTS, model="gaussian-mixture", seed=7, target_error=5.0, strata="importance"
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as line:
        body = {
            "model": "gaussian-mixture", "data": POINTS.tolist(), "seed": 7,
            "target_error": 5.0, "strata": "importance",
        }  # fmt: skip
        said = (await line.post("/loglik", json=body)).json()
    assert found.body.fields["terms"] == said["terms"]
    assert found.bound[0] == pytest.approx(said["results"][0]["bound"], rel=1e-12)


@pytest.mark.parametrize("data", [[[1.0], [1.0, 2.0]], ["a.png"]])
def test_what_are_no_arrays_is_said_before_anything_is_sent(data: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"crop|noneq\.read"):
        requests.loglik(data, model="grey")


def test_what_each_sample_counts() -> None:
    """As the answer says, and all alike where it says nothing."""
    one = {"samples": [[0.0], [1.0]], "mean": [0.25], "std": [0.5], "quantiles": None}
    document = {"model": "m", "seed": 1, "method": "twisted", "results": [one, one]}
    found = Posterior(posterior_from_json(document))
    assert found.weights.tolist() == [[0.5, 0.5]] * 2
    assert found.quantiles is None
    weighed = {**document, "results": [{**one, "weights": [0.75, 0.25]}] * 2}
    found = Posterior(posterior_from_json(weighed))
    assert found.weights.tolist() == [[0.75, 0.25]] * 2
