"""The Open Inference Protocol (v2) of KServe and Triton, over the same work as the other routes.

Which question is asked follows from what is sent: `data` asks for their likelihood (/loglik),
`observed` or another field of a posterior for one (/posterior), and nothing for samples (/sample).
Inputs and parameters have the names of these routes' fields.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
import torch
from anyio import to_thread
from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect
from torch import Tensor

from noneq.version import __version__
from service.api.body import DEADLINE, Answer, body_of, find_deadline
from service.api.info import add_heads
from service.api.routes import ENDPOINTS, Endpoint, finished, no_answer, submit, validate
from service.codecs.json import BINARY, JSON, content_coding, inflate, to_json
from service.codecs.tensors import LENGTH, Inference, datatype, read_inference, write_inference
from service.errors import InvalidRequest, UnknownModel
from service.handlers.base import Work
from service.schemas.conditions import PosteriorRequest
from service.schemas.requests import LoglikRequest, SampleRequest
from service.state import Backend, backend_of

_EXTENSIONS: Final = ("binary_tensor_data", "model_repository", "parameters")
_VERSION: Final = "1"
_SAMPLE, _LOGLIK, _POSTERIOR = (
    next(one for one in ENDPOINTS if one.path == path)
    for path in ("/sample", "/loglik", "/posterior")
)
#: Parameters of the protocol, which are not fields; an order of requests is not kept.
_OWN: Final = ("binary_data_output", "timeout", "priority")
_INPUTS: Final = ("data", "observed", "known", "noise_std")
_OF_POSTERIORS: Final = PosteriorRequest.model_fields.keys() - SampleRequest.model_fields.keys()
_OF_LIKELIHOODS: Final = LoglikRequest.model_fields.keys() - (
    SampleRequest.model_fields.keys() | PosteriorRequest.model_fields.keys() | {"steps"}
)
#: The tensors that an answer may have, so that another name is refused before anything is computed.
OUTPUTS: Final[Mapping[str, tuple[str, ...]]] = {
    "/sample": ("samples", "trajectory_t", "trajectory_x", "trajectory_x_0"),
    "/posterior": ("samples", "mean", "std", "quantiles"),
    "/loglik": (
        *("bound", "standard_error", "degrees_of_freedom", "interval", "relative_to_prior"),
        *("rarer_than", "typicality", "band_t", "band_nats", "band_rarer_than"),
        *("prior", "steps", "last", "gain", "elements", "column_nats", "column_rarer_than"),
        *("term_t", "term_weight", "term_value"),
    ),
}
#: Those that a model is described with, and whether they have a model's own axes behind the first.
_DESCRIBED: Final = {"samples": True, "mean": True, "std": True, "bound": False} | {
    "standard_error": False
}

router = APIRouter(include_in_schema=False)


@router.get("/v2")
async def server_metadata() -> Response:
    """Describe the server."""
    return _json({"name": "noneq", "version": __version__, "extensions": _EXTENSIONS})


@router.get("/v2/health/live")
async def server_live(request: Request) -> Response:
    """Report whether the process works, as /health/live does."""
    problem = backend_of(request).dead()
    if problem is not None:
        raise problem
    return _json({"live": True})


@router.get("/v2/health/ready")
async def server_ready(request: Request) -> Response:
    """Report whether requests are accepted, as /health/ready does."""
    backend_of(request).check()
    return _json({"ready": True})


@router.get("/v2/models/{name}")
@router.get("/v2/models/{name}/versions/{version}")
async def model_metadata(request: Request, name: str, version: str = _VERSION) -> Response:
    """Describe a model's inputs, none of which has to be sent, and outputs."""
    backend = backend_of(request)
    _check_version(name, version)
    space = backend.find(name).model.space
    shape, dtype = list(space.shape), datatype(torch.zeros(0, dtype=space.dtype).numpy())
    return _json(
        {
            "name": name,
            "versions": [_VERSION],
            "platform": "noneq",
            "inputs": [
                {
                    "name": one,
                    "datatype": "BOOL" if one == "known" else dtype,
                    "shape": [-1, *shape],
                }
                for one in _INPUTS
            ],
            "outputs": [
                {
                    "name": one,
                    "datatype": dtype if own else "FP64",
                    "shape": [-1, *shape] if own else [-1],
                }
                for one, own in _DESCRIBED.items()
            ],
        }
    )


@router.get("/v2/models/{name}/ready")
@router.get("/v2/models/{name}/versions/{version}/ready")
async def model_ready(request: Request, name: str, version: str = _VERSION) -> Response:
    """Report whether a model answers."""
    backend = backend_of(request)
    backend.check()
    _check_version(name, version)
    backend.find(name)
    return _json({"name": name, "ready": True})


