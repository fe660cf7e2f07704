"""Observations of every kind: what is said of their samples, in what forms, and what cannot be."""

import asyncio
import json
import math
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from diffusion.checkpoint import save as save_model
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns
from service.settings import Settings
from tests.service.http.caller import ask, assert_problem
from tests.service.http.conftest import PATTERNS, WEIGHTS, bit_patterns

pytestmark = pytest.mark.anyio
MIXTURE: dict[str, Any] = {"model": "gaussian-mixture", "seed": 7}
BITS: dict[str, Any] = {"model": "bit-patterns", "seed": 7}
LINE = {"kind": "dense", "rows": [[1.0, 0.5]]}
SIGMAS = 4.5


# ---- what is said of the samples ----


def least(samples: np.ndarray, weights: np.ndarray, level: float) -> np.ndarray:
    """Of each element the least sample with so much weight at or below it; [n, D]."""
    below = (samples[:, None] <= samples[None]).astype(float)  # of j beside i
    enough = np.einsum("jid,j->id", below, weights) >= level - 1e-9
    return np.where(enough, samples, np.inf).min(0)


async def test_summaries_are_those_of_the_samples_as_they_count(client: httpx.AsyncClient) -> None:
    quantiles = [0.05, 0.5, 0.95]
    asked = MIXTURE | {"observed": [[0.3], [1.0]], "operator": LINE, "noise_std": 0.2}
    asked |= {"num_samples": 20, "quantiles": quantiles, "sampler": {"steps": 8}}
    asked |= {"method": {"name": "twisted", "systems": "independent"}}
    answer = await ask(client, "/posterior", **asked)
    response = await client.post(
        "/posterior", json=asked, headers={"accept": "application/octet-stream"}, timeout=120
    )
    tensors = load(response.content)
    assert tensors["quantiles"].shape == (2, 3, 2)
    for i, result in enumerate(answer["results"]):
        samples, w = np.array(result["samples"]), np.array(result["weights"])
        assert w.sum() == pytest.approx(1)
        assert 1.01 / 20 < w.max() < 0.5  # systems of their own evidence
        mean, left = w @ samples, 1 - (w**2).sum()
        assert np.allclose(result["mean"], mean, atol=1e-4)
        assert np.allclose(result["std"], (w @ (samples - mean) ** 2 / left) ** 0.5, atol=1e-4)
        wanted = [least(samples, w, level) for level in quantiles]
        assert np.allclose(result["quantiles"], wanted, atol=1e-4)
        for name in ("samples", "mean", "std", "quantiles"):
            assert np.allclose(tensors[name][i].numpy(), result[name], atol=1e-4)
    without = await ask(client, "/posterior", **(asked | {"quantiles": None}))
    assert without["results"][0]["quantiles"] is None


async def test_one_joint_system_gives_all_samples(client: httpx.AsyncClient) -> None:
    method = {"name": "twisted", "particles": 16, "systems": "joint"}
    asked = MIXTURE | {"observed": [[0.3, 0]], "known": [1, 0], "num_samples": 6}
    answer = await ask(client, "/inpaint", **asked, method=method, sampler={"steps": 8})
    told = answer["results"][0]["diagnostics"]
    assert (told["particles"], told["systems"]) == (16, 1)
    assert 0 < told["log_evidence_error"] < 3  # of 8 steps
    assert answer["network_evaluations"] == 16 * (7 * 2 + 1)
    assert [sample[0] for sample in answer["results"][0]["samples"]] == [0.3] * 6


async def test_few_particles_are_warned_of(client: httpx.AsyncClient) -> None:
    asked = MIXTURE | {"observed": [[-4.0], [1.0]], "operator": LINE, "noise_std": 0.02}
    method = {"name": "twisted", "particles": 2, "covariance": "diagonal"}
    answer = await ask(
        client, "/posterior", **asked, method=method, num_samples=3, sampler={"steps": 3}
    )
    warnings = [result["diagnostics"]["warning"] for result in answer["results"]]
    assert any(warning and "raise particles to 64" in warning for warning in warnings)


async def test_dear_steps_are_a_hundred_where_nothing_is_said_of_them(
    client: httpx.AsyncClient,
) -> None:
    asked = BITS | {
        "observed": [[1, 0, 0, 0]],
        "known": [1, 0, 0, 0],
        "method": {"name": "twisted", "particles": 2},
    }
    answer = await ask(client, "/inpaint", **asked)
    assert (answer["method"], answer["sampler"]["steps"]) == ("twisted", 100)
    assert answer["network_evaluations"] == 2 * 100
    asked |= {"method": "product"}
    answer = await ask(client, "/inpaint", **asked)
    assert (answer["method"], answer["sampler"]["steps"]) == ("product", 200)


