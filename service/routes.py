"""The endpoints: parse, submit, answer.

Bodies are read and answers written in worker threads, so that one caller's megabytes hold up
nobody else; the engine's future is awaited beside the client's connection, so that a client who
leaves frees his rows. Whoever asks for a stream is told of the progress meanwhile (streams.py).
"""

import asyncio
from collections.abc import Callable
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from diffusion.heldout import MOST
from service import heldout
from service.answers import (
    ClassifierSummary,
    ExamplesAnswer,
    Health,
    LoglikAnswer,
    ModelAnswer,
    ModelsAnswer,
    ModelSummary,
    PosteriorAnswer,
    RefusedFile,
    SampleAnswer,
)
from service.backend import Backend
from service.conditions import Conditions, DenoiseRequest, InpaintRequest, PosteriorRequest
from service.door import DEADLINE, body_of, find_deadline
from service.encoding import BINARY, EVENTS, JSON, PNG, decode_body, json_kind, negotiate, to_json
from service.engine.results import Ticket
from service.metrics import CONTENT_TYPE
from service.models import Catalogue, Served
from service.openapi import examples_responses, problems, request_body, responses
from service.problems import InvalidRequest
from service.schemas import LoglikRequest, SampleRequest
from service.settings import Settings
from service.streams import EventStream, leaving, previews_wanted
from service.work.base import Work
from service.work.loglik import LoglikWork
from service.work.posterior import PosteriorWork
from service.work.sample import SampleWork

Asked = TypeVar("Asked", SampleRequest, LoglikRequest, Conditions)
Prepare = Callable[[Asked, Catalogue, Settings], Work[Any]]

router = APIRouter()


# ----------------------------------------------------------------------------------- distributions


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
    if form == EVENTS:
        return EventStream(work, ticket, _backend(request).engine, previews)
    if not await _finished(request, ticket):
        return _client_left(request)
    result = ticket.result()
    request.state.queue_seconds = result.queue_seconds
    request.state.compute_seconds = result.compute_seconds
    body = await to_thread.run_sync(work.render, result, form)
    return Response(body, media_type=form)


async def _accept(
    request: Request, schema: type[Asked], prepare: Prepare[Asked], form: str
) -> tuple[Work[Any], Ticket[Any]]:
    """Read, decode and submit. The body's bytes end with this call, whatever the job then takes."""
    backend = _backend(request)
    backend.check()
    settings, content_type = backend.settings, request.headers.get("content-type")
    deadline = find_deadline(request.headers.getlist(DEADLINE), settings.deadline_seconds)
    async with body_of(request, backend.engine, settings, deadline) as raw:

        def ready_work() -> Work[Any]:
            asked = parse(schema, content_type, raw, settings.max_json_bytes)
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
        if fault["type"] == "extra_forbidden":
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


# ------------------------------------------------------------------------------------------ models


@router.get("/models", tags=["models"], response_model=ModelsAnswer)
async def list_models(request: Request) -> Response:
    """What is served, and which files of the folder are not, with reasons."""
    catalogue = _backend(request).catalogue
    answer = ModelsAnswer(
        models=[_summary(served) for served in catalogue.served.values()],
        default=catalogue.default,
        refused=[RefusedFile(**vars(refused)) for refused in catalogue.refused],
    )
    return _json(answer)


@router.get(
    "/models/{name}", tags=["models"], response_model=ModelAnswer, responses=problems(404, 422)
)
async def show_model(request: Request, name: str) -> Response:
    """What the artefact says: space, process, training, evaluation; and its card."""
    served = _backend(request).find(name)
    facts = served.metadata.model_dump(mode="json")
    evaluation = facts.pop("evaluation")
    answer = ModelAnswer(
        **_summary(served).model_dump(),
        default_convention=served.model.space.default_convention,
        artefact=facts,
        evaluation=evaluation,
        card=served.card,
    )
    return _json(answer)


@router.get(
    "/models/{name}/examples",
    tags=["models"],
    response_model=ExamplesAnswer,
    responses=examples_responses(),
)
async def show_examples(
    request: Request,
    name: str,
    count: Annotated[int, Query(ge=1, le=MOST, description="At most so many.")] = 16,
) -> Response:
    """Held-out data to try things on: none of them was fitted to."""
    served = _backend(request).find(name)
    form = negotiate(", ".join(request.headers.getlist("accept")), heldout.OFFERS)
    body = await to_thread.run_sync(heldout.render, served, count, form)
    return Response(body, media_type=form)


def _summary(served: Served) -> ModelSummary:
    metadata, model = served.metadata, served.model
    return ModelSummary(
        name=served.name,
        kind=model.space.kind,
        shape=list(model.space.shape),
        process=metadata.process.kind,
        steps=model.T,
        network=metadata.network.kind,
        parameters=sum(x.numel() for x in model.network.state_dict().values()),
        classifiers=[
            ClassifierSummary(name=reader.name, labels=list(reader.labels))
            for reader in served.readers
        ],
    )


# ------------------------------------------------------------------------------------------ health


@router.get("/health/live", tags=["health"], response_model=Health)
async def live(request: Request) -> Response:
    """Whether the process serves; anything but 200 asks for a restart."""
    problem = _backend(request).dead()
    if problem is not None:
        raise problem
    return _json(Health(status="live"))


@router.get("/health/ready", tags=["health"], response_model=Health, responses=problems(503))
async def ready(request: Request) -> Response:
    """Whether requests are answered now: every model loaded and warm."""
    backend = _backend(request)
    backend.check()
    return _json(Health(status="ready", models=list(backend.catalogue.served)))


@router.get("/metrics", tags=["health"])
async def metrics(request: Request) -> Response:
    """Prometheus' text exposition."""
    return Response(_backend(request).metrics.render(), media_type=CONTENT_TYPE)


# HEAD wherever GET is (RFC 9110, 9.3.2), for probes: FastAPI's own GET routes answer GET alone. The
# server leaves the body out. As routes apart these are not in the document.
for _route in list(router.routes):
    if isinstance(_route, APIRoute) and "GET" in (_route.methods or ()):
        router.add_api_route(
            _route.path, _route.endpoint, methods=["HEAD"], include_in_schema=False
        )


def _backend(request: Request) -> Backend:
    found: Backend = request.app.state.backend
    return found


def _json(answer: BaseModel) -> Response:
    return Response(to_json(answer.model_dump()), media_type=JSON)
