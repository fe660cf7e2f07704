"""Builds the OpenAPI document, and describes the bodies, which routes read themselves."""

from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api.body import DEADLINE
from service.codecs.json import BINARY, EVENTS, JSON, PNG
from service.codecs.rows import CSV
from service.errors import MEDIA_TYPE
from service.schemas.jobs import JobAnswer
from service.schemas.requests import BaseRequest
from service.schemas.responses import Preview, ProblemDocument, Progress

_REF = "#/components/schemas/{model}"
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_TEXT = {"schema": {"type": "string"}}

DESCRIPTION = """
Diffusion probabilistic models as probability distributions: draw from them, ask how likely an
example is, and condition them on what was observed.

Values are in **data units**: images 0..255 as `[channels, height, width]` (or `[height, width]` for
one channel), vectors in the units of their data set, bits 0/1. An image may also be a base64 PNG:
complete, not animated, with at most 8 bits per channel. It is read as a viewer shows it (EXIF
orientation applied, converted to grey if the model is grey), and only its opaque pixels count as
observed. Elements of a vector are in the order of the model's `columns`. Rows of a table are
objects by column name, `{"species": "Adelie", "mass": null}`, or lists in the order of the model's
`table`; null, "" and a column that is left out are gaps.

Requests are JSON, or safetensors with the other fields as JSON in the metadata under `request`, or
the rows of a table as CSV (`Content-Type: text/csv`), below a line of column names, with the other
fields in the address: `/inpaint?model=penguins&num_samples=20`. The answer's form follows `Accept`:
JSON, a PNG contact sheet, safetensors with the other fields under `answer`, CSV for rows, or a
stream of progress that ends with the JSON answer. The same request with the same seed gets the same
answer, whatever else is being served.

The header `x-deadline` says for how many seconds from now the answer is wanted. A request that
cannot be done by then is refused before anything is computed; one that is not done by then is
dropped.

With `Prefer: respond-async` every POST below is answered later: with 202, a job in JSON, and its
path `/jobs/ID` in `Location`. `GET /jobs/ID` says where it stands, `GET /jobs/ID/result` has the
answer in any form of the route, in one after the other if they are wanted, and `DELETE /jobs/ID`
cancels it. Jobs run while there are no other requests, so they delay none and a full queue refuses
none. An `Idempotency-Key` makes a repeated request the same job.

Errors are RFC 9457 problem documents: what came, what was expected, how to fix it.
"""

_DEADLINE = {
    "name": DEADLINE,
    "in": "header",
    "required": False,
    "description": "Seconds from now for which the answer is wanted. A request that cannot meet it "
    "is refused at once (503, with `estimated_seconds`), and dropped when it passes (504).",
    "schema": {"type": "number", "exclusiveMinimum": 0},
    "example": 60,  # /docs fills it in: enough for the examples on a CPU
}

_PREFER = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "`respond-async` makes the request a job, which is answered at once with 202 "
    "and runs while there are no other requests. With `respond-async, wait=N` the result "
    "is the answer if it is there within N seconds, 60 at most.",
    "schema": {"type": "string"},
}
#: What a route adds to its operation if it waits for a job.
WAIT: Final = {
    "parameters": [
        {
            "name": "Prefer",
            "in": "header",
            "required": False,
            "description": "`wait=N`: wait up to N seconds, 60 at most, for the job's end.",
            "schema": {"type": "string"},
        }
    ]
}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Of a job: the same request with the same key is the same job, however often it "
    "is sent; another request with it is refused (422).",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}

_STREAM = """

A stream has `progress` events (schema Progress), about five per second while something changes, and
ends with one `result`, whose data are the JSON answer, or one `error`, whose data are the problem
document. A request that is refused at once gets no stream but a problem with its own status.
`; previews=N` after the media type adds `preview` events (schema Preview) of the first N rows, if
samples are drawn. The last `progress` has the timings that are otherwise in the headers
`x-queue-time` and `x-compute-time`. Comments in between keep the connection open. `curl -N` shows
events as they come.
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
    403: "A page of another site sent it, or the caller may not do this.",
    404: "No such model.",
    406: "The answer has no form that Accept allows.",
    408: "The body took too long to arrive.",
    409: "The job is not done.",
    413: "The body is too large.",
    415: "The body's type or coding is not supported.",
    429: "The key's budget is used up; see Retry-After.",
    422: "Invalid request; nothing was computed.",
    500: "The service failed.",
    503: "Queue full, no room, deadline unmeetable, starting or stopping; see Retry-After.",
    504: "The deadline passed; the request was dropped.",
    507: "A job could not be written to the disk.",
}
_POST = (400, 401, 403, 404, 406, 408, 413, 415, 422, 503, 504, 507)

_OTHERS = {507: "The model does not fit into the device's memory."}


def request_body(schema: type[BaseRequest]) -> dict[str, Any]:
    """Describe a route's request body and headers, for FastAPI to add to its operation."""
    content: dict[str, Any] = {
        JSON: {"schema": {"$ref": _REF.format(model=schema.__name__)}},
        BINARY: _BYTES,
        **({CSV: _TEXT} if schema.rows else {}),
    }
    parameters = [_DEADLINE, _PREFER, _KEY]
    return {"requestBody": {"required": True, "content": content}, "parameters": parameters}


