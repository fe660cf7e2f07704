"""The problems that a caller can get, each with its HTTP status (RFC 9457).

A problem says what was received, what was expected and how to fix it. Any other exception is
reported as `InternalError`.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import override

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """A failure reported to the caller. Abstract: raise one of the subclasses.

    Args:
        detail: what is wrong with this request.
        fields: further members of the document; None leaves one out:
            expected: what would have been accepted.
            received: what was given, short enough to print.
            fix: what to send or do instead.
            Any other (`location`, `index`, ...) is an extension member.
    """

    status: ClassVar[int]
    title: ClassVar[str]
    slug: ClassVar[str]
    refusal: ClassVar[bool] = False  # because of a limit or the load, before any computation

    def __init__(self, detail: str, **fields: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = {name: value for name, value in fields.items() if value is not None}

    @property
    def type(self) -> str:
        """The problem's type, a URI that never changes: compare it, not the title."""
        return f"urn:noneq:problem:{self.slug}"

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to the problem, lower case."""
        return {}

    def to_document(self) -> dict[str, object]:
        """Build the RFC 9457 document: type, title, status, detail, and the members that apply."""
        return {
            "type": self.type,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.fields,
        }


class MalformedBody(Problem):
    """The body does not match its content type: JSON or safetensors."""

    status = 400
    title = "The body cannot be read"
    slug = "malformed-body"


class Unauthorized(Problem):
    """The request has no accepted API key."""

    status = 401
    title = "An API key is needed"
    slug = "unauthorized"

    @property
    @override
    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class Forbidden(Problem):
    """The caller may not do this: it needs an admin key, or to be on the service's machine."""

    status = 403
    title = "Not allowed"
    slug = "forbidden"


class ForeignOrigin(Problem):
    """A browser sent the request for a page of a site that is not allowed."""

    status = 403
    title = "Another site's page may not ask"
    slug = "foreign-origin"


class UnknownHost(Problem):
    """The Host header is not a name of this service; see `allowed_hosts`."""

    status = 421
    title = "The service does not go by that name"
    slug = "unknown-host"


class HeadersTooLarge(Problem):
    """The request has too many headers, or headers that are too long."""

    status = 431
    title = "The headers are too large"
    slug = "headers-too-large"
    refusal = True


class UnknownRoute(Problem):
    """The path does not exist."""

    status = 404
    title = "No such route"
    slug = "unknown-route"


class UnknownModel(Problem):
    """No model of that name is served."""

    status = 404
    title = "No such model"
    slug = "unknown-model"


class UnknownJob(Problem):
    """There is no such job, or it is of another API key."""

    status = 404
    title = "No such job"
    slug = "unknown-job"


class MethodNotAllowed(Problem):
    """The path does not support this method; `allow` lists the methods it supports."""

    status = 405
    title = "Method not allowed"
    slug = "method-not-allowed"

    def __init__(self, detail: str, *, allow: str, **fields: object) -> None:
        super().__init__(detail, **fields)
        self.allow = allow

    @property
    @override
    def headers(self) -> dict[str, str]:
        return {"allow": self.allow}


class NotAcceptable(Problem):
    """The answer is not available in any form that `Accept` allows."""

    status = 406
    title = "No acceptable form of the answer"
    slug = "not-acceptable"


class BodyTimeout(Problem):
    """The body did not arrive within `body_seconds`."""

    status = 408
    title = "The body took too long to arrive"
    slug = "body-timeout"
    refusal = True


class BodyTooLarge(Problem):
    """The body exceeds `max_body_bytes`, or its JSON `max_json_bytes`."""

    status = 413
    title = "The body is too large"
    slug = "body-too-large"
    refusal = True


class UnsupportedMediaType(Problem):
    """The body's content type or coding is not supported."""

    status = 415
    title = "Unsupported content type"
    slug = "unsupported-media-type"


class InvalidRequest(Problem):
    """The request could be read, but not carried out."""

    status = 422
    title = "Invalid request"
    slug = "invalid-request"


class ModelFailed(Problem):
    """A model could not be loaded; what was served before is still served."""

    status = 422
    title = "The model cannot be loaded"
    slug = "model-failed"


class KeyReused(Problem):
    """The Idempotency-Key belongs to a job with another request."""

    status = 422
    title = "The key was used for another request"
    slug = "key-reused"


class TooExpensive(Problem):
    """The request needs more rows, network evaluations or memory than one request may."""

    status = 422
    title = "The request is too expensive"
    slug = "too-expensive"
    refusal = True


class InternalError(Problem):
    """The service failed, and logged why."""

    status = 500
    title = "Internal error"
    slug = "internal-error"


