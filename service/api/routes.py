"""The questions that can be asked of models: parse, submit, answer.

Bodies are read and answers written in worker threads, so that one caller's megabytes hold up
nobody else; the engine's future is awaited beside the client's connection, so that a client who
leaves frees his rows. Whoever asks for a stream is told of the progress meanwhile (streams.py).
"""

import asyncio
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from service.api.body import DEADLINE, body_limit, body_of, find_deadline
from service.api.openapi import request_body, responses
from service.api.streams import Answer, EventStream, leaving, previews_wanted
from service.catalogue import Catalogue
from service.codecs.json import (
    BINARY,
    EVENTS,
    PNG,
    content_coding,
    decode_body,
    inflate,
    json_kind,
    negotiate,
)
from service.engine.results import Ticket
from service.errors import InvalidRequest
from service.handlers.base import Work
from service.handlers.loglik import LoglikWork
from service.handlers.posterior import PosteriorWork
from service.handlers.sample import SampleWork
from service.schemas.conditions import Conditions, DenoiseRequest, InpaintRequest, PosteriorRequest
from service.schemas.requests import LoglikRequest, SampleRequest
from service.schemas.responses import LoglikAnswer, PosteriorAnswer, SampleAnswer
from service.settings import Settings
from service.state import backend_of

Asked = TypeVar("Asked", SampleRequest, LoglikRequest, Conditions)
Prepare = Callable[[Asked, Catalogue, Settings], Work[Any]]

router = APIRouter()


@router.post(
    "/sample",
    tags=["distributions"],
    response_model=SampleAnswer,
    responses=responses(PNG, BINARY),
    openapi_extra=request_body(SampleRequest),
)
async def sample(request: Request) -> Response:
    """Draw from p(x_0)."""
    return await _serve(request, SampleRequest, SampleWork.prepare, SampleWork.offers)


@router.post(
    "/loglik",
    tags=["distributions"],
    response_model=LoglikAnswer,
    responses=responses(BINARY),
    openapi_extra=request_body(LoglikRequest),
)
async def loglik(request: Request) -> Response:
    """Bound log p(x_0) of given data from below, with the estimate's standard error."""
    return await _serve(request, LoglikRequest, LoglikWork.prepare, LoglikWork.offers)


@router.post(
    "/posterior",
    tags=["distributions"],
    response_model=PosteriorAnswer,
    responses=responses(PNG, BINARY),
    openapi_extra=request_body(PosteriorRequest),
)
async def posterior(request: Request) -> Response:
    """Draw from p(x_0) r(x_0), whatever was observed, and say how likely that was.

    A label that a classifier reads, or another model, may be a factor too, alone or beside it.
    """
    return await _serve(request, PosteriorRequest, PosteriorWork.prepare, PosteriorWork.offers)


@router.post(
    "/inpaint",
    tags=["distributions"],
    response_model=PosteriorAnswer,
    responses=responses(PNG, BINARY),
    openapi_extra=request_body(InpaintRequest),
)
async def inpaint(request: Request) -> Response:
    """Draw what was not observed, given what was: p(x_0) r(x_0)."""
    return await _serve(request, InpaintRequest, PosteriorWork.prepare, PosteriorWork.offers)


@router.post(
    "/denoise",
    tags=["distributions"],
    response_model=PosteriorAnswer,
    responses=responses(PNG, BINARY),
    openapi_extra=request_body(DenoiseRequest),
)
async def denoise(request: Request) -> Response:
    """Draw the data behind noisy observations of all their values."""
    return await _serve(request, DenoiseRequest, PosteriorWork.prepare, PosteriorWork.offers)


async def _serve(
    request: Request, schema: type[Asked], prepare: Prepare[Asked], offers: tuple[str, ...]
) -> Response:
    accept = ", ".join(request.headers.getlist("accept"))
    form = negotiate(accept, offers)
    previews = previews_wanted(accept, offers) if form == EVENTS else 0
    try:
        work, ticket = await _accept(request, schema, prepare, form)
    except ClientDisconnect:
        return _client_left(request)
    backend, hold = backend_of(request), ticket.keep()
    seconds = backend.settings.write_seconds
    if form == EVENTS:
        return EventStream(work, ticket, backend.engine, hold, seconds, previews)
    try:
        if not await _finished(request, ticket):
            hold.release()
            return _client_left(request)
        result = ticket.result()
        request.state.queue_seconds = result.queue_seconds
        request.state.compute_seconds = result.compute_seconds
        body = await to_thread.run_sync(work.render, result, form)
    except BaseException:
        hold.release()
        raise
    hold.resize(len(body))
    return Answer(body, form, hold, seconds)