def responses(offers: Sequence[str]) -> dict[int | str, dict[str, Any]]:
    """Describe the forms of a route's answer besides JSON, and its problems."""
    names = {PNG: "a contact sheet", BINARY: "safetensors", CSV: "rows of numbers or of a table"}
    forms = [form for form in offers if form in names]
    listed = ", ".join(f"`{form}` ({names[form]})" for form in forms)
    streams = [EVENTS, f"{EVENTS}; previews=4"] if PNG in forms else [EVENTS]
    found: dict[int | str, dict[str, Any]] = {
        200: {
            "description": f"The answer, as `{JSON}`, {listed} or `{EVENTS}`. {_STREAM}",
            "content": {form: _TEXT if form == CSV else _BYTES for form in forms}
            | dict.fromkeys(streams, _EVENTS),
        }
    }
    job = {"schema": {"$ref": _REF.format(model=JobAnswer.__name__)}}
    location = {"description": "Path of the job.", "schema": {"type": "string"}}
    found[202] = {
        "description": "With `Prefer: respond-async`: the job that the request has become.",
        "content": {JSON: job},
        "headers": {"Location": location},
    }
    return found | problems(*_POST)


def job_responses() -> dict[int | str, dict[str, Any]]:
    """Describe a job's state as JSON or a stream, and its problems."""
    about = f"The job, as `{JSON}`, or `{EVENTS}` with its progress that ends with the job."
    found = {200: {"description": about, "content": {EVENTS: _TEXT}}}
    return found | problems(401, 403, 404, 406, 422)


def result_responses() -> dict[int | str, dict[str, Any]]:
    """Describe the forms of a job's answer, and its problems."""
    about = "The answer, in the forms of the job's route."
    content = {JSON: {}, BINARY: _BYTES, PNG: _BYTES, CSV: _TEXT, EVENTS: _TEXT}
    found = {200: {"description": about, "content": content}}
    return found | problems(401, 403, 404, 406, 409, 422, 500, 504)


def examples_responses() -> dict[int | str, dict[str, Any]]:
    """Describe the forms of an answer with held-out data besides JSON, and its problems."""
    description = (
        f"The data, as `{JSON}`, `{PNG}` (a contact sheet), `{BINARY}` (safetensors) or `{CSV}`."
    )
    content = dict.fromkeys((PNG, BINARY), _BYTES) | {CSV: _TEXT}
    return {200: {"description": description, "content": content}} | problems(404, 406, 422)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the problem documents of these statuses."""
    ref = {"$ref": _REF.format(model=ProblemDocument.__name__)}
    return {
        status: {
            "description": (_PROBLEMS | _OTHERS)[status],
            "content": {MEDIA_TYPE: {"schema": ref}},
        }
        for status in statuses
    }


def document(app: FastAPI, requests: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """Build the app's document, including the schemas of the requests that its routes read."""
    found = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        servers=[{"url": ".", "description": "The address of this document."}],
    )
    pairs: list[tuple[type[BaseModel], Any]] = [(schema, "validation") for schema in requests]
    pairs.extend((schema, "serialization") for schema in (ProblemDocument, Progress, Preview))
    _, definitions = models_json_schema(pairs, ref_template=_REF)
    components = found.setdefault("components", {}).setdefault("schemas", {})
    for name, schema in definitions.get("$defs", {}).items():
        components.setdefault(name, schema)
    for schema in components.values():
        _plain_defaults(schema)
    return found


def _plain_defaults(schema: dict[str, Any]) -> None:
    """Rename defaults that are objects, because client generators refuse a schema with them."""
    for field in schema.get("properties", {}).values():
        if isinstance(field.get("default"), dict):
            field["x-default"] = field.pop("default")
