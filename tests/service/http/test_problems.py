"""Every mistake gets a problem document that says what came, what was expected, how to fix it."""

import base64
import json
import time
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from PIL import Image
from safetensors.torch import save

from tests.service.http.caller import assert_problem

pytestmark = pytest.mark.anyio

MIXTURE: dict[str, Any] = {"model": "gaussian-mixture"}
GREY: dict[str, Any] = {"model": "grey"}
BITS: dict[str, Any] = {"model": "bit-patterns"}
IMAGE = [[7] * 8] * 6
UNSEEN = ("application/octet-stream", "text/event-stream", "text/csv")
PREVIEWS = "text/event-stream; previews=N, N a whole number up to 64"


def png(pixels: ArrayLike, format: str = "PNG") -> str:
    out = BytesIO()
    array = np.asarray(pixels)
    Image.fromarray(array if array.dtype == np.uint16 else array.astype(np.uint8)).save(out, format)
    return base64.b64encode(out.getvalue()).decode()


INVALID: list[tuple[str, dict[str, Any], str]] = [
    # the request's own fields
    ("/sample", MIXTURE | {"num_samples": 0}, "num_samples"),
    ("/sample", MIXTURE | {"num_samples": "3"}, "num_samples"),
    ("/sample", MIXTURE | {"num_samples": 2.5}, "num_samples"),
    ("/sample", MIXTURE | {"seed": -1}, "seed"),
    ("/sample", MIXTURE | {"seed": 2**63}, "seed"),
    ("/sample", MIXTURE | {"num_sample": 3}, "num_sample"),
    ("/sample", MIXTURE | {"sampler": {"name": "euler"}}, "sampler"),
    ("/sample", MIXTURE | {"sampler": {"name": "ancestral", "steps": 101}}, "sampler"),
    ("/sample", MIXTURE | {"sampler": {"name": "ddim", "eta": 2}}, "sampler.ddim.eta"),
    ("/sample", BITS | {"sampler": {"name": "ddim", "steps": 5}}, "sampler"),
    ("/sample", {"num_samples": 1}, "model"),
    ("/sample", {"model": 3}, "model"),
    # data
    ("/loglik", MIXTURE, "data"),
    ("/loglik", MIXTURE | {"data": []}, "data"),
    ("/loglik", MIXTURE | {"data": "x"}, "data"),
    ("/loglik", MIXTURE | {"data": [1.0, 2.0]}, "data"),
    ("/loglik", MIXTURE | {"data": [[1.0, 2.0, 3.0]]}, "data"),
    ("/loglik", MIXTURE | {"data": [[1.0, 2.0], [3.0]]}, "data"),
    ("/loglik", MIXTURE | {"data": [[1.0, None]]}, "data"),
    ("/loglik", MIXTURE | {"data": [[1.0, {}]]}, "data"),
    ("/loglik", MIXTURE | {"data": [[1.0, "2"]]}, "data"),
    ("/loglik", MIXTURE | {"data": [[1.0] * 1000 + ["long" * 100_000]]}, "data"),
    ("/loglik", MIXTURE | {"data": [[1.0, 1e300]]}, "data"),
    ("/loglik", MIXTURE | {"data": ["aGVsbG8="]}, "data[0]"),
    ("/loglik", GREY | {"data": [[[256] * 8] * 6]}, "data"),
    ("/loglik", GREY | {"data": [[[-1] * 8] * 6]}, "data"),
    ("/loglik", GREY | {"data": [[[0.5] * 8] * 6]}, "data"),
    ("/loglik", GREY | {"data": IMAGE}, "data"),
    ("/loglik", BITS | {"data": [[0, 1, 2, 0]]}, "data"),
    ("/loglik", MIXTURE | {"data": [[0, 0]], "terms": 2}, "terms"),
    ("/loglik", MIXTURE | {"data": [[0, 0]], "terms": 12, "trajectories": 2}, "terms"),
    ("/loglik", MIXTURE | {"data": [[0, 0]], "trajectories": 1}, "trajectories"),
    ("/loglik", MIXTURE | {"data": [[0, 0]], "target_error": 1e-6}, "target_error"),
    ("/loglik", MIXTURE | {"data": [[0, 0]], "terms": 90, "strata": "importance"}, "terms"),
    ("/loglik", MIXTURE | {"data": [[0, 0]], "steps": 31}, "steps"),
    ("/loglik", MIXTURE | {"data": [[0, 0]], "steps": 101, "spacing": "even"}, "steps"),
    ("/loglik", MIXTURE | {"data": [[0, 0]], "convention": "discretised"}, "convention"),
    ("/loglik", BITS | {"data": [[0, 0, 0, 1]], "convention": "density"}, "convention"),
    ("/loglik", MIXTURE | {"data": [[0, 0]], "estimator": "parzen"}, "estimator"),
    # PNGs
    ("/loglik", GREY | {"data": ["no base64 at all"]}, "data[0]"),
    ("/loglik", GREY | {"data": ["aGVsbG8="]}, "data[0]"),
    ("/loglik", GREY | {"data": ["data:image/jpeg;base64,aGVsbG8="]}, "data[0]"),
    ("/loglik", GREY | {"data": [IMAGE, png(np.zeros((8, 6)))]}, "data[1]"),
    ("/loglik", GREY | {"data": [png(np.zeros((6, 8)), "BMP")]}, "data[0]"),
    ("/loglik", GREY | {"data": [png(np.zeros((6, 8), dtype=np.uint16))]}, "data[0]"),
    ("/loglik", GREY | {"data": [png(np.arange(144).reshape(6, 8, 3))]}, "data[0]"),
    ("/loglik", GREY | {"data": [png(np.zeros((6, 8)))[:60]]}, "data[0]"),
    ("/loglik", GREY | {"data": [png(np.zeros((6, 8, 2)))]}, "data"),
    ("/loglik", GREY | {"data": [png(np.full((6, 8, 2), 254))]}, "data"),  # not quite opaque
    ("/loglik", GREY | {"data": [[[[7]] * 8] * 6]}, "data"),  # channels last
    # what was observed
    ("/inpaint", MIXTURE | {"observed": [[0, 0]]}, "known"),
    ("/inpaint", MIXTURE | {"observed": [[0, 0]], "known": [0, 0]}, "known"),
    ("/inpaint", MIXTURE | {"observed": [[0, 0]] * 2, "known": [[0, 1], [0, 0]]}, "known"),
    ("/inpaint", MIXTURE | {"observed": [[0, 0]], "known": [0, 0.5]}, "known"),
    ("/inpaint", MIXTURE | {"observed": [[0, 0]], "known": [1]}, "known"),
    ("/inpaint", MIXTURE | {"observed": [[0, 0]], "known": [[0, 1]] * 2}, "known"),
    ("/inpaint", MIXTURE | {"observed": [[0, 0]], "known": 1}, "known"),
    ("/inpaint", GREY | {"observed": [IMAGE], "known": png(np.full((6, 8), 128))}, "known"),
    ("/inpaint", GREY | {"observed": [IMAGE], "known": png(np.zeros((6, 8)))}, "known"),
    ("/inpaint", GREY | {"observed": [png(np.zeros((6, 8, 2)))]}, "known"),
    ("/inpaint", GREY | {"observed": [png(np.full((6, 8, 2), 254))]}, "known"),
    ("/inpaint", GREY | {"observed": [IMAGE], "known": png(np.full((6, 8, 2), 254))}, "known"),
    ("/inpaint", GREY | {"observed": [[[0.5] * 8] * 6], "known": [[1] * 8] * 6}, "observed"),
    ("/inpaint", MIXTURE | {"observed": [[0, 0]], "known": [1, 0], "noise_std": -1}, "noise_std"),
    (
        "/inpaint",
        MIXTURE | {"observed": [[0, 0]], "known": [1, 0], "flip_probability": 0.1},
        "flip_probability",
    ),
    ("/inpaint", MIXTURE | {"observed": [[0, 0]], "known": [1, 0], "method": "magic"}, "method"),
    (
        "/inpaint",
        MIXTURE | {"observed": [[0, 0]], "known": [1, 0], "num_samples": 0},
        "num_samples",
    ),
    ("/inpaint", MIXTURE | {"observed": [[0, 0]], "known": [1, 0], "operator": {}}, "operator"),
    (
        "/inpaint",
        MIXTURE | {"observed": [[0, 0]], "known": [1, 0], "sampler": {"name": "ddim"}},
        "sampler.name",
    ),
    ("/denoise", MIXTURE | {"observed": [[0, 0]]}, "noise_std"),
    ("/denoise", MIXTURE | {"observed": [[0, 0]], "noise_std": 0}, "noise_std"),
    ("/denoise", MIXTURE | {"observed": [[0, 0]], "noise_std": 1, "known": [1, 0]}, "known"),
    ("/denoise", BITS | {"observed": [[0, 0, 0, 0]], "noise_std": 0.1}, "noise_std"),
    ("/denoise", BITS | {"observed": [[0, 0, 0, 0]]}, "flip_probability"),
    ("/denoise", BITS | {"observed": [[0] * 4], "flip_probability": 0.5}, "flip_probability"),
    ("/denoise", GREY | {"observed": [png(np.zeros((6, 8, 2)))], "noise_std": 1}, "observed"),
]


