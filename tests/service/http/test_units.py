"""Data far from 0 beside their spread: an answer in such units is that of the same model near 0.

Two artefacts share one network; one's data lie at 1e4 with a spread of 1e-3, where float32 has five
values. Whatever is asked of both with the same seed differs by the units and by nothing else.
"""

import math
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load, save

from diffusion.checkpoint import save as save_artefact
from diffusion.space import DataSpace
from service.settings import Settings
from tests.service.http.caller import ask, assert_problem
from tests.service.http.conftest import gaussian_mixture, serving

pytestmark = pytest.mark.anyio

SHIFT, SCALE = (1e4, -3e4), (1e-3, 2e-3)
Array = NDArray[np.float64]


@pytest.fixture(scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    folder = tmp_path_factory.mktemp("offset")
    for name, shift, scale in (("near", 0.0, 1.0), ("far", SHIFT, SCALE)):
        model, metadata = gaussian_mixture()
        space = DataSpace(kind="vector", shape=(2,), shift=shift, scale=scale)
        model.space = space
        told = metadata.model_copy(update={"name": name, "space": space})
        save_artefact(folder / name / "model.safetensors", model, told)
    async with serving(Settings(models=folder, device="cpu", batch_size=64)) as client:
        yield client


def far(values: object) -> Array:
    """Model units to those of the far artefact."""
    return np.asarray(values, np.float64) * SCALE + SHIFT


def near(values: object) -> Array:
    return (np.asarray(values, np.float64) - SHIFT) / SCALE


async def test_samples_keep_their_spread(both: httpx.AsyncClient) -> None:
    asked: dict[str, Any] = {"num_samples": 200, "seed": 3, "sampler": {"steps": 20}}
    wanted = (await ask(both, "/sample", model="near", **asked))["samples"]
    found = (await ask(both, "/sample", model="far", **asked))["samples"]
    np.testing.assert_allclose(near(found), wanted, atol=1e-5)
    assert len({x for x, _ in found}) == 200


async def test_a_likelihood_changes_by_the_jacobian_alone(both: httpx.AsyncClient) -> None:
    data = [[-1.0, -0.6], [0.1, 1.1]]
    wanted = (await ask(both, "/loglik", model="near", data=data, seed=3))["results"]
    answer = await ask(both, "/loglik", model="far", data=far(data).tolist(), seed=3)
    jacobian = sum(map(math.log, SCALE))
    for one, other in zip(answer["results"], wanted, strict=True):
        assert one["bound"] + jacobian == pytest.approx(other["bound"], abs=1e-3)


async def test_a_posterior_is_the_same_and_what_was_seen_comes_back(
    both: httpx.AsyncClient,
) -> None:
    asked: dict[str, Any] = {"known": [1, 0], "num_samples": 20, "seed": 5}
    asked["sampler"] = {"steps": 20}
    wanted = await ask(both, "/inpaint", model="near", observed=[[0.1, 0.0]], **asked)
    seen = far([[0.1, 0.0]]).tolist()
    found = await ask(both, "/inpaint", model="far", observed=seen, **asked)
    samples = np.asarray(found["results"][0]["samples"])
    assert (samples[:, 0] == seen[0][0]).all()
    np.testing.assert_allclose(near(samples), wanted["results"][0]["samples"], atol=1e-4)
    np.testing.assert_allclose(
        near(found["results"][0]["mean"]), wanted["results"][0]["mean"], atol=1e-4
    )


async def test_an_operator_sees_the_same(both: httpx.AsyncClient) -> None:
    asked: dict[str, Any] = {"num_samples": 20, "seed": 5, "sampler": {"steps": 20}}
    rows = np.asarray([[1.0, 0.5]])
    wanted = await ask(
        both,
        "/posterior",
        model="near",
        observed=[[0.3]],
        operator={"kind": "dense", "rows": rows.tolist()},
        noise_std=0.1,
        **asked,
    )
    through = rows / SCALE  # A x + noise is then the same number but for A's offset
    found = await ask(
        both,
        "/posterior",
        model="far",
        observed=[[0.3 + float(through[0] @ SHIFT)]],
        operator={"kind": "dense", "rows": through.tolist()},
        noise_std=0.1,
        **asked,
    )
    np.testing.assert_allclose(
        near(found["results"][0]["samples"]), wanted["results"][0]["samples"], atol=1e-3
    )


async def test_float32_that_would_round_the_data_is_refused(both: httpx.AsyncClient) -> None:
    for kind, status in ((np.float32, 422), (np.float64, 200)):
        body = save({"data": far([[0.1, 0.2]]).astype(kind)}, {"request": '{"model": "far"}'})
        headers = {"content-type": "application/octet-stream"}
        response = await both.post("/loglik", content=body, headers=headers)
        assert response.status_code == status, response.text
        if status == 422:
            assert "float64" in assert_problem(response, 422, "invalid-request")["expected"]


async def test_a_binary_answer_keeps_the_spread(both: httpx.AsyncClient) -> None:
    asked = {"model": "far", "num_samples": 50, "seed": 3, "sampler": {"steps": 20}}
    response = await both.post(
        "/sample", json=asked, headers={"accept": "application/octet-stream"}
    )
    samples = load(response.content)["samples"]
    assert samples.dtype == np.float64
    assert len(set(samples[:, 0].tolist())) == 50


def test_what_float64_does_not_resolve_is_refused() -> None:
    with pytest.raises(ValueError, match="subtract an offset"):
        DataSpace(kind="vector", shape=(1,), shift=(1e12,), scale=(1e-3,))
