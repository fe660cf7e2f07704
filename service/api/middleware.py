"""Middleware around every request: its id and timings, host and origin checks, API keys.

It is plain ASGI, so that nothing is buffered and routes see a client disconnect.
"""

import asyncio
import logging
import re
import socket
import time
import uuid
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.connection import CROWDED
from service.api.tracing import UNTRACED, Tracing
from service.codecs.json import EVENTS, JSON, to_json
from service.errors import (
    MEDIA_TYPE,
    ForeignOrigin,
    HeadersTooLarge,
    InternalError,
    Problem,
    TooManyConnections,
    Unauthorized,
    UnknownHost,
)
from service.keys import Keys
from service.logs import FIELDS, REQUEST
from service.metrics import Metrics
from service.schemas.conditions import DEPRECATED_SINCE
from service.settings import Settings

_log = logging.getLogger(__name__)
_requests = logging.getLogger("service.request")  # a line for each, where the log is JSON

_SANE_ID = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")
_OPEN = ("/", "/favicon.ico", "/docs", "/openapi.json")
HEALTH = ("/health/", "/v2/health/")
_OPEN_BELOW = (*HEALTH, "/docs/", "/static/")
MOST_HEADERS: Final = 100

_SAFE = ("GET", "HEAD", "OPTIONS")
_OWN_SITE = ("same-origin", "none")  # none: a typed address or a bookmark
#: Domains below which names cannot be registered (RFC 6761, 6762, 8375; ICANN's .internal).
_LOCAL = (".localhost", ".local", ".internal", ".home.arpa")


def problem_document(problem: Problem, scope: Scope) -> dict[str, object]:
    """Build a problem's document, and set the request's outcome for the metrics."""
    state = scope.setdefault("state", {})
    state["outcome"], state["refused"] = problem.slug, problem.refusal
    return {**problem.to_document(), "request_id": state.get("request_id")}


def problem_response(problem: Problem, scope: Scope) -> Response:
    """Build a problem's response; below /v2 as the Open Inference Protocol has it."""
    document, headers = problem_document(problem, scope), dict(problem.headers)
    if f"{path_of(scope)}/".startswith("/v2/"):
        expected = document.get("expected")
        told = [problem.detail, f"Expected: {expected}." if expected is not None else ""]
        told.append("" if "errors" in document else str(document.get("fix", "")))
        text = to_json({"error": " ".join(filter(None, told))})
        return Response(text, problem.status, headers, media_type=JSON)
    return Response(to_json(document), problem.status, headers, media_type=MEDIA_TYPE)