@pytest.mark.parametrize(("path", "asked", "location"), INVALID)
async def test_a_bad_request_is_told_where_it_is_bad(
    client: httpx.AsyncClient, path: str, asked: dict[str, Any], location: str
) -> None:
    document = assert_problem(await client.post(path, json=asked), 422, "invalid-request")
    assert document["location"] == location
    assert {"expected", "fix", "errors"} & set(document) or "came" in document["detail"]


@pytest.mark.parametrize(
    ("path", "asked"),
    [("/sample", {}), ("/inpaint", {"observed": [[0, 0]], "known": [1, 0]})],
)
async def test_too_many_samples_are_told_the_limit(
    client: httpx.AsyncClient, path: str, asked: dict[str, Any]
) -> None:
    asked = MIXTURE | asked | {"num_samples": 10**9}
    begun = time.monotonic()
    document = assert_problem(await client.post(path, json=asked), 422, "too-expensive")
    assert time.monotonic() - begun < 10
    assert document["location"] == "num_samples"
    assert document["received"] == 10**9
    assert document["expected"] == "at most 4096"


async def test_an_unknown_model_is_told_the_known_ones(client: httpx.AsyncClient) -> None:
    for response in (
        await client.post("/sample", json={"model": "imagenet"}),
        await client.get("/models/imagenet"),
    ):
        document = assert_problem(response, 404, "unknown-model")
        assert document["received"] == "imagenet"
        assert document["expected"] == ["bit-patterns", "gaussian-mixture", "grey"]


