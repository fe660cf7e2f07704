"""The GET routes: models, their held-out data, health and metrics."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from diffusion.heldout import FILE, MOST
from diffusion.samplers import SAMPLERS
from service.api.openapi import examples_responses, problems
from service.catalogue import Served
from service.codecs.contact_sheet import Strip, contact_sheet
from service.codecs.json import BINARY, JSON, PNG, negotiate, plain, to_binary, to_json
from service.codecs.rows import CSV, check_rows_form, lines_of, names_of, to_csv
from service.errors import NotAcceptable
from service.metrics import CONTENT_TYPE
from service.schemas.responses import (
    ClassifierSummary,
    ExamplesAnswer,
    Health,
    ModelAnswer,
    ModelsAnswer,
    ModelSummary,
    RefusedFile,
    TableColumn,
)
from service.state import backend_of

EXAMPLE_FORMS = (JSON, PNG, BINARY, CSV)

router = APIRouter()


# ------------------------------------------------------------------------------------------ models


@router.get("/models", tags=["models"], response_model=ModelsAnswer)
async def list_models(request: Request) -> Response:
    """List the served models, and the files of the folder that are not served, with reasons."""
    catalogue = backend_of(request).catalogue
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
    """Describe a model: its space, process, training, evaluation, and card."""
    served = backend_of(request).find(name)
    facts = served.metadata.model_dump(mode="json")
    evaluation, calibration = facts.pop("evaluation"), facts.pop("calibration")
    answer = ModelAnswer(
        **_summary(served).model_dump(),
        default_convention=served.model.space.default_convention,
        artefact=facts,
        checksum=served.checksum,
        evaluation=evaluation,
        calibration=calibration,
        certified=[family.model_dump(mode="json") for family in served.metadata.certified],
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
    count: Annotated[int, Query(ge=1, le=MOST, description="How many, at most.")] = 16,
) -> Response:
    """Return held-out data (not used for training) to try requests with."""
    served = backend_of(request).find(name)
    form = negotiate(", ".join(request.headers.getlist("accept")), EXAMPLE_FORMS)
    body = await to_thread.run_sync(render_examples, served, count, form)
    return Response(body, media_type=form)


def render_examples(served: Served, count: int, form: str) -> bytes:
    """Render the first `count` examples in one of EXAMPLE_FORMS.

    Raises:
        NotAcceptable: a picture was requested, but the model has no examples.
        InvalidRequest: CSV was requested, but the data are no rows.
    """
    space, data = served.model.space, served.examples[:count]
    if form == PNG:
        if not len(data):
            raise NotAcceptable(
                f"The model {served.name} ships without examples, so there is nothing to draw.",
                received=PNG,
                expected=[JSON, BINARY],
                fix=f"`python -m training heldout {served.name}` writes {FILE} beside it.",
            )
        return contact_sheet(space, [Strip(data)])
    if form == CSV:
        check_rows_form(space)
        return to_csv(names_of(space), lines_of(data, space))
    answer = ExamplesAnswer(model=served.name, data=plain(data, space))
    if form == BINARY:
        return to_binary(answer.model_dump(exclude={"data"}), {"data": data})
    return to_json(answer.model_dump())


def _summary(served: Served) -> ModelSummary:
    metadata, model = served.metadata, served.model
    return ModelSummary(
        name=served.name,
        kind=model.space.kind,
        shape=list(model.space.shape),
        process=metadata.process.kind,
        steps=model.T,
        samplers=[name for name, kind in SAMPLERS.items() if kind.serves(model.process)],
        network=metadata.network.kind,
        parameters=sum(x.numel() for x in model.network.state_dict().values()),
        classifiers=[
            ClassifierSummary(name=found.name, labels=list(found.labels))
            for found in served.classifiers
        ],
        conditional=model.conditional,
        columns=model.space.names,
        table=TableColumn.all_of(model.space),
    )


# ------------------------------------------------------------------------------------------ health


@router.get("/health/live", tags=["health"], response_model=Health)
async def live(request: Request) -> Response:
    """Report whether the process works; anything but 200 means that it has to be restarted."""
    problem = backend_of(request).dead()
    if problem is not None:
        raise problem
    return _json(Health(status="live"))


@router.get("/health/ready", tags=["health"], response_model=Health, responses=problems(503))
async def ready(request: Request) -> Response:
    """Report whether requests are accepted now: every model is loaded and warmed up."""
    backend = backend_of(request)
    backend.check()
    return _json(Health(status="ready", models=list(backend.catalogue.served)))


@router.get("/metrics", tags=["health"])
async def metrics(request: Request) -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(backend_of(request).metrics.render(), media_type=CONTENT_TYPE)


def add_heads(router: APIRouter) -> None:
    """Let HEAD be answered wherever GET is (RFC 9110, 9.3.2), for probes: FastAPI does not.

    The server leaves the body out. These routes are not in the OpenAPI document.
    """
    for route in list(router.routes):
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            router.add_api_route(
                route.path, route.endpoint, methods=["HEAD"], include_in_schema=False
            )


add_heads(router)


def _json(answer: BaseModel) -> Response:
    return Response(to_json(answer.model_dump()), media_type=JSON)