class NumericalFailure(Problem):
    """A row of the request became NaN or infinite."""

    status = 500
    title = "The computation left the finite numbers"
    slug = "numerical-failure"


class OutOfMemory(Problem):
    """Not even one row of the request fits into the device's memory."""

    status = 500
    title = "Out of device memory"
    slug = "out-of-memory"


class EngineDead(Problem):
    """The engine's thread has ended with an error; the service has to be restarted."""

    status = 500
    title = "The engine has stopped"
    slug = "engine-dead"


class Unavailable(Problem):
    """The request may succeed later. Abstract; `retry_after`: seconds, rounded up."""

    status = 503
    refusal = True

    def __init__(self, detail: str, *, retry_after: float = 1.0, **fields: object) -> None:
        self.retry_after = max(1, math.ceil(retry_after))
        super().__init__(detail, retry_after=self.retry_after, **fields)

    @property
    @override
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(self.retry_after)}


class NoRoom(Unavailable):
    """The requests in progress take up all of `max_queue_bytes`."""

    title = "No room for the request"
    slug = "no-room"


class QueueFull(Unavailable):
    """The accepted work has reached `max_queue_cost`."""

    title = "The queue is full"
    slug = "queue-full"


class JobsFull(Unavailable):
    """The stored jobs have reached `max_jobs` or `max_jobs_bytes`."""

    title = "No room for another job"
    slug = "jobs-full"


class JobNotDone(Unavailable):
    """The job has no result yet."""

    status = 409
    title = "The job is not done"
    slug = "job-not-done"
    refusal = False


class TooManyConnections(Unavailable):
    """All `max_connections` connections are busy with a request."""

    title = "Too many connections"
    slug = "too-many-connections"


class NotReady(Unavailable):
    """The service is starting."""

    title = "The service is starting"
    slug = "not-ready"


class BudgetExceeded(Unavailable):
    """The key has used up its network evaluations of a minute."""

    status = 429
    title = "The key's budget is used up"
    slug = "budget-exceeded"


class ModelRetired(Unavailable):
    """The version of the model that the request was prepared for has been replaced or unloaded."""

    title = "The model is being replaced"
    slug = "model-retired"
    refusal = False


class Draining(Unavailable):
    """The service is stopping: it finishes accepted requests and takes no new ones."""

    title = "The service is stopping"
    slug = "draining"


class DeadlineUnmeetable(Problem):
    """The request would not be done by its deadline; nothing was computed.

    The status is 503 rather than 504 because the request is refused before any wait
    (RFC 9110, 15.6.4).

    Args:
        detail: as for any problem.
        estimated_seconds: the least time from now until it would be done.
        retry_after: seconds after which it may be accepted; None if waiting does not help.
    """

    status = 503
    title = "The deadline cannot be met"
    slug = "deadline-unmeetable"
    refusal = True

    def __init__(
        self,
        detail: str,
        *,
        estimated_seconds: float = 0.0,
        retry_after: float | None = None,
        **fields: object,
    ) -> None:
        self.retry_after = None if retry_after is None else max(1, math.ceil(retry_after))
        rounded = float(f"{estimated_seconds:.3g}")
        super().__init__(detail, estimated_seconds=rounded, retry_after=self.retry_after, **fields)

    @property
    @override
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"retry-after": str(self.retry_after)}


class NoDeviceMemory(ModelFailed):
    """A model does not fit into the device's memory beside what is there."""

    status = 507
    title = "The model does not fit"
    slug = "no-device-memory"
    refusal = True


class DeadlineExceeded(Problem):
    """The deadline passed before the answer was ready; the request was dropped."""

    status = 504
    title = "The deadline has passed"
    slug = "deadline-exceeded"


class DiskFull(Problem):
    """A job or its answer could not be written to the disk."""

    status = 507
    title = "The job cannot be stored"
    slug = "disk-full"


def from_document(document: Mapping[str, Any]) -> Problem:
    """Make the problem of a document that was stored."""
    fields = dict(document)
    facts = {name: fields.pop(name) for name in ("status", "title")}
    slug = fields.pop("type").rpartition(":")[2]
    kind = type("StoredProblem", (Problem,), {**facts, "slug": slug})
    found: Problem = kind(fields.pop("detail"), **fields)
    return found


def refusal(error: ValueError, location: str, received: object = None) -> InvalidRequest:
    """Convert the library's ValueError ("what is wrong, came value: how to fix it")."""
    detail, separator, fix = str(error).rpartition(": ")
    detail = detail if separator else str(error)
    return InvalidRequest(
        f"{detail[:1].upper()}{detail[1:]}.",
        location=location,
        received=received,
        fix=f"{fix[:1].upper()}{fix[1:]}." if separator else None,
    )