async def test_every_fault_of_a_request_is_listed(client: httpx.AsyncClient) -> None:
    asked = {"seed": -1, "num_sample": 2, "num_samples": "many"}
    document = assert_problem(await client.post("/sample", json=asked), 422, "invalid-request")
    faults = {fault["location"]: fault for fault in document["errors"]}
    assert set(faults) == {"seed", "num_sample", "num_samples"}
    assert faults["num_sample"]["expected"] == "did you mean num_samples?"
    assert faults["num_samples"]["received"] == "many"


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        (b"", 400, "malformed-body"),
        (b"hello", 400, "malformed-body"),
        (b"[1, 2]", 400, "malformed-body"),
        (b'{"model": "grey"', 400, "malformed-body"),
        (b"\xff\xfe", 400, "malformed-body"),
        (b"[" * 100_000, 400, "malformed-body"),
        (b'{"model": "gaussian-mixture", "data": [[NaN, 0]]}', 422, "invalid-request"),
        (b'{"model": "gaussian-mixture", "data": [[-Infinity, 0]]}', 422, "invalid-request"),
        (b'{"model": "gaussian-mixture", "data": [[1e999, 0]]}', 422, "invalid-request"),
    ],
)
async def test_a_body_that_is_no_json(
    client: httpx.AsyncClient, body: bytes, status: int, slug: str
) -> None:
    headers = {"content-type": "application/json"}
    document = assert_problem(
        await client.post("/loglik", content=body, headers=headers), status, slug
    )
    assert document["fix"]


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        (b"", 400, "malformed-body"),
        (b"no tensors", 400, "malformed-body"),
        (b"\xff" * 64, 400, "malformed-body"),
        (save({"data": torch.zeros(1, 2)})[:-4], 400, "malformed-body"),
        (save({"weights": torch.zeros(1, 2)}), 422, "invalid-request"),
        (save({"data": torch.zeros(1, 2)}, {"request": "no json"}), 400, "malformed-body"),
        (save({"data": torch.full((1, 2), torch.nan)}, {"request": json.dumps(MIXTURE)}), 422,
         "invalid-request"),
        (save({"data": torch.zeros(1, 3)}, {"request": json.dumps(MIXTURE)}), 422,
         "invalid-request"),
        (save({"data": torch.zeros(1, 2, dtype=torch.complex64)},
              {"request": json.dumps(MIXTURE)}), 422, "invalid-request"),
        (save({"data": torch.zeros(1, 2)}, {"request": json.dumps(MIXTURE | {"data": [[0, 0]]})}),
         422, "invalid-request"),
        (save({"data": torch.tensor(0.0)}, {"request": json.dumps(MIXTURE)}), 422,
         "invalid-request"),
    ],
)  # fmt: skip
async def test_a_body_that_is_no_safetensors(
    client: httpx.AsyncClient, body: bytes, status: int, slug: str
) -> None:
    headers = {"content-type": "application/octet-stream"}
    assert_problem(await client.post("/loglik", content=body, headers=headers), status, slug)