def path_of(scope: Scope) -> str:
    """Return the request's path without a proxy's prefix."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path


def unforeseen() -> InternalError:
    """Make the problem for an unexpected exception, whose details are only logged."""
    return InternalError(
        "The service failed unexpectedly.",
        fix="Try again; if it fails again, tell the operator the request_id.",
    )


class RequestContext:
    """Handles request ids, timing and deprecation headers, metrics and unexpected exceptions.

    This is the outermost middleware. Routes leave `queue_seconds` and `compute_seconds` in the
    request's state; they are 0 for routes that do not use the engine. A stream's headers are sent
    before the timings are known: its last progress event has them.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing) -> None:
        self.app, self.metrics, self.tracing = app, metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        given = Headers(scope=scope).get("x-request-id", "")
        state["request_id"] = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        probe = path_of(scope).startswith(HEALTH)
        trace = state["trace"] = UNTRACED if probe else self.tracing.begin(scope)
        token = REQUEST.set({"request_id": state["request_id"], **trace.ids})
        begun, status, started = time.monotonic(), 0, False

        async def send_with_headers(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = state["request_id"]
                if trace.parent is not None:
                    headers["traceparent"] = trace.parent
                if state.get("deprecated", False):
                    headers["deprecation"] = DEPRECATED_SINCE
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
            facts = _facts(state, status, outcome)
            failed = status >= 500 or outcome == InternalError.slug
            trace.end(f"{scope['method']} {path}", {**facts, "http.route": path}, failed=failed)
            if failed or not probe:
                _log_request(scope, facts, time.monotonic() - begun)
            REQUEST.reset(token)
            self.metrics.requests.labels(path, outcome).inc()
            if state.get("refused", False):
                self.metrics.refused.labels(outcome).inc()
            if (holder := state.get("holder")) is not None:
                self.metrics.key_requests.labels(holder.name, outcome).inc()


def _facts(state: Mapping[str, Any], status: int, outcome: str) -> dict[str, str | int | float]:
    """What a request was, for its span and its line in the log."""
    found: dict[str, str | int | float] = {
        "http.response.status_code": status,
        "noneq.request_id": state["request_id"],
        "noneq.outcome": outcome,
    }
    for name in ("model", "network_evaluations", "queue_seconds", "compute_seconds"):
        if name in state:
            value = state[name]
            found[f"noneq.{name}"] = round(value, 6) if isinstance(value, float) else value
    if (holder := state.get("holder")) is not None:
        found["noneq.key"] = holder.name
    return found


def _log_request(scope: Scope, facts: Mapping[str, str | int | float], seconds: float) -> None:
    if not _requests.isEnabledFor(logging.INFO):
        return
    method, path, status = scope["method"], scope["path"], facts["http.response.status_code"]
    names = {"http.response.status_code": "status"}
    fields: dict[str, object] = {
        names.get(name, name.removeprefix("noneq.")): fact for name, fact in facts.items()
    }
    client = scope.get("client")
    fields |= {"method": method, "path": path, "seconds": round(seconds, 6)}
    fields["client"] = None if client is None else client[0]
    _requests.info("%s %s %s", method, path, status, extra={FIELDS: fields})


class Gate:
    """Refuses requests from other sites' pages or for other hosts; the health routes are open.

    Another site's page can make a browser on this machine send requests to a service without keys.
    A form or "simple" request (https://fetch.spec.whatwg.org/#cors-safelisted-method) is executed
    even though the page cannot read the answer; `Sec-Fetch-Site` and `Origin`, which a page cannot
    choose, reveal it. A page whose own host name resolves to this machine (DNS rebinding) can read
    the answers too; `Host` reveals that name.

    Args:
        app: the app behind it.
        settings: `allowed_hosts`, `allow_origins`, `root_path` and the API keys are used.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._prefix, self._origins = settings.prefix, settings.origins
        own = {settings.host.lower(), socket.gethostname().lower()}
        self._hosts = settings.hosts | {name for name in own if name}
        self._turn = asyncio.Lock()
        # A foreign page has no key, whatever host name it uses.
        self._any_host = "*" in self._hosts or (settings.key_required and not settings.hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        problem = None
        if scope["type"] == "http":
            self._place(scope)
            problem = self._fault(scope)
            if problem is None and not path_of(scope).startswith(HEALTH):
                # Start one request per round of the event loop, so that health requests are
                # answered even when a thousand requests arrive at once.
                async with self._turn:
                    await asyncio.sleep(0)
        if problem is None:
            await self.app(scope, receive, send)
        else:
            await problem_response(problem, scope)(scope, receive, send)

    def _place(self, scope: Scope) -> None:
        """Set `root_path`, whether or not the proxy has removed it from the path."""
        if self._prefix:
            scope["root_path"] = self._prefix
            if not f"{scope['path']}/".startswith(f"{self._prefix}/"):
                scope["path"] = self._prefix + scope["path"]

    def _fault(self, scope: Scope) -> Problem | None:
        if len(scope["headers"]) > MOST_HEADERS:
            return HeadersTooLarge(
                "The request has too many headers.",
                received=len(scope["headers"]),
                expected=f"at most {MOST_HEADERS}",
                fix="Send fewer.",
            )
        headers = Headers(scope=scope)
        if path_of(scope).startswith(HEALTH):
            return None
        if scope.get("state", {}).get(CROWDED, False):
            return TooManyConnections(
                "All allowed connections are busy with requests.",
                retry_after=1,
                fix="Try again; the operator sets NONEQ_MAX_CONNECTIONS.",
            )
        host = headers.get("host", "")
        if not (self._any_host or knows(host, self._hosts)):
            return UnknownHost(
                "The service does not answer to the host name of this request.",
                received=host[:100],
                expected="localhost, an IP address, a local network's name, or an allowed name",
                fix="To allow a name, set NONEQ_ALLOWED_HOSTS.",
            )
        if scope["method"] in _SAFE or self._of_this_site(headers, host):
            return None
        return ForeignOrigin(
            "The request comes from a page of another site.",
            received=headers.get("origin", "")[:100],
            fix="To allow a site, set NONEQ_ALLOW_ORIGINS.",
        )

    def _of_this_site(self, headers: Headers, host: str) -> bool:
        """Whether the request is from our page, an allowed site's page, or no browser at all."""
        origin, site = headers.get("origin", "").lower(), headers.get("sec-fetch-site")
        if site in _OWN_SITE or (origin and (origin in self._origins or "*" in self._origins)):
            return True
        if site is not None:
            return False
        # Over plain HTTP, except on localhost, browsers do not send Sec-Fetch-Site.
        names = host.lower(), headers.get("x-forwarded-host", "").lower()
        return not origin or (origin != "null" and urlsplit(origin).netloc in names)


def knows(host: str, names: Iterable[str]) -> bool:
    """Whether a Host header (a name, perhaps with a port) cannot be a foreign page's own name."""
    name = host.lower().strip()
    name = name[1 : name.find("]")] if name.startswith("[") else name.partition(":")[0]
    name = name.rstrip(".")
    if "." not in name and ":" not in name:  # localhost, a container's name, or none at all
        return True
    try:
        ip_address(name)
    except ValueError:
        pass
    else:
        return True
    if name.endswith(_LOCAL):
        return True
    return any(name == one or (one.startswith(".") and name.endswith(one)) for one in names)


class ApiKeys:
    """Finds out whose key a request has, and refuses those without one where it is required.

    Health, docs and page are open. The holder is left in the request's state as `holder`.

    Args:
        app: the app behind it.
        keys: the accepted keys.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or self._open(path_of(scope)):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        holder = scope.setdefault("state", {})["holder"] = self.keys.find(given) if given else None
        if holder is not None or not self.keys.required:
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
