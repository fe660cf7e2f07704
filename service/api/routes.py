"""The POST routes: read a request, submit its job, wait, and send the answer; or keep it as a job.

Bodies are decoded and answers rendered in worker threads, so that one caller's megabytes do not
delay others. If the client disconnects while the job runs, the job is cancelled.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from service.api import jobs
from service.api.body import (
    DEADLINE,
    Answer,
    body_limit,
    body_of,
    client_left,
    find_deadline,
    wait_for_disconnect,
)
from service.api.middleware import path_of
from service.api.openapi import request_body, responses
from service.api.preferences import Preferences, idempotency_key
from service.api.streams import EventStream, previews_wanted
from service.api.tracing import Trace
from service.codecs.json import (
    EVENTS,
    content_coding,
    decode_body,
    inflate,
    json_kind,
    negotiate,
)
from service.engine.results import Ticket
from service.errors import InvalidRequest, ModelRetired, UnknownRoute
from service.handlers.base import Work, seed_or_new
from service.handlers.loglik import LoglikWork
from service.handlers.posterior import PosteriorWork
from service.handlers.sample import SampleWork
from service.jobs.folder import new_id
from service.jobs.record import Record, fingerprint
from service.jobs.store import StoredJob
from service.schemas.conditions import DenoiseRequest, InpaintRequest, PosteriorRequest
from service.schemas.requests import BaseRequest, LoglikRequest, SampleRequest
from service.schemas.responses import LoglikAnswer, PosteriorAnswer, SampleAnswer
from service.state import Backend, backend_of

_VERSIONS: Final = 3  # of a model, that a request is prepared for while they are replaced


class Endpoint(NamedTuple):
    """A POST route: its path, request schema, handler and answer schema."""

    path: str
    request: type[BaseRequest]
    work: type[Work[Any]]
    answer: type[BaseModel]


ENDPOINTS: Final = (
    Endpoint("/sample", SampleRequest, SampleWork, SampleAnswer),
    Endpoint("/loglik", LoglikRequest, LoglikWork, LoglikAnswer),
    Endpoint("/posterior", PosteriorRequest, PosteriorWork, PosteriorAnswer),
    Endpoint("/inpaint", InpaintRequest, PosteriorWork, PosteriorAnswer),
    Endpoint("/denoise", DenoiseRequest, PosteriorWork, PosteriorAnswer),
)


def _route(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        return await _serve(request, endpoint.request, endpoint.work)

    return serve


router = APIRouter()
for _endpoint in ENDPOINTS:
    router.add_api_route(
        _endpoint.path,
        _route(_endpoint),
        methods=["POST"],
        name=_endpoint.path.removeprefix("/"),
        description=inspect.getdoc(_endpoint.request) or "",
        tags=["distributions"],
        response_model=_endpoint.answer,
        responses=responses(_endpoint.work.offers),
        openapi_extra=request_body(_endpoint.request),
    )


async def _serve(request: Request, schema: type[BaseRequest], handler: type[Work[Any]]) -> Response:
    accept = ", ".join(request.headers.getlist("accept"))
    form = negotiate(accept, handler.offers)
    preferences = Preferences.of(request)
    if preferences.later and backend_of(request).settings.max_jobs:
        try:
            job = await _store(request, schema, handler, form)
        except ClientDisconnect:
            return no_answer(request)
        return await jobs.accepted(request, job, form, preferences.wait)
    previews = previews_wanted(accept, handler.offers) if form == EVENTS else 0
    try:
        work, ticket = await _submit(request, schema, handler, form)
    except ClientDisconnect:
        return no_answer(request)
    backend, hold = backend_of(request), ticket.hold_bytes()
    trace: Trace = request.state.trace
    seconds = backend.settings.write_seconds
    if form == EVENTS:
        return EventStream(work, ticket, backend.engine, hold, seconds, previews)
    try:
        if not await finished(request, ticket):
            hold.release()
            return no_answer(request)
        result = ticket.result()
        request.state.queue_seconds = result.stats.queue_seconds
        request.state.compute_seconds = result.stats.compute_seconds
        with trace.stage("encode"):
            body = await to_thread.run_sync(work.render, result, form)
    except BaseException:
        hold.release()
        raise
    hold.resize(len(body))
    return Answer(body, form, hold, seconds)


async def _submit(
    request: Request, schema: type[BaseRequest], handler: type[Work[Any]], form: str
) -> tuple[Work[Any], Ticket[Any]]:
    """Read and decode the request, submit its job, and free the body's bytes."""
    backend = backend_of(request)
    backend.check()
    begun = time.monotonic()
    settings, content_type = backend.settings, request.headers.get("content-type")
    coding, limit = request.headers.getlist("content-encoding"), body_limit(content_type, settings)
    deadline = find_deadline(request.headers.getlist(DEADLINE), settings.deadline_seconds)
    async with body_of(request, backend.engine, settings, deadline) as raw:

        def prepare() -> Work[Any]:
            body = inflate(raw, content_coding(coding), limit)
            query = request.query_params
            asked = _parse(schema, content_type, body, settings.max_json_bytes, query)
            request.state.deprecated = bool(asked.deprecation)
            work = handler.prepare(asked, backend)
            work.check(form)
            return work

        return await submit(request, prepare, deadline, begun)