async def test_the_special_cases_are_the_same_question(client: httpx.AsyncClient) -> None:
    partly = MIXTURE | {"observed": [[0.3, 0.0]], "known": [1, 0], "sampler": {"steps": 6}}
    wholly = MIXTURE | {"observed": [[0.3, 0.5]], "noise_std": 0.5, "sampler": {"steps": 6}}
    for path, asked in (("/inpaint", partly), ("/denoise", wholly)):
        assert await ask(client, path, **asked) == await ask(client, "/posterior", **asked)


@pytest.mark.parametrize("method", ["twisted", "repaint", "product"])
async def test_what_was_seen_exactly_comes_back_bit_for_bit(
    client: httpx.AsyncClient, method: str
) -> None:
    """As float32 holds it, whatever its units; of noise by element only what has none."""
    observed = torch.tensor([[0.1234567, -1.7654321], [2.3456789, 0.9876543]])
    asked = {"method": method, "num_samples": 3, "sampler": {"steps": 5}, "noise_std": [0.0, 0.7]}
    body = save({"observed": observed}, metadata={"request": json.dumps(MIXTURE | asked)})
    headers = {"content-type": "application/octet-stream", "accept": "application/octet-stream"}
    response = await client.post("/posterior", content=body, headers=headers, timeout=120)
    samples = load(response.content)["samples"]
    assert torch.equal(samples[:, :, 0], observed[:, :1].expand(2, 3))
    assert bool((samples[:, :, 1] != observed[:, 1:]).all())


async def test_a_blur_without_noise_is_undone(client: httpx.AsyncClient) -> None:
    """Two numbers seen exactly through an operator that has an inverse: the example itself,
    which is not what was seen."""
    x = torch.tensor([0.4, -1.6])
    blur = torch.tensor([[0.6, 0.2], [0.3, 0.6]])  # beyond the edges lie zeros
    answer = await ask(
        client,
        "/posterior",
        **MIXTURE,
        operator={"kind": "blur", "kernel": [[0.3, 0.6, 0.2]]},
        observed=[(blur @ x).tolist()],
        method="twisted",
        sampler={"steps": 20},
        num_samples=2,
    )
    for sample in answer["results"][0]["samples"]:
        assert sample == pytest.approx(x.tolist(), abs=1e-3)


# ---- images and forms ----


async def test_a_small_picture_is_what_an_image_was_seen_as(
    client: httpx.AsyncClient, png: Callable[..., str]
) -> None:
    """Blocks of 2 x 2 of a picture of 6 x 8, as a PNG or as numbers; and the contact sheet."""
    small = np.arange(12).reshape(3, 4) * 20
    asked = {
        "model": "grey",
        "seed": 1,
        "operator": {"kind": "average-pooling", "size": 2},
        "noise_std": 10,
        "method": {"name": "twisted", "particles": 2, "covariance": "diagonal"},
        "num_samples": 2,
    }
    answer = await ask(client, "/posterior", **asked, observed=[png(small)])
    assert np.array(answer["results"][0]["samples"]).shape == (2, 1, 6, 8)
    assert answer == await ask(client, "/posterior", **asked, observed=[small.tolist()])
    sheet = await client.post(
        "/posterior", json=asked | {"observed": [png(small)]}, headers={"accept": "image/png"}
    )
    with Image.open(BytesIO(sheet.content)) as image:
        assert image.format == "PNG"


async def test_an_answer_is_the_same_alone_and_beside_others(client: httpx.AsyncClient) -> None:
    asked = MIXTURE | {"observed": [[0.3], [1.0]], "operator": LINE, "noise_std": 0.2}
    asked |= {"num_samples": 3, "sampler": {"steps": 10}}
    alone = await ask(client, "/posterior", **asked)
    beside = await asyncio.gather(
        ask(client, "/posterior", **asked),
        ask(client, "/sample", **MIXTURE, num_samples=9),
        ask(client, "/loglik", **MIXTURE, data=[[0, 0]]),
        ask(client, "/posterior", **(asked | {"seed": 8, "method": "repaint"})),
        ask(client, "/posterior", **asked),
    )
    assert beside[0] == beside[4] == alone  # a wave is the same in any company


# ---- what cannot be ----

