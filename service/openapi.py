"""The OpenAPI document: the routes read their bodies themselves, so their forms are told here."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.answers import ProblemDocument
from service.door import DEADLINE
from service.encoding import BINARY, JSON, PNG
from service.problems import MEDIA_TYPE
from service.schemas import DenoiseRequest, InpaintRequest, LoglikRequest, SampleRequest

REQUESTS: tuple[type[BaseModel], ...] = (
    SampleRequest,
    LoglikRequest,
    InpaintRequest,
    DenoiseRequest,
)
_REF = "#/components/schemas/{model}"
_BYTES = {"schema": {"type": "string", "format": "binary"}}

DESCRIPTION = """
Diffusion probabilistic models as probability distributions: draw from them, ask how likely a datum
is, and condition them on what was observed.

Values are in **data units**: images 0..255 as `[channels, height, width]` (or `[height, width]` for
one channel), vectors in the units of their data set, bits 0/1. Wherever an image is wanted, a
base64 PNG does too. Requests are JSON, or safetensors with the other fields as JSON in the metadata
under `request`. Answers are what `Accept` asks for: JSON, a PNG contact sheet, or safetensors with
the other fields under `answer`. The same request with the same seed gets the same answer, whatever
else is being served.

The header `x-deadline` says how many seconds from now an answer is of use. A request that cannot be
done by then is refused before anything is computed; one that is not done by then is dropped.

Errors are RFC 9457 problem documents: what came, what was expected, how to mend it.
"""

_DEADLINE = {
    "name": DEADLINE,
    "in": "header",
    "required": False,
    "description": "Seconds from now within which the answer is of use. Refused at once (503, with "
    "`estimated_seconds`) where it cannot be met; dropped (504) when it passes.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
    "example": 2.5,
}

_PROBLEMS = {
    400: "The body cannot be read.",
    404: "No such model.",
    406: "No acceptable form of the answer.",
    408: "The body took too long to arrive.",
    413: "The body is too large.",
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
    found: dict[int | str, dict[str, Any]] = {
        200: {
            "description": f"The answer, as `{JSON}`" + (f", or {told}" if told else ""),
            "content": dict.fromkeys(forms, _BYTES),
        }
    }
    return found | problems(*_PROBLEMS)


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
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    pairs: list[tuple[type[BaseModel], Any]] = [(schema, "validation") for schema in schemas]
    pairs.append((ProblemDocument, "serialization"))
    _, definitions = models_json_schema(pairs, ref_template=_REF)
    components = found.setdefault("components", {}).setdefault("schemas", {})
    for name, schema in definitions.get("$defs", {}).items():
        components.setdefault(name, schema)
    return found
