"""The Open Inference Protocol (v2): by tritonclient, the same answers as by the service's own."""

import base64
import json
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion.checkpoint import save
from service.api.inference import OUTPUTS
from service.codecs.tensors import DTYPES, Inference, read_inference, write_inference
from service.errors import Problem
from service.settings import Settings
from tests.noneq.conftest import listening
from tests.service.http.conftest import save_animals, save_models, table

triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")

MIXTURE, SEED = "gaussian-mixture", {"seed": 7}
Peer = Any  # tritonclient has no annotations
DATA = np.array([[0.5, -1.0], [9.0, 9.0]], np.float32)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    save_animals(folder)
    model, metadata = table()
    save(folder / "table" / "model.safetensors", model, metadata)
    with listening(Settings(models=folder, device="cpu", batch_size=64)) as found:
        yield found


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with triton.InferenceServerClient(url.removeprefix("http://")) as found:
        yield found


def tensor(name: str, array: NDArray[Any], *, binary: bool = True) -> Peer:
    kind = next(name for name, code in DTYPES.items() if np.dtype(code) == array.dtype)
    found = triton.InferInput(name, list(array.shape), kind)
    found.set_data_from_numpy(array, binary_data=binary)
    return found


def text(name: str, elements: list[bytes]) -> Peer:
    found = triton.InferInput(name, [len(elements)], "BYTES")
    found.set_data_from_numpy(np.array(elements, object))
    return found


def native(url: str, path: str, **asked: object) -> dict[str, Any]:
    response = httpx.post(url + path, json=asked, timeout=60)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_the_server_and_its_models_are_described(client: Peer) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.is_model_ready("grey")
    assert client.is_model_ready("grey", "1")
    assert not client.is_model_ready("grey", "2")
    assert not client.is_model_ready("nobody")
    told = client.get_model_metadata("grey")
    assert told == client.get_model_metadata("grey", "1")
    inputs = {one["name"]: one for one in told["inputs"]}
    assert inputs["data"]["shape"] == [-1, 1, 6, 8]
    assert {one["name"] for one in told["outputs"]} <= set().union(*OUTPUTS.values())


@pytest.mark.parametrize("binary", [True, False])
def test_samples_likelihoods_and_posteriors_are_the_native_ones(
    client: Peer, url: str, binary: bool
) -> None:
    drawn = client.infer(MIXTURE, [], parameters={"num_samples": 3, "steps": 8, **SEED})
    shown = native(url, "/sample", model=MIXTURE, num_samples=3, sampler={"steps": 8}, **SEED)
    np.testing.assert_array_equal(drawn.as_numpy("samples"), np.float32(shown["samples"]))
    assert drawn.get_response()["parameters"]["seed"] == 7
    wanted = [triton.InferRequestedOutput("bound", binary_data=binary)]
    terms = {"terms": 9, **SEED}
    scored = client.infer(
        MIXTURE, [tensor("data", DATA, binary=binary)], "", wanted, parameters=terms
    )
    shown = native(url, "/loglik", model=MIXTURE, data=DATA.tolist(), **terms)
    bounds = [one["bound"] for one in shown["results"]]
    np.testing.assert_array_equal(scored.as_numpy("bound"), bounds)
    assert [one["name"] for one in scored.get_response()["outputs"]] == ["bound"]
    inputs = [
        tensor("observed", np.array([[0.5, 0.0]], np.float32), binary=binary),
        tensor("known", np.array([True, False]), binary=binary),
    ]
    asked = {"num_samples": 3, "method": "product", "quantiles": "[0.1, 0.9]", **SEED}
    found = client.infer(MIXTURE, inputs, parameters={**asked, "steps": 8}, request_id="mine")
    given = {"observed": [[0.5, 0.0]], "known": [1, 0], "sampler": {"steps": 8}}
    shown = native(url, "/inpaint", model=MIXTURE, **{**asked, "quantiles": [0.1, 0.9]}, **given)
    for name in ("samples", "mean", "std", "quantiles"):
        each = np.float32([one[name] for one in shown["results"]])
        np.testing.assert_array_equal(found.as_numpy(name), each)
    told = found.get_response()
    assert (told["id"], told["model_name"], told["model_version"]) == ("mine", MIXTURE, "1")
    assert told["parameters"]["method"] == "product"
    rest = json.loads(told["parameters"]["answer"])["results"][0]
    assert rest["diagnostics"] == shown["results"][0]["diagnostics"]


