"""Where an example stands among held-out ones at the noise of its request; data with no bound."""

import math
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load

from diffusion.checkpoint import save
from diffusion.likelihood import reference
from diffusion.networks import GaussianMixture
from diffusion.noise import counter_noise
from service.settings import Settings
from tests.service.http.caller import ask
from tests.service.http.conftest import bit_patterns, gaussian_mixture, serving

pytestmark = pytest.mark.anyio

N = 400


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """A mixture with a reference, and bits with a torn one."""
    folder = tmp_path_factory.mktemp("standing")
    for make in (gaussian_mixture, bit_patterns):
        model, metadata = make()
        save(folder / metadata.name / "model.safetensors", model, metadata)
    model, metadata = gaussian_mixture()
    assert isinstance(model.network, GaussianMixture)
    z = model.network.sample(counter_noise(1, torch.arange(reference.MOST), 0)).float()
    reference.write(folder / metadata.name, model, reference.measure(model, z, batch=2**15))
    (folder / "bit-patterns" / reference.FILE).write_bytes(b"torn")
    async with serving(Settings(models=folder, device="cpu", batch_size=256, slots=4096)) as found:
        yield found


@pytest.mark.parametrize("asked", [{"terms": 5}, {"terms": 20}, {}])
async def test_held_out_data_stand_anywhere(
    client: httpx.AsyncClient, asked: dict[str, Any]
) -> None:
    """Uniform by Kolmogorov and Smirnov, at one in a thousand, whatever the request's noise."""
    model, _ = gaussian_mixture()
    assert isinstance(model.network, GaussianMixture)
    z = model.network.sample(counter_noise(2, torch.arange(N), 0)).float()
    body = {"model": "gaussian-mixture", "seed": 5, "data": model.space.to_data(z).tolist()}
    answer = await ask(client, "/loglik", **body, **asked)
    assert answer["uncompared"] is None
    for name in ("rarer_than", "typicality"):
        found = torch.tensor(sorted(result[name] for result in answer["results"]))
        ranks = torch.arange(N) / N
        apart = float(torch.maximum(found - ranks, ranks + 1 / N - found).max())
        assert apart < 1.95 * math.sqrt(1 / N + 1 / reference.MOST)


async def test_an_example_far_out_is_unlike_all(client: httpx.AsyncClient) -> None:
    body = {"model": "gaussian-mixture", "data": [[0.5, -1.0], [90.0, 90.0]], "seed": 1}
    answer = await ask(client, "/loglik", **body, terms=20)
    usual, far = answer["results"]
    assert usual["typicality"] > 0.001
    assert (far["rarer_than"], far["typicality"]) == (1, pytest.approx(1 / (1 + reference.MOST)))
    assert {band["part"] for band in far["bands"]} == {"prior", "last", "steps"}
    assert sum(band["nats"] for band in far["bands"]) == pytest.approx(far["bound"], rel=1e-6)
    low, high = usual["interval"]
    assert (low + high) / 2 == pytest.approx(usual["bound"])
    assert high - usual["bound"] > 2 * usual["standard_error"]  # few degrees of freedom
    raw = await client.post(
        "/loglik", json={**body, "terms": 20}, headers={"accept": "application/octet-stream"}
    )
    tensors = load(raw.content)
    for name in ("rarer_than", "typicality", "interval", "degrees_of_freedom"):
        assert tensors[name].tolist() == [result[name] for result in answer["results"]]
    assert tensors["band_nats"].shape == (2, len(tensors["band_t"]))


@pytest.mark.parametrize("far", [1e20, 1e30])
@pytest.mark.parametrize("asked", [{}, {"terms": 5}, {"convention": "paper"}, {"trajectories": 2}])
async def test_what_has_no_bound_says_so_and_others_are_answered(
    client: httpx.AsyncClient, far: float, asked: dict[str, Any]
) -> None:
    body = {"model": "gaussian-mixture", "seed": 1, **asked}
    alone = await ask(client, "/loglik", **body, data=[[0.5, -1.0]])
    answer = await ask(client, "/loglik", **body, data=[[0.5, -1.0], [far, -far], [3e38, 0.0]])
    first, *others = answer["results"]
    assert first["reason"] is None
    assert first["bound"] == pytest.approx(alone["results"][0]["bound"], rel=1e-5)
    for place, result in enumerate(others, 1):
        assert result["bound"] is None or result["bound"] < -1e30
        assert (result["reason"] is None) == (result["bound"] is not None)
        assert answer["reasons"].get(str(place)) == result["reason"]


async def test_what_the_model_excludes_says_so(client: httpx.AsyncClient) -> None:
    data = [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1]]
    answer = await ask(client, "/loglik", model="bit-patterns", data=data, seed=1, trajectories=2)
    for result in answer["results"]:
        assert (result["bound"] is None) == (result["reason"] is not None)


async def test_a_torn_reference_is_as_none(client: httpx.AsyncClient) -> None:
    answer = await ask(client, "/loglik", model="bit-patterns", data=[[0, 0, 1, 1]], seed=1)
    assert answer["results"][0]["typicality"] is None
    assert "without held-out" in answer["uncompared"]


async def test_a_chain_of_one_step_has_no_term_in_the_papers_convention(
    client: httpx.AsyncClient,
) -> None:
    asked = {"model": "gaussian-mixture", "data": [[0.5, -1.0]], "convention": "paper", "steps": 1}
    response = await client.post("/loglik", json=asked)
    assert response.status_code == 422, response.text
    assert "2 steps or more" in response.json()["fix"]