WHOLE = MIXTURE | {"observed": [[0.0, 0.0]]}
IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    (WHOLE | {"operator": {"kind": "dense", "rows": [[1, 0], [2, 0]]}}, "operator"),  # singular
    (WHOLE | {"operator": {"kind": "dense", "rows": [[1, 0, 0]]}}, "operator"),
    (
        MIXTURE | {"observed": [[0.0]], "operator": {"kind": "average-pooling", "size": 3}},
        "operator",
    ),
    (WHOLE | {"operator": {"kind": "blur", "kernel": [[1, 1]]}}, "operator.blur.kernel"),
    (WHOLE | {"operator": {"kind": "fourier"}}, "operator"),
    (WHOLE | {"operator": LINE}, "observed"),
    (MIXTURE | {"observed": [[0.0]], "operator": LINE, "known": [1, 0]}, "known"),
    (WHOLE | {"noise_std": [0.1, -0.1]}, "noise_std"),
    (WHOLE | {"noise_std": [0.1, 0.1, 0.1]}, "noise_std"),
    (WHOLE | {"noise_std": [[0.1, 0.1]] * 2}, "noise_std"),
    (WHOLE | {"noise_std": "much"}, "noise_std"),
    (WHOLE | {"quantiles": [1.5]}, "quantiles.0"),
    (WHOLE | {"quantiles": []}, "quantiles"),
    (WHOLE | {"method": "matched"}, "method"),  # there is no noise that a step could have
    (WHOLE | {"method": {"name": "twisted", "systems": "joint"}, "num_samples": 9}, "method"),
    (WHOLE | {"method": {"name": "twisted", "products": 65}}, "method.twisted.products"),
    (WHOLE | {"method": {"name": "twisted", "particles": 0}}, "method.twisted.particles"),
    (WHOLE | {"sampler": {"steps": 101}}, "sampler"),
    (
        BITS | {"observed": [[0, 0, 0, 1]], "flip_probability": 0.1, "method": "repaint"},
        "method",
    ),
    (BITS | {"observed": [[1]], "operator": {"kind": "average-pooling", "size": 4}}, "operator"),
    (BITS | {"observed": [[1, 0, 0, 0.5]]}, "observed"),
    ({"model": "grey", "observed": [[[300] * 8] * 6]}, "observed"),
    (
        {
            "model": "grey",
            "observed": [[[300] * 4] * 3],
            "operator": {"kind": "average-pooling", "size": 2},
        },
        "observed",
    ),
]


@pytest.mark.parametrize(("asked", "location"), IMPOSSIBLE)
async def test_what_cannot_have_been_seen_is_told_where(
    client: httpx.AsyncClient, asked: dict[str, Any], location: str
) -> None:
    document = assert_problem(await client.post("/posterior", json=asked), 422, "invalid-request")
    assert document["location"] == location
    assert {"expected", "fix", "errors"} & set(document) or "came" in document["detail"]


async def test_a_model_that_excludes_what_was_seen_says_so(
    serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last bit is a zero in all patterns, of a network that does not keep its logits finite:
    told in any form, never NaN."""
    monkeypatch.setattr("diffusion.networks.bit_patterns._LOGIT_LIMIT", math.inf)
    model, metadata = bit_patterns()
    patterns = PATTERNS.double()
    patterns[:, 3] = 0
    network = BitPatterns.from_values(WEIGHTS, patterns)
    save_model(
        tmp_path / "m" / "model.safetensors",
        DiffusionModel(model.process, network, model.space, "x_0", None),
        metadata.model_copy(update={"network": network.config}),
    )
    asked = {
        "observed": [[1, 0, 0, 0], [1, 1, 0, 1]],
        "method": {"name": "twisted", "particles": 2},
    }
    asked |= {"sampler": {"steps": 5}}
    async with serve(Settings(models=tmp_path, device="cpu", batch_size=8)) as client:
        for accept in ("application/json", "image/png", "application/octet-stream"):
            response = await client.post("/posterior", json=asked, headers={"accept": accept})
            document = assert_problem(response, 422, "invalid-request")
            assert (document["location"], document["index"]) == ("observed", 1)
            assert "flip_probability" in document["fix"]
        headers = {"accept": "text/event-stream"}
        stream = await client.post("/posterior", json=asked, headers=headers)
    assert stream.status_code == 200
    assert "event: error" in stream.text
    assert "event: result" not in stream.text


async def test_more_particles_than_a_turn_should_take_are_too_dear(
    client: httpx.AsyncClient,
) -> None:
    asked = WHOLE | {"method": {"name": "twisted", "particles": 257}}
    response = await client.post("/posterior", json=asked)
    document = assert_problem(response, 422, "too-expensive")
    assert (document["location"], document["received"]) == ("particles", 257)
    assert document["expected"] == "at most 256"


async def test_an_operator_that_sees_too_much_is_too_dear(client: httpx.AsyncClient) -> None:
    rows = [[1.0, float(i)] for i in range(1025)]
    asked = MIXTURE | {"observed": [[0.0] * 1025], "operator": {"kind": "dense", "rows": rows}}
    document = assert_problem(await client.post("/posterior", json=asked), 422, "too-expensive")
    assert (document["received"], document["expected"]) == (1025, "at most 1024")