@router.post("/v2/models/{name}/infer")
@router.post("/v2/models/{name}/versions/{version}/infer")
async def infer(request: Request, name: str, version: str = _VERSION) -> Response:
    """Answer a request whose inputs and outputs are tensors."""
    backend = backend_of(request)
    backend.check()
    _check_version(name, version)
    settings, length = backend.settings, request.headers.get(LENGTH)
    coding = content_coding(request.headers.getlist("content-encoding"))
    limit = settings.max_body_bytes
    limit = limit if length is not None else min(limit, settings.max_json_bytes)
    deadline = find_deadline(request.headers.getlist(DEADLINE), settings.deadline_seconds)
    asked: list[Inference] = []
    begun = time.monotonic()
    try:
        async with body_of(request, backend.engine, settings, deadline, limit=limit) as raw:

            def prepare() -> Work[Any]:
                body = inflate(raw, coding, limit)
                asked[:] = [read_inference(body, length, settings.max_json_bytes)]
                return _prepare(asked[0], name, backend)

            work, ticket = await submit(request, prepare, deadline, begun)
    except ClientDisconnect:
        return no_answer(request)
    hold = ticket.hold_bytes()
    try:
        if not await finished(request, ticket):
            hold.release()
            return no_answer(request)
        result = ticket.result()
        request.state.queue_seconds = result.stats.queue_seconds
        request.state.compute_seconds = result.stats.compute_seconds
        with request.state.trace.stage("encode"):
            body, size = await to_thread.run_sync(_render, asked[0], name, work, result)
    except BaseException:
        hold.release()
        raise
    hold.resize(len(body))
    answer = Answer(body, JSON if size is None else BINARY, hold, settings.write_seconds)
    if size is not None:
        answer.headers[LENGTH] = str(size)
    return answer


add_heads(router)


def _check_version(name: str, version: str) -> None:
    if version != _VERSION:
        raise UnknownModel(
            "The model has no such version.",
            received=f"{name}, version {version[:100]}",
            expected=_VERSION,
            fix="Leave the version out.",
        )


def _prepare(asked: Inference, name: str, backend: Backend) -> Work[Any]:
    fields = {key: _value(x) for key, x in asked.asked.parameters.items() if key not in _OWN}
    unknown = [one for one in asked.inputs if one not in _INPUTS]
    if unknown or any(key.startswith("sequence_") for key in fields):
        raise InvalidRequest(
            "There is no such input." if unknown else "Requests are not in sequences.",
            location="inputs" if unknown else "parameters",
            received=unknown or None,
            expected=list(_INPUTS),
            fix="GET /v2/models/NAME names inputs and outputs.",
        )
    endpoint = _endpoint({*asked.inputs, *fields})
    if endpoint is not _LOGLIK:
        fields = _with_sampler(fields)
    known = OUTPUTS[endpoint.path]
    wrong = [one.name for one in asked.asked.outputs if one.name not in known]
    if wrong:
        raise _no_output(wrong, known)
    request = validate(endpoint.request, {**fields, **asked.inputs, "model": name})
    return endpoint.work.prepare(request, backend)


def _endpoint(names: set[str]) -> Endpoint:
    """Tell which question is asked by the names of what is sent."""
    if names & _OF_LIKELIHOODS:
        return _LOGLIK
    return _POSTERIOR if names & _OF_POSTERIORS else _SAMPLE


def _with_sampler(fields: dict[str, Any]) -> dict[str, Any]:
    """Write `steps` and the name of a sampler as the sampler that they mean."""
    sampler = fields.pop("sampler", {})
    sampler = {"name": sampler} if isinstance(sampler, str) else sampler
    if "steps" in fields and isinstance(sampler, dict):
        sampler = {**sampler, "steps": fields.pop("steps")}
    return {**fields, "sampler": sampler} if sampler else fields


def _value(x: bool | float | str) -> object:
    """Read a parameter, which is a number or text; objects and lists come as text in JSON."""
    if isinstance(x, str) and x[:1] in ("{", "["):
        try:
            return orjson.loads(x)
        except orjson.JSONDecodeError:
            return x
    return x


def _render(asked: Inference, name: str, work: Work[Any], result: Any) -> tuple[bytes, int | None]:  # noqa: ANN401
    """Write the outputs that are wanted, all if none is named; the rest of the answer is text."""
    tensors: dict[str, Tensor] = work.tensors(result)
    answer = work.answer(result).model_dump(exclude=work.arrays)
    wanted = [one.name for one in asked.asked.outputs] or list(tensors)
    absent = [one for one in wanted if one not in tensors]
    if absent:
        raise _no_output(absent, list(tensors))
    scalars = {key: x for key, x in answer.items() if isinstance(x, bool | int | float | str)}
    head = {
        "model_name": name,
        "model_version": _VERSION,
        **({"id": asked.asked.id} if asked.asked.id else {}),
        "parameters": {**scalars, "answer": to_json(answer).decode()},
    }
    return write_inference(head, [(one, tensors[one], asked.binary(one)) for one in wanted])


def _no_output(absent: Sequence[str], there: Sequence[str]) -> InvalidRequest:
    return InvalidRequest(
        f"The answer has no {', '.join(absent)[:200]}.",
        location="outputs",
        received=absent[:20],
        expected=list(there),
        fix="Name other outputs, or none for all that there are.",
    )


def _json(document: Mapping[str, Any]) -> Response:
    return Response(to_json(document), media_type=JSON)
