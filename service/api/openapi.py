"""The OpenAPI document: the routes read their bodies themselves, so their forms are told here."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api.body import DEADLINE
from service.codecs.json import BINARY, EVENTS, JSON, PNG
from service.errors import MEDIA_TYPE
from service.schemas.conditions import DenoiseRequest, InpaintRequest, PosteriorRequest
from service.schemas.requests import LoglikRequest, SampleRequest
from service.schemas.responses import Preview, ProblemDocument, Progress

REQUESTS: tuple[type[BaseModel], ...] = (
    SampleRequest,
    LoglikRequest,
    PosteriorRequest,
    InpaintRequest,
    DenoiseRequest,
)
_REF = "#/components/schemas/{model}"
_BYTES = {"schema": {"type": "string", "format": "binary"}}

DESCRIPTION = """
Diffusion probabilistic models as probability distributions: draw from them, ask how likely an
example is, and condition them on what was observed.

Values are in **data units**: images 0..255 as `[channels, height, width]` (or `[height, width]` for
one channel), vectors in the units of their data set, bits 0/1. Wherever an image is wanted, a
base64 PNG does too: whole and undamaged, not animated, of at most 8 bits a channel, read as a
viewer shows it (EXIF orientation; grey where the model is), and seen only where it is opaque.
Elements of a vector are in the order of the model's `columns`. Requests are JSON, or safetensors
with the other fields as JSON in the metadata under `request`. Answers are what `Accept` asks for:
JSON, a PNG contact sheet, safetensors with the other fields under `answer`, or a stream of progress
that ends in the JSON answer. The same request with the same seed gets the same answer, whatever
else is being served.

The header `x-deadline` says how many seconds from now an answer is of use. A request that cannot be
done by then is refused before anything is computed; one that is not done by then is dropped.

Errors are RFC 9457 problem documents: what came, what was expected, how to fix it.
"""

_DEADLINE = {
    "name": DEADLINE,
    "in": "header",
    "required": False,
    "description": "Seconds from now within which the answer is of use. Refused at once (503, with "
    "`estimated_seconds`) where it cannot be met; dropped (504) when it passes.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
    "example": 60,  # /docs fills it in: enough for the examples on a CPU
}

_STREAM = """

A stream has `progress` events (schema Progress), about five a second while something changes, and
ends in one `result`, whose data are the JSON answer, or one `error`, whose data are the problem
document. What is refused at once is no stream but a problem with its own status. `; previews=N`
behind the media type, where samples are drawn, adds `preview` events (schema Preview) of the first
N rows. The last `progress` tells what the headers `x-queue-time` and `x-compute-time` tell
elsewhere. Comments in between keep the connection open. `curl -N` shows events as they come.
"""

_EVENTS = {
    "schema": {"type": "string"},
    "example": 'event: progress\ndata: {"state":"running","step":480,"total":4000,'
    '"seconds_left":5.1,"queue_seconds":0.004,"compute_seconds":0.7}\n\n'
    'event: result\ndata: {"model":"mnist","seed":7}\n\n',
}

_PROBLEMS = {
    400: "The body cannot be read.",
    401: "An API key is needed.",
    403: "A page of another site asks.",
    404: "No such model.",
    406: "No acceptable form of the answer.",
    408: "The body took too long to arrive.",
    413: "The body is too large.",
    415: "The body's type or coding is none that is read.",
    422: "Invalid request; nothing was computed.",
    503: "Queue full, no room, deadline unmeetable, starting or stopping; see Retry-After.",
    504: "The deadline passed; what was waiting or running has been dropped.",
}


def request_body(schema: type[BaseModel]) -> dict[str, Any]:
    """What FastAPI adds to the route's operation."""
    content: dict[str, Any] = {
        JSON: {"schema": {"$ref": _REF.format(model=schema.__name__)}},
        BINARY: _BYTES,
    }
    return {"requestBody": {"required": True, "content": content}, "parameters": [_DEADLINE]}


def responses(*forms: str) -> dict[int | str, dict[str, Any]]:
    """A route's answers besides JSON, and its problems."""
    names = {PNG: "a contact sheet", BINARY: "safetensors"}
    told = ", ".join(f"`{form}` ({names[form]})" for form in forms)
    streams = [EVENTS, f"{EVENTS}; previews=4"] if PNG in forms else [EVENTS]
    found: dict[int | str, dict[str, Any]] = {
        200: {
            "description": f"The answer, as `{JSON}`, {told} or `{EVENTS}`. {_STREAM}",
            "content": dict.fromkeys(forms, _BYTES) | dict.fromkeys(streams, _EVENTS),
        }
    }
    return found | problems(*_PROBLEMS)


def examples_responses() -> dict[int | str, dict[str, Any]]:
    """The answers about held-out data, and the problems of asking for them."""
    description = f"The data, as `{JSON}`, `{PNG}` (a contact sheet) or `{BINARY}` (safetensors)."
    content = dict.fromkeys((PNG, BINARY), _BYTES)
    return {200: {"description": description, "content": content}} | problems(404, 406, 422)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Problem documents of these statuses."""
    ref = {"$ref": _REF.format(model=ProblemDocument.__name__)}
    return {
        status: {"description": _PROBLEMS[status], "content": {MEDIA_TYPE: {"schema": ref}}}
        for status in statuses
    }


def document(app: FastAPI, schemas: Sequence[type[BaseModel]] = REQUESTS) -> Mapping[str, Any]:
    """The app's document, with the schemas that its routes refer to."""
    found = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        servers=[{"url": ".", "description": "Where this document lies."}],
    )
    pairs: list[tuple[type[BaseModel], Any]] = [(schema, "validation") for schema in schemas]
    told: tuple[type[BaseModel], ...] = (ProblemDocument, Progress, Preview)
    pairs.extend((schema, "serialization") for schema in told)
    _, definitions = models_json_schema(pairs, ref_template=_REF)
    components = found.setdefault("components", {}).setdefault("schemas", {})
    for name, schema in definitions.get("$defs", {}).items():
        components.setdefault(name, schema)
    for schema in components.values():
        _plain_defaults(schema)
    return found


def _plain_defaults(schema: dict[str, Any]) -> None:
    """Take out the defaults that are objects: generators of clients refuse a schema for them."""
    for field in schema.get("properties", {}).values():
        if isinstance(field.get("default"), dict):
            field["x-default"] = field.pop("default")