def test_a_sampler_a_label_and_an_object_are_parameters(client: Peer) -> None:
    named = client.infer(MIXTURE, [], parameters={"sampler": "ddim", "steps": 5, **SEED})
    whole = {"sampler": '{"name": "ddim", "steps": 5}', **SEED}
    np.testing.assert_array_equal(
        named.as_numpy("samples"), client.infer(MIXTURE, [], parameters=whole).as_numpy("samples")
    )
    asked = {"label": "cat", "steps": 4, "method": '{"name": "twisted", "particles": 4}', **SEED}
    labelled = client.infer("grey", [], parameters=asked)
    assert labelled.as_numpy("samples").shape == (1, 1, 1, 6, 8)
    assert labelled.get_response()["parameters"]["method"] == "twisted"


def test_pictures_and_rows_are_bytes(client: Peer, url: str, png: Callable[..., str]) -> None:
    picture = png(np.arange(48).reshape(6, 8))
    scored = client.infer("grey", [text("data", [base64.b64decode(picture)])], parameters=SEED)
    shown = native(url, "/loglik", model="grey", data=[picture], **SEED)
    assert scored.as_numpy("bound")[0] == shown["results"][0]["bound"]
    row = {"kind": "Gentoo", "mass": None}
    filled = client.infer(
        "table",
        [text("observed", [json.dumps(row).encode()])],
        parameters={"num_samples": 2, "steps": 5, "method": "product", **SEED},
    )
    assert filled.as_numpy("samples").shape == (1, 2, 4)
    assert (filled.as_numpy("samples")[..., 1] == 2).all()  # Gentoo is the third kind


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_body_may_be_compressed(client: Peer, coding: str) -> None:
    asked = {"terms": 9, **SEED}
    plain = client.infer(MIXTURE, [tensor("data", DATA)], parameters=asked)
    packed = client.infer(
        MIXTURE, [tensor("data", DATA)], parameters=asked, request_compression_algorithm=coding
    )
    np.testing.assert_array_equal(plain.as_numpy("bound"), packed.as_numpy("bound"))


def test_every_output_is_among_those_that_may_be_named(client: Peer) -> None:
    asks = {
        "/sample": (MIXTURE, [], {"frames": 2, "steps": 4}),
        "/loglik": ("table", [text("data", [b'{"mass": 4000}'])], {"terms": 9, "per_step": True}),
        "/posterior": (MIXTURE, [tensor("observed", DATA)], {"quantiles": "[0.5]", "steps": 4}),
    }
    for path, (model, inputs, asked) in asks.items():
        found = client.infer(model, inputs, parameters={**asked, **SEED})
        assert {one["name"] for one in found.get_response()["outputs"]} <= set(OUTPUTS[path])


@pytest.mark.parametrize(
    ("model", "inputs", "asked", "status", "told"),
    [
        ("nobody", [], {}, "404", "No model"),
        (MIXTURE, [], {"stepps": 3}, "422", "stepps"),
        (MIXTURE, [], {"num_samples": 10**9}, "422", "more than one request"),
        (MIXTURE, [tensor("x", DATA)], {}, "422", "no such input"),
        (MIXTURE, [tensor("data", DATA[:, :1])], {}, "422", "shape"),
        (MIXTURE, [], {"terms": 9}, "422", "data"),
        (MIXTURE, [], {"sequence_length": 3}, "422", "sequences"),
        (MIXTURE, [text("data", [b"\xff"])], {}, "422", "neither a PNG nor text"),
    ],
)
def test_an_error_is_the_protocols(
    client: Peer, model: str, inputs: list[Any], asked: dict[str, Any], status: str, told: str
) -> None:
    with pytest.raises(triton.InferenceServerException) as refused:
        client.infer(model, inputs, parameters=asked)
    assert refused.value.status() == status
    assert told in refused.value.message()


def test_models_are_loaded_and_unloaded(client: Peer) -> None:
    client.unload_model("bit-patterns")
    states = {each["name"]: each["state"] for each in client.get_model_repository_index()}
    assert (states["bit-patterns"], states["grey"]) == ("UNAVAILABLE", "READY")
    assert not client.is_model_ready("bit-patterns")
    client.load_model("bit-patterns")
    assert client.is_model_ready("bit-patterns")
    with pytest.raises(triton.InferenceServerException, match="no model of that name"):
        client.load_model("nothing")
    with pytest.raises(triton.InferenceServerException) as refused:
        client.load_model("grey", config="{}")
    assert refused.value.status() == "422"


