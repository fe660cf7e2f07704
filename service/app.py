"""Builds the app: create_app(settings) joins routes, middleware and backend, without globals."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from anyio import to_thread
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match

from noneq.version import __version__
from service.api import control, inference, info, jobs, openapi, routes
from service.api.middleware import ApiKeys, Gate, RequestContext, problem_response
from service.api.tracing import Tracing, tracing_of
from service.api.web import add_docs, add_page
from service.engine.engine import RunLoop
from service.engine.router import Remote
from service.errors import (
    InternalError,
    InvalidRequest,
    MalformedBody,
    MethodNotAllowed,
    Problem,
    UnknownRoute,
)
from service.jobs.runner import JobRunner
from service.keys import Keys
from service.metrics import Metrics
from service.settings import Settings
from service.state import Backend


class NoneqApp(FastAPI):
    """FastAPI whose OpenAPI document also describes the bodies that routes read themselves."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, which is built once."""
        if not self.openapi_schema:
            requests = [endpoint.request for endpoint in routes.ENDPOINTS]
            self.openapi_schema = openapi.document(self, requests)
        return self.openapi_schema


def create_app(
    settings: Settings,
    announce: Callable[[Sequence[str]], None] | None = None,
    run_loop: RunLoop | None = None,
    fail: Callable[[Problem], None] | None = None,
    remote: Remote | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """Create the service without starting it.

    Its lifespan loads and warms up the models while the server is running: /health/live answers at
    once, /health/ready when requests are accepted. At the end it drains the engine.

    Args:
        settings: the operator's settings.
        announce: called once, in a worker thread, with the models' names when they are ready.
        run_loop: runs the engine's loop; see `Engine`.
        fail: called once, in a worker thread, with the problem if the service cannot start.
        remote: engines of other processes, which take parts of large requests.
        tracing: in place of the settings' own.

    Raises:
        ValueError: the key file cannot be read, or tracing is not installed.
    """
    metrics = Metrics()
    spans = tracing or tracing_of(settings)
    backend = Backend(settings, metrics, run_loop, remote)
    keys = Keys(settings, metrics)
    runner = JobRunner(backend, keys, partial(routes.restore, backend=backend))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        opening = asyncio.create_task(to_thread.run_sync(backend.open, announce, fail))
        runner.start()
        try:
            yield
        finally:
            await opening
            await to_thread.run_sync(runner.close)
            await to_thread.run_sync(backend.close)
            await to_thread.run_sync(spans.close)

    app = NoneqApp(
        title="noneq",
        version=__version__,
        description=openapi.DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.backend, app.state.jobs, app.state.keys = backend, runner, keys
    app.include_router(routes.router)
    app.include_router(jobs.router)
    app.include_router(info.router)
    app.include_router(control.router)
    app.include_router(inference.router)
    add_docs(app)
    add_page(app)
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    # The middleware added last is the outermost.
    app.add_middleware(ApiKeys, keys=keys)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(settings.origins),
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=[
                "x-request-id",
                "x-queue-time",
                "x-compute-time",
                "traceparent",
                "retry-after",
                "deprecation",
                "location",
                "preference-applied",
            ],
        )
    app.add_middleware(Gate, settings=settings)
    app.add_middleware(RequestContext, metrics=metrics, tracing=spans)
    return app


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem_response(error, request.scope)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Answer with the problem for an unknown path, method or body that the framework refuses."""
    assert isinstance(error, HTTPException)
    return problem_response(_as_problem(request, error), request.scope)


def _as_problem(request: Request, error: HTTPException) -> Problem:
    came = f"{request.method} {request.url.path}"[:200]
    if error.status_code == 404:
        paths = sorted(request.app.openapi()["paths"])
        return UnknownRoute(
            "There is no such path.",
            received=came,
            expected=paths,
            fix="/docs shows every route with examples.",
        )
    if error.status_code == 405:
        allow = ", ".join(_methods(request))
        return MethodNotAllowed(
            "The path does not take this method.",
            allow=allow,
            received=came,
            expected=allow,
            fix="/docs shows every route with examples.",
        )
    if error.status_code < 500:
        return MalformedBody(str(error.detail), received=came, fix="/docs shows every route.")
    return InternalError(str(error.detail), received=came)


def _methods(request: Request) -> list[str]:
    """List the methods of all routes of the path, of which the framework names the first's."""
    asked = ({**request.scope, "method": method} for method in ("DELETE", "GET", "HEAD", "POST"))
    routes = request.app.router.routes
    return [
        scope["method"]
        for scope in asked
        if any(route.matches(scope)[0] == Match.FULL for route in routes)
    ]


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    problem = InvalidRequest(f"{place}: {first['msg']}", location=place, fix="See /docs.")
    return problem_response(problem, request.scope)