async def test_another_content_type_is_told_the_known_ones(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/x-python-pickle"}
    response = await client.post("/loglik", content=b"\x80\x04.", headers=headers)
    document = assert_problem(response, 415, "unsupported-media-type")
    assert document["expected"] == ["application/json", "application/octet-stream", "text/csv"]


async def test_a_png_of_two_headers_is_refused_before_it_is_decoded(
    client: httpx.AsyncClient, bomb: str
) -> None:
    """The first is of the model's size, the second of gigabytes, which Pillow would go by."""
    raw, own = base64.b64decode(bomb), base64.b64decode(png(np.zeros((6, 8))))
    both = base64.b64encode(own[:33] + raw[8:]).decode()  # a signature and a header are 33 bytes
    response = await client.post("/loglik", json=GREY | {"data": [both]})
    problem = assert_problem(response, 422, "invalid-request")
    assert "more than one header" in problem["detail"]


async def test_a_png_bomb_is_refused_by_its_header(client: httpx.AsyncClient, bomb: str) -> None:
    begun = time.monotonic()
    for path, asked in (
        ("/loglik", GREY | {"data": [bomb]}),
        ("/inpaint", GREY | {"observed": [IMAGE], "known": bomb}),
    ):
        document = assert_problem(await client.post(path, json=asked), 422, "invalid-request")
        assert "60000 x 60000" in document["received"]
        assert "8 x 6" in document["expected"]
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("path", "accept", "expected"),
    [
        ("/sample", "text/html", ["application/json", "image/png", *UNSEEN]),
        ("/loglik", "image/png", ["application/json", *UNSEEN]),
        ("/sample", "application/json;q=0", None),
        ("/loglik", "text/event-stream; previews=1", "text/event-stream"),
        ("/sample", "text/event-stream; previews=x", PREVIEWS),
        ("/sample", "text/event-stream; previews=-1", PREVIEWS),
        ("/sample", "text/event-stream; previews=65", PREVIEWS),
    ],
)  # fmt: skip
async def test_an_unacceptable_form_is_told_what_can_be_had(
    client: httpx.AsyncClient, path: str, accept: str, expected: list[str] | str | None
) -> None:
    response = await client.post(path, json=MIXTURE, headers={"accept": accept})
    document = assert_problem(response, 406, "not-acceptable")
    assert expected is None or document["expected"] == expected


async def test_unknown_paths_and_methods(client: httpx.AsyncClient) -> None:
    document = assert_problem(await client.post("/samples", json={}), 404, "unknown-route")
    assert "/sample" in document["expected"]
    response = await client.get("/sample")
    assert_problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


async def test_an_unforeseen_failure_tells_no_secrets(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr("service.handlers.sample.make_plan", fail)
    response = await client.post("/sample", json=MIXTURE)
    assert "secret" not in response.text
    assert_problem(response, 500, "internal-error")
    monkeypatch.undo()
    assert (await client.post("/sample", json=MIXTURE)).status_code == 200
