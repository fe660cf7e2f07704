"""What surrounds every request: its id and timings, the key it needs.

Plain ASGI: nothing is buffered, and a client's leaving reaches the routes as it is.
"""

import hashlib
import hmac
import logging
import re
import uuid
from collections.abc import Iterable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.codecs.json import EVENTS, to_json
from service.errors import MEDIA_TYPE, InternalError, Problem, Unauthorized
from service.metrics import Metrics
from service.schemas.deprecated import SINCE

_log = logging.getLogger(__name__)

_SANE_ID = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")
_OPEN = ("/", "/favicon.ico", "/docs", "/openapi.json")
_OPEN_BELOW = ("/health/", "/docs/", "/static/")


def problem_document(problem: Problem, scope: Scope) -> dict[str, object]:
    """A problem as its document; it also settles the request's outcome for the metrics."""
    state = scope.setdefault("state", {})
    state["outcome"], state["refused"] = problem.slug, problem.refusal
    return {**problem.to_document(), "request_id": state.get("request_id")}


def problem_response(problem: Problem, scope: Scope) -> Response:
    """A problem as its response."""
    body, headers = to_json(problem_document(problem, scope)), dict(problem.headers)
    return Response(body, problem.status, headers, media_type=MEDIA_TYPE)


def path_of(scope: Scope) -> str:
    """The path that was asked for, below the service's own."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path


def unforeseen() -> InternalError:
    """What a caller is told of an exception that is no problem; the log has the rest."""
    return InternalError(
        "The service failed in a way it did not foresee.",
        fix="Try again; if it persists, tell the operator the request_id.",
    )


class RequestContext:
    """Outermost: request id, timing headers, the count of outcomes, and the last net for errors.

    A request with old spellings is answered with the header `Deprecation`.

    Routes leave `queue_seconds` and `compute_seconds` in the request's state; what asks nothing of
    the engine has 0. A stream begins before there is any to tell: its last progress has them.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        given = Headers(scope=scope).get("x-request-id", "")
        state["request_id"] = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = state["request_id"]
                if state.get("deprecated", False):
                    headers["deprecation"] = SINCE
                if not headers.get("content-type", "").startswith(EVENTS):
                    headers["x-queue-time"] = f"{state.get('queue_seconds', 0.0):.6f}"
                    headers["x-compute-time"] = f"{state.get('compute_seconds', 0.0):.6f}"
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:
            _log.exception("request %s failed", state["request_id"])
            state["outcome"] = InternalError.slug
            if started:
                raise
            await problem_response(unforeseen(), scope)(scope, receive, send_with_headers)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            outcome = state.get("outcome", "ok")
            self.metrics.requests.labels(path, outcome).inc()
            if state.get("refused", False):
                self.metrics.refused.labels(outcome).inc()


class ApiKeys:
    """Refuses requests without an accepted key where keys are set; health, docs, page are open."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self.app = app
        self.digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not self.digests or self._open(path_of(scope)):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = _digest(given)
        # Every key is compared, in constant time, so that timing tells nothing of any.
        accepted = [hmac.compare_digest(digest, known) for known in self.digests]
        if any(accepted):
            await self.app(scope, receive, send)
            return
        problem = Unauthorized(
            "The API key is not accepted." if given else "The request carries no API key.",
            expected="'Authorization: Bearer KEY' or 'X-API-Key: KEY'",
            fix="Ask the operator for a key.",
        )
        await problem_response(problem, scope)(scope, receive, send)

    @staticmethod
    def _open(path: str) -> bool:
        return path in _OPEN or path.startswith(_OPEN_BELOW)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
