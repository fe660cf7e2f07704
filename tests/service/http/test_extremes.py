"""Nothing that may be asked is a fault of the service: every answer is finite, or says why not."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from diffusion.checkpoint import Metadata, save
from diffusion.model import DiffusionModel
from diffusion.networks import MLPConfig, build
from diffusion.process import GaussianConfig
from diffusion.schedule import LogSnrSchedule
from diffusion.space import DataSpace
from service.settings import Settings
from tests.service.http.conftest import PROVENANCE, save_models, serving

pytestmark = pytest.mark.anyio


def wild() -> tuple[DiffusionModel, Metadata]:
    """A network of random weights, ten times as large as they begin: its Jacobian is no covariance,
    and its variance anything."""
    torch.manual_seed(1)
    config = MLPConfig(features=3, outputs=2, width=16, depth=2, zero_out=False)
    process = GaussianConfig(T=40, schedule=LogSnrSchedule(first=14.0, last=-1.3))
    space = DataSpace(kind="vector", shape=(3,), shift=(1.0, 0.0, -3.0), scale=(2.0, 1.0, 0.1))
    model = DiffusionModel(process.build(), build(config), space, "v", "moment")
    with torch.no_grad():
        for part in model.network.parameters():
            part.mul_(3)
    metadata = Metadata(
        name="wild",
        process=process,
        network=config,
        prediction="v",
        variance="moment",
        space=space,
        training=PROVENANCE,
    )
    return model, metadata


@pytest.fixture(scope="module")
async def extreme(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    folder: Path = tmp_path_factory.mktemp("extreme")
    save_models(folder)
    model, metadata = wild()
    save(folder / "wild" / "model.safetensors", model, metadata)
    async with serving(Settings(models=folder, device="cpu", batch_size=256, slots=256)) as found:
        yield found


def finite(value: object) -> bool:
    """Of everything in an answer; JSON has no infinity, and a number may be null."""
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


async def check(client: httpx.AsyncClient, path: str, **asked: object) -> dict[str, Any]:
    """An answer of finite numbers, or what is wrong with the request."""
    response = await client.post(path, content=json.dumps(asked))
    assert response.status_code in (200, 422), (asked, response.text)
    answer: dict[str, Any] = response.json()
    assert finite(answer)
    if response.status_code == 422:
        assert answer["detail"]
        assert answer["fix"]
    return answer


async def check_all(client: httpx.AsyncClient, path: str, asked: list[dict[str, Any]]) -> list[Any]:
    """Several at once, which the engine puts through the network together."""
    return await asyncio.gather(*(check(client, path, **one) for one in asked))


@pytest.mark.parametrize("name", ["ancestral", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 39])
async def test_samples_of_any_steps_are_finite(
    extreme: httpx.AsyncClient, name: str, steps: int
) -> None:
    for model in ("wild", "gaussian-mixture"):
        sampler = {"name": name, "steps": steps}
        found = await check(extreme, "/sample", model=model, num_samples=64, sampler=sampler)
        assert len(found["samples"]) == 64


NOISES = (0, 1e-300, 1e-38, 1e-12, 1e-6, 0.1, 1e4, 1e20, 1e300)
METHODS = ("auto", "twisted", "matched", "product", "repaint")
SHORT = {"steps": 4}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("model", ["wild", "gaussian-mixture"])
async def test_any_noise_is_answered(extreme: httpx.AsyncClient, model: str, noise: float) -> None:
    y = {"wild": [1.5, -0.3, -3.1], "gaussian-mixture": [0.4, -1.0]}[model]
    asked = {"model": model, "observed": [y], "noise_std": noise, "seed": 1, "sampler": SHORT}
    masks = (None, [1] + [0] * (len(y) - 1), [1, 1] + [0] * (len(y) - 2))
    each = [asked | {"method": method, "known": known} for method in METHODS for known in masks]
    await check_all(extreme, "/posterior", each)
    twists = [{"name": "twisted", "covariance": c} for c in ("full", "diagonal", "independent")]
    twists.append({"name": "twisted", "covariance": "full", "products": 1})
    each = [asked | {"method": twist | {"particles": 3}} for twist in twists]
    for found in await check_all(extreme, "/posterior", each):
        assert "samples" in str(found) or noise > 1e8


@pytest.mark.parametrize("value", [0.0, 1e-300, 30.0, -1e4, 1e6, -1e15, 3e38, 1e300])
@pytest.mark.parametrize("model", ["wild", "gaussian-mixture"])
async def test_any_value_is_answered(extreme: httpx.AsyncClient, model: str, value: float) -> None:
    count = {"wild": 3, "gaussian-mixture": 2}[model]
    asked = {"model": model, "observed": [[value] * count], "num_samples": 2, "sampler": SHORT}
    asked["quantiles"] = [0, 1e-320, 0.5, 1]
    each = [
        asked | {"known": known, "noise_std": noise, "method": method}
        for known in (None, [1] + [0] * (count - 1))
        for noise in (0, 0.1)
        for method in ("auto", "product", "repaint")
    ]
    await check_all(extreme, "/posterior", each)


WEIGHTS = (0.0, 1e-320, 1e-39, 1e-6, 1.0, 1e13, 1e39, 1e308)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("second", [None, [1.0, 1.0], [1.0, 1.0 + 1e-9], [1e-7, 0.0]])
async def test_any_operator_is_answered(
    extreme: httpx.AsyncClient, weight: float, second: list[float] | None
) -> None:
    rows = [[weight, 1.0]] + ([] if second is None else [second])
    asked = {"model": "gaussian-mixture", "observed": [[0.5] * len(rows)], "sampler": SHORT}
    asked["operator"] = {"kind": "dense", "rows": rows}
    each = [
        asked | {"method": method, "noise_std": noise}
        for noise in (0, 1e-3)
        for method in ("auto", "product", "repaint")
    ]
    for found in await check_all(extreme, "/posterior", each):
        if weight > 1e12:
            assert found["status"] == 422
            assert "operator" in json.dumps(found)


async def test_every_pixel_of_an_untrained_network_is_answered(extreme: httpx.AsyncClient) -> None:
    """Few enough pixels for a Jacobian, of a network that has learnt nothing."""
    picture = torch.zeros(6, 8)
    picture[2:4, 2:4] = 255
    each: list[dict[str, Any]] = []
    for few in (1, 8):
        mask = torch.zeros(48)
        mask[torch.randperm(48, generator=torch.Generator().manual_seed(few))[:few]] = 1
        asked = {"model": "grey", "observed": [picture.tolist()], "num_samples": 2}
        asked |= {"known": mask.view(6, 8).tolist()}
        each += [asked | {"noise_std": noise} for noise in (0, 20, 1e6)]
    for found in await check_all(extreme, "/inpaint", each):
        assert len(found["results"][0]["samples"]) == 2


@pytest.mark.parametrize("flips", [0, 5e-324, 1e-300, 1e-9, 0.25, 0.5 - 2**-54])
async def test_any_flips_are_answered(extreme: httpx.AsyncClient, flips: float) -> None:
    for method in METHODS:
        asked = {"observed": [[1, 0, 0, 0]], "flip_probability": flips, "method": method}
        await check(extreme, "/posterior", model="bit-patterns", **asked, sampler=SHORT)


@pytest.mark.parametrize(
    ("picture", "noise", "said"),
    [
        (torch.linspace(0, 1, 48), 0.2, True),
        (torch.linspace(-1, 1, 48), 0.2, True),
        (255 * torch.linspace(0, 1, 48), 20.0, False),
        (torch.zeros(48), 20.0, False),  # black is black
    ],
)
async def test_pictures_of_another_scale_are_told(
    extreme: httpx.AsyncClient, picture: torch.Tensor, noise: float, *, said: bool
) -> None:
    observed = [picture.view(6, 8).tolist()]
    for path in ("/denoise", "/inpaint", "/posterior"):
        more = {} if path == "/denoise" else {"known": [[1] * 8] * 6}
        asked = {"model": "grey", "observed": observed, "noise_std": noise, "seed": 1}
        found = await check(extreme, path, **asked, **more)
        warning = found["results"][0]["diagnostics"]["warning"] or ""
        assert ("scale them" in warning) == said


async def test_noise_that_no_step_has_is_not_matched(extreme: httpx.AsyncClient) -> None:
    """Within 2% of a step it is; else `auto` takes particles, and `matched` warns, or refuses."""
    asked = {"model": "wild", "observed": [[1.0, 0.0, -3.0]], "seed": 1, "sampler": SHORT}
    first, last = math.exp(-7.0), math.exp(0.65)  # of the schedule's ends, model units
    ratio = (last / first) ** (1 / 39)
    scale = torch.tensor([2.0, 1.0, 0.1])
    for noise, name, warned in (
        (first, "matched", False),
        (first * 1.01, "matched", False),
        (first * ratio**7, "matched", False),
        (first * ratio**7.5, "twisted", True),
        (last * 0.99, "matched", False),
    ):
        std = (noise * scale).tolist()
        found = await check(extreme, "/posterior", **asked, noise_std=std)
        assert found["method"] == name
        named = await check(extreme, "/posterior", **asked, noise_std=std, method="matched")
        warning = named["results"][0]["diagnostics"]["warning"]
        assert (warning is not None) == warned
    for noise in (first * 0.9, last * 1.1, 1e-9, 1e6):
        std = (noise * scale).tolist()
        found = await check(extreme, "/posterior", **asked, noise_std=std)
        assert found["method"] == "twisted"
        named = await check(extreme, "/posterior", **asked, noise_std=std, method="matched")
        assert named["status"] == 422
        assert "times the noise" in named["detail"]