async def _accept(
    request: Request, schema: type[Asked], prepare: Prepare[Asked], form: str
) -> tuple[Work[Any], Ticket[Any]]:
    """Read, decode and submit. The body's bytes end with this call, whatever the job then takes."""
    backend = backend_of(request)
    backend.check()
    settings, content_type = backend.settings, request.headers.get("content-type")
    coding, limit = request.headers.getlist("content-encoding"), body_limit(content_type, settings)
    deadline = find_deadline(request.headers.getlist(DEADLINE), settings.deadline_seconds)
    async with body_of(request, backend.engine, settings, deadline) as raw:

        def ready_work() -> Work[Any]:
            body = inflate(raw, content_coding(coding), limit)
            asked = parse(schema, content_type, body, settings.max_json_bytes)
            request.state.deprecated = bool(asked.deprecation)
            work = prepare(asked, backend.catalogue, settings)
            work.check(form)
            return work

        # Decoded numbers are larger than their text, and rendering needs the threads as well.
        async with backend.decoding:
            work = await to_thread.run_sync(ready_work)
        return work, backend.engine.submit(work.job, deadline)


def parse(schema: type[Asked], content_type: str | None, raw: bytes, max_json_bytes: int) -> Asked:
    """The request that a body holds, checked against its schema."""
    body = decode_body(content_type, raw, max_json_bytes)
    try:
        return schema.model_validate({**body.fields, **body.tensors})
    except ValidationError as error:
        raise _invalid(schema, error) from None


def _invalid(schema: type[BaseModel], error: ValidationError) -> InvalidRequest:
    """Every fault at once: where, what came, what was expected."""
    faults = []
    for fault in error.errors(include_url=False)[:20]:
        place = ".".join(str(part) for part in fault["loc"])
        expected = fault["msg"].removeprefix("Value error, ")
        found: dict[str, Any] = {"location": place, "expected": expected}
        if fault["type"] == "extra_forbidden" and len(fault["loc"]) > 1:
            found["expected"] = f"no such field; /docs shows those of {fault['loc'][0]}"
        elif fault["type"] == "extra_forbidden":
            near = get_close_matches(place, schema.model_fields, 1)
            found["expected"] = (
                f"did you mean {near[0]}?" if near else f"only {', '.join(schema.model_fields)}"
            )
        if fault["type"] != "missing":
            found["received"] = _short(fault["input"])
        faults.append(found)
    first = faults[0]
    return InvalidRequest(
        f"{first['location'] or 'The body'}: {first['expected']}"
        + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""),
        location=first["location"],
        errors=faults,
        fix="Mend the fields listed under errors; /docs shows them all with examples.",
    )


def _short(value: object) -> object:
    if isinstance(value, str):
        return value[:100]
    plain = (
        value is None
        or isinstance(value, bool | float)
        or (isinstance(value, int) and abs(value) < 2**63)
    )
    return value if plain else json_kind(value)


async def _finished(request: Request, ticket: Ticket[Any]) -> bool:
    """Wait for the job; False when the client left first, and then the job is cancelled."""
    done = asyncio.wrap_future(ticket.future)
    left = asyncio.ensure_future(leaving(request.receive))
    try:
        await asyncio.wait({done, left}, return_when=asyncio.FIRST_COMPLETED)
        if done.done() and not done.cancelled():
            done.exception()  # seen; the caller asks the ticket itself
            return True
        return False
    finally:
        left.cancel()
        ticket.cancel()  # of no effect where it has ended


def _client_left(request: Request) -> Response:
    request.state.outcome = "client-left"
    return Response(status_code=499)  # nobody reads it; the metrics count it