def test_an_output_that_does_not_exist_is_refused_before_anything_is_computed(
    client: Peer, url: str
) -> None:
    def made() -> list[str]:
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        return [line for line in lines if line.startswith("noneq_network_evaluations_total")]

    before = made()
    with pytest.raises(triton.InferenceServerException, match="no logits"):
        client.infer(MIXTURE, [], outputs=[triton.InferRequestedOutput("logits")])
    assert made() == before
    with pytest.raises(triton.InferenceServerException, match="no quantiles"):
        client.infer(
            MIXTURE,
            [tensor("observed", DATA)],
            outputs=[triton.InferRequestedOutput("quantiles")],
            parameters={"steps": 4},
        )


def test_unknown_routes_and_methods_below_v2_are_told_in_its_form(url: str) -> None:
    for response in (
        httpx.get(f"{url}/v2/models/{MIXTURE}/config"),
        httpx.get(f"{url}/v2/models/{MIXTURE}/infer"),
        httpx.get(f"{url}/v2/models/nobody"),
        httpx.post(f"{url}/v2/models/{MIXTURE}/infer", content=b"{"),
    ):
        assert response.status_code in (400, 404, 405)
        assert list(response.json()) == ["error"]


@pytest.mark.anyio
async def test_health_needs_no_key_and_the_rest_does(
    single: Path, serve: Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
) -> None:
    async with serve(Settings(models=single, device="cpu", batch_size=4, api_keys="a")) as caller:
        for path in ("live", "ready"):
            assert (await caller.get(f"/v2/health/{path}")).status_code == 200
            assert (await caller.head(f"/v2/health/{path}")).status_code == 200
        refused = await caller.post(f"/v2/models/{MIXTURE}/infer", json={})
        assert (refused.status_code, list(refused.json())) == (401, ["error"])
        key = {"authorization": "Bearer a"}
        answered = await caller.post(f"/v2/models/{MIXTURE}/infer", json={}, headers=key)
        assert answered.json()["outputs"][0]["shape"] == [1, 2]


@pytest.mark.parametrize("kind", DTYPES)
def test_each_type_goes_in_and_out(kind: str) -> None:
    array = np.array([[0, 1, 1]], DTYPES[kind])
    described = {"name": "x", "datatype": kind, "shape": [1, 3]}
    head = json.dumps({"inputs": [{**described, "parameters": {"binary_data_size": array.nbytes}}]})
    (found,) = read_inference(head.encode() + array.tobytes(), str(len(head)), 999).inputs.values()
    body = json.dumps({"inputs": [{**described, "data": array.tolist()}]}).encode()
    (plain,) = read_inference(body, None, 999).inputs.values()
    for x in (found, plain):
        assert x.tolist() == array.tolist()
        out, size = write_inference({}, [("x", x, True), ("y", x, False)])
        told = json.loads(out[:size])["outputs"]
        assert told[1]["data"] == [0, 1, 1]
        assert np.frombuffer(out[size:], DTYPES[told[0]["datatype"]]).tolist() == [0, 1, 1]


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    size=st.integers(-9, 99),
    shape=st.lists(st.integers(-1, 4), max_size=3),
    kind=st.sampled_from([*DTYPES, "BYTES", "FP7"]),
    data=st.binary(max_size=40),
    length=st.one_of(st.none(), st.integers(-3, 200).map(str), st.just("x")),
)
def test_what_cannot_be_read_is_a_problem(
    size: int, shape: list[int], kind: str, data: bytes, length: str | None
) -> None:
    one = {"name": "x", "datatype": kind, "shape": shape, "parameters": {"binary_data_size": size}}
    found = read(one, data, length)
    if isinstance(found, Problem):
        assert 400 <= found.status < 500
    else:
        assert size == len(data)
        assert found.inputs
    elements = struct.pack("<I", len(data)) + data
    told = {"binary_data_size": len(elements)}
    found = read({"name": "x", "datatype": "BYTES", "shape": [1], "parameters": told}, elements)
    assert found.status == 422 if isinstance(found, Problem) else len(found.inputs["x"]) == 1


def read(one: dict[str, Any], data: bytes, length: str | None = None) -> Inference | Problem:
    head = json.dumps({"inputs": [one]}).encode()
    try:
        return read_inference(head + data, length or str(len(head)), 300)
    except Problem as problem:
        return problem