async def submit(
    request: Request, prepare: Callable[[], Work[Any]], deadline: float | None, begun: float
) -> tuple[Work[Any], Ticket[Any]]:
    """Prepare a request in a worker thread, and submit its job; its body was wanted at `begun`."""
    backend = backend_of(request)
    trace: Trace = request.state.trace
    for left in reversed(range(_VERSIONS)):
        # Only a few at once: decoded numbers take more memory than their text, and rendering
        # needs threads too.
        async with backend.decoding:
            work = await to_thread.run_sync(prepare)
        trace.note("decode", begun, time.monotonic())
        request.state.model = work.served.name
        request.state.network_evaluations = work.job.cost
        try:
            holder = getattr(request.state, "holder", None)
            ticket = backend.submit(work.job, deadline, holder)
            trace.follow(ticket)
            return work, ticket
        except ModelRetired:  # its model was replaced meanwhile: prepare it for the new one
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


async def _store(
    request: Request, schema: type[BaseRequest], handler: type[Work[Any]], form: str
) -> StoredJob:
    """Read and check the request, fix its seed, and keep it as a job.

    A request that could not be carried out is refused as it is without a job.
    """
    backend, store = backend_of(request), jobs.runner_of(request).store
    backend.check()
    settings, content_type = backend.settings, request.headers.get("content-type")
    coding, limit = request.headers.getlist("content-encoding"), body_limit(content_type, settings)
    # The operator's own limit is on the wait for an answer, and nobody waits.
    deadline = find_deadline(request.headers.getlist(DEADLINE), 0.0)
    owner, key = jobs.owner_of(request), idempotency_key(request)
    path, query = path_of(request.scope), tuple(request.query_params.multi_items())
    async with body_of(request, backend.engine, settings, deadline, background=True) as raw:

        def keep() -> StoredJob:
            body = inflate(raw, content_coding(coding), limit)
            hashed = fingerprint(path, query, content_type, body)
            known = store.find_key(owner, key, hashed)
            if known is not None:
                return known
            asked = _parse(schema, content_type, body, settings.max_json_bytes, dict(query))
            request.state.deprecated = bool(asked.deprecation)
            seed = seed_or_new(asked.seed)
            work = handler.prepare(asked.model_copy(update={"seed": seed}), backend)
            work.check(form)
            request.state.model = work.served.name
            size = backend.engine.check(work.job)
            now = time.time()
            record = Record(
                id=new_id(),
                owner=owner,
                path=path,
                query=query,
                content_type=content_type,
                fingerprint=hashed,
                key=key,
                model=work.served.name,
                seed=seed,
                cost=work.job.cost,
                created=now,
                deadline=None if deadline is None else deadline - time.monotonic() + now,
                room=work.room(size),
            )
            return store.create(record, body)

        async with backend.decoding:
            return await to_thread.run_sync(keep)


def restore(job: StoredJob, backend: Backend) -> Work[Any]:
    """Make the work of a stored job, as `_store` did: the same model, seed and data."""
    record = job.record
    endpoint = next((one for one in ENDPOINTS if one.path == record.path), None)
    if endpoint is None:
        raise UnknownRoute("The job's route does not exist any more.", received=record.path)
    most, query = backend.settings.max_json_bytes, dict(record.query)
    asked = _parse(endpoint.request, record.content_type, job.body(), most, query)
    fixed = asked.model_copy(update={"seed": record.seed, "model": record.model})
    return endpoint.work.prepare(fixed, backend)


def _parse(
    schema: type[BaseRequest],
    content_type: str | None,
    raw: bytes,
    max_json_bytes: int,
    query: Mapping[str, str],
) -> BaseRequest:
    """Parse a body and check it against the request's schema."""
    body = decode_body(content_type, raw, max_json_bytes, schema.rows, query)
    return validate(schema, {**body.fields, **body.tensors})


def validate(schema: type[BaseRequest], fields: Mapping[str, object]) -> BaseRequest:
    """Check fields against a request's schema; raises InvalidRequest."""
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        raise _invalid(schema, error) from None


def _invalid(schema: type[BaseModel], error: ValidationError) -> InvalidRequest:
    """Report every validation error at once: where, what was received, what was expected."""
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
        fix="Correct the fields listed under errors; /docs shows all fields with examples.",
    )


def _short(value: object) -> object:
    """Return a scalar unchanged, the beginning of a string, or the kind of anything else."""
    if isinstance(value, str):
        return value[:100]
    scalar = value is None or isinstance(value, bool | float)
    whole = isinstance(value, int) and abs(value) < 2**63
    return value if scalar or whole else json_kind(value)


async def finished(request: Request, ticket: Ticket[Any]) -> bool:
    """Wait for the job; if the client leaves first, cancel the job and return False."""
    done = asyncio.wrap_future(ticket.future)
    left = asyncio.ensure_future(wait_for_disconnect(request.receive))
    try:
        await asyncio.wait({done, left}, return_when=asyncio.FIRST_COMPLETED)
        if done.done() and not done.cancelled():
            done.exception()  # retrieved; the caller asks the ticket
            return True
        return False
    finally:
        left.cancel()
        ticket.cancel()  # no effect if it has ended


def no_answer(request: Request) -> Response:
    """Answer a request whose client has left."""
    client_left(request.scope)
    return Response(status_code=499)  # nobody reads it; the metrics count it
