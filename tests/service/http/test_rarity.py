"""Where an example stands among held-out ones, over HTTP."""

import math
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load

from diffusion.checkpoint import Evaluation, save
from diffusion.likelihood.bound import bound
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.noise import counter_noise
from diffusion.space import Convention
from service.settings import Settings
from tests.service.http.caller import ask
from tests.service.http.conftest import bit_patterns, gaussian_mixture, serving

pytestmark = pytest.mark.anyio

TERMS, HELD_OUT = 25, 3000
MIXTURE: dict[str, Any] = {"model": "gaussian-mixture", "seed": 5, "terms": TERMS}
PERCENT = torch.linspace(0, 1, 101, dtype=torch.float64)


def evaluated(convention: Convention, bounds: torch.Tensor) -> Evaluation:
    return Evaluation(
        convention=convention, split="test", count=len(bounds), terms=TERMS, seed=1,
        bound=float(bounds.mean()), standard_error=0.1, bits=0.0, bits_per_dim=0.0, null=-3.0,
        quantiles=tuple(bounds.double().quantile(PERCENT).tolist()),
    )  # fmt: skip


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    """Of exact draws, by as many terms as are asked for below."""
    model, _ = gaussian_mixture()
    assert isinstance(model.network, GaussianMixture)
    z = model.network.sample(counter_noise(1, torch.arange(HELD_OUT), 0)).float()
    return evaluated("density", bound(model, z, seed=1, convention="density", terms=TERMS).bound)


@pytest.fixture(scope="module")
async def client(
    evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[httpx.AsyncClient]:
    folder = tmp_path_factory.mktemp("evaluated")
    bits = evaluated("discretised", torch.linspace(-4, -1, 500))
    for make, one in ((gaussian_mixture, evaluation), (bit_patterns, bits)):
        model, metadata = make()
        metadata = metadata.model_copy(update={"evaluation": (one,)})
        save(folder / metadata.name / "model.safetensors", model, metadata)
    async with serving(Settings(models=folder, device="cpu", batch_size=256, slots=4096)) as found:
        yield found


async def test_held_out_data_are_of_every_rarity_alike(
    client: httpx.AsyncClient, evaluation: Evaluation
) -> None:
    """Other draws, estimated likewise: uniform by Kolmogorov and Smirnov, at one in a thousand."""
    model, _ = gaussian_mixture()
    assert isinstance(model.network, GaussianMixture)
    n = 1000
    data = model.space.to_data(model.network.sample(counter_noise(2, torch.arange(n), 0)).float())
    answer = await ask(client, "/loglik", data=data.tolist(), **MIXTURE)
    found = [result["rarer_than"] for result in answer["results"]]
    assert found == [evaluation.rarer_than(result["bound"]) for result in answer["results"]]
    ordered = torch.tensor(sorted(found), dtype=torch.float64)
    ranks = torch.arange(n, dtype=torch.float64)
    apart = torch.maximum((ordered - ranks / n).abs(), (ordered - (ranks + 1) / n).abs()).max()
    assert float(apart) < 1.95 * math.sqrt(1 / n + 1 / HELD_OUT)


async def test_an_example_far_out_is_the_rarest(client: httpx.AsyncClient) -> None:
    answer = await ask(client, "/loglik", data=[[90.0, 90.0]], **MIXTURE)
    assert answer["results"][0]["rarer_than"] == 1


async def test_what_the_model_excludes_is_rarer_than_all(client: httpx.AsyncClient) -> None:
    model, _ = bit_patterns()
    assert isinstance(model.network, BitPatterns)
    answer = await ask(
        client, "/loglik", model="bit-patterns", data=[[0, 0, 0, 0]], seed=1, terms=TERMS
    )
    (result,) = answer["results"]
    assert result["bound"] is None or result["bound"] < -4
    assert result["rarer_than"] == 1


@pytest.mark.parametrize(
    ("asked", "known"),
    [
        ({}, True),
        ({"steps": 100}, True),  # that is all of them
        ({"terms": None}, False),  # the same bound, but with less noise
        ({"terms": 10}, False),
        ({"terms": None, "steps": 20}, False),
        ({"terms": None, "trajectories": 2}, False),
        ({"convention": "paper"}, False),
    ],
)
async def test_only_the_bound_that_was_evaluated_has_a_rarity(
    client: httpx.AsyncClient, asked: dict[str, Any], known: bool
) -> None:
    body = {**MIXTURE, "data": [[0.5, -1.0], [3.0, 0.0]], **asked}
    plain = await ask(client, "/loglik", **body)
    found = [result["rarer_than"] for result in plain["results"]]
    assert all((one is not None) == known for one in found)
    raw = await client.post("/loglik", json=body, headers={"accept": "application/octet-stream"})
    tensors = load(raw.content)
    assert ("rarer_than" in tensors) == known
    assert plain["uncompared"].startswith("Typicality is not" if known else "Not measured")
    if known:
        assert tensors["rarer_than"].tolist() == found
        assert 0 <= min(found) <= max(found) <= 1


async def test_the_percentiles_are_shown(client: httpx.AsyncClient, evaluation: Evaluation) -> None:
    shown = (await client.get("/models/gaussian-mixture")).json()["evaluation"]
    assert [tuple(one["quantiles"]) for one in shown] == [evaluation.quantiles]
