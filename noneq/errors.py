"""The exceptions, one class for each way a caller would react.

NoneqError
  Refused            the service answered with a problem document (RFC 9457), `problem`
    BadRequest       fix the request: 400, 404, 405, 406, 408, 415, 422
      UnknownModel   ask for another model: `models()` lists them
      TooLarge       split it: 413, or more work than one request may need
    Unauthorized     give a key: 401, 403
    Busy             try again in `retry_after` seconds: 429, 502 to 504, and a proxy's own 500
    DeadlineMissed   allow more time, or ask for less
    ServerFault      tell the operator the `request_id`: 500
  ConnectionFailed   the service was not reached: start it, or give another address
    ConnectionLost   the connection broke before the answer was complete: try again
    TimedOut         no byte arrived for longer than the client waits
  UnreadableAnswer   the answer does not come from a noneq service
  MissingExtra       install what the message names
  FileError          give another file, or save it differently: the message says which and why
  NotPictured        the answer cannot be drawn as a picture: save it as numbers
"""

import email.utils
import json
import math
import time
from collections.abc import Mapping
from typing import Any

Document = Mapping[str, Any]


class NoneqError(Exception):
    """Any failure of a call. Abstract: a subclass is raised."""


class Refused(NoneqError):
    """The service answered with a problem. Abstract: a subclass is raised.

    Attributes:
        problem: the document: type, title, status, detail, and where they help expected, received,
            fix, errors and others.
        retry_after: seconds after which to try again; None if waiting does not help.
    """

    def __init__(self, problem: Document, retry_after: float | None = None) -> None:
        super().__init__(_message(problem))
        self.problem = problem
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        """The HTTP status."""
        return int(self.problem["status"])

    @property
    def request_id(self) -> str | None:
        """The id that identifies the request in the operator's log."""
        found = self.problem.get("request_id")
        return None if found is None else str(found)


class BadRequest(Refused):
    """The request is not valid: `problem` says what was expected."""


class UnknownModel(BadRequest):
    """No model of that name is served."""


class TooLarge(BadRequest):
    """The body is too large, or the request needs too much work: split it."""


class Unauthorized(Refused):
    """The API key is missing or not accepted."""


class Busy(Refused):
    """The queue is full, or the service is starting or stopping: try again later."""


class DeadlineMissed(Refused):
    """The answer was not ready by the requested deadline, or would not have been."""


class ServerFault(Refused):
    """The service failed; the same request may fail again."""


class ConnectionFailed(NoneqError):
    """The service was not reached."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows: the message, as no line of the caller's is to blame."""
        return [f"{type(self).__name__}: {self}"]


class ConnectionLost(ConnectionFailed):
    """The connection broke before the answer was complete."""


class TimedOut(ConnectionFailed):
    """No byte arrived for longer than the client's `timeout`."""


class UnreadableAnswer(NoneqError):
    """The answer does not come from a noneq service."""


class MissingExtra(NoneqError):
    """A required package is not installed."""


class FileError(NoneqError, ValueError):
    """A file, or the bytes of one, cannot be read as data; the message says why.

    Attributes:
        received, expected: the size of a picture, and the size that fits; else None.
    """

    def __init__(
        self, message: str, *, received: str | None = None, expected: str | None = None
    ) -> None:
        super().__init__(message)
        self.received = received
        self.expected = expected


class NotPictured(NoneqError):
    """These numbers cannot be drawn as a picture."""


_BY_TYPE: dict[str, type[Refused]] = {
    "urn:noneq:problem:foreign-origin": BadRequest,
    "urn:noneq:problem:unknown-model": UnknownModel,
    "urn:noneq:problem:job-not-done": Busy,
    "urn:noneq:problem:too-expensive": TooLarge,
    "urn:noneq:problem:deadline-unmeetable": DeadlineMissed,
    "urn:noneq:problem:deadline-exceeded": DeadlineMissed,
}
_NO_DOCUMENT = "about:blank"
_BY_STATUS: dict[int, type[Refused]] = {
    401: Unauthorized,
    403: Unauthorized,
    413: TooLarge,
    429: Busy,
    502: Busy,
    503: Busy,
    504: Busy,
}


def no_pillow() -> MissingExtra:
    """Make the exception for a missing Pillow."""
    return MissingExtra("pictures need Pillow: pip install 'noneq[client]'")


def refusal(problem: Document, retry_after: str | None = None) -> Refused:
    """Make the exception for a problem document.

    Args:
        problem: the document, including `status`.
        retry_after: the `Retry-After` header, which overrides the document's member.
    """
    status = int(problem["status"])
    kind = _BY_TYPE.get(str(problem.get("type")))
    if status == 500 and problem.get("type") == _NO_DOCUMENT:
        kind = Busy  # the service's own failures have a document: this is a proxy that lost it
    kind = kind or _BY_STATUS.get(status) or (BadRequest if status < 500 else ServerFault)
    seconds = read_retry_after(retry_after)
    if seconds is None and isinstance(problem.get("retry_after"), int | float):
        seconds = float(problem["retry_after"])
    return kind(problem, seconds)


def read_problem(status: int, reason: str, body: bytes) -> Document:
    """Read the document of an unsuccessful response, or make one up if it has none."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if isinstance(document, dict) and "title" in document:
        return {**document, "status": status}
    text = body[:200].decode("utf-8", "replace").strip()
    return {"type": _NO_DOCUMENT, "title": reason or "No reason given", "status": status} | (
        {"detail": text} if text else {}
    )


def read_retry_after(value: str | None) -> float | None:
    """Read a `Retry-After` header (seconds or a date; RFC 9110, 10.2.3) as seconds."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, math.ceil(date.timestamp() - time.time()))


def _message(problem: Document) -> str:
    """Summarise the document in a line or two."""
    words = [str(problem.get("title", "The service refused"))]
    if problem.get("detail"):
        words.append(f": {problem['detail']}")
    given = [name for name in ("received", "expected") if problem.get(name) is not None]
    words += [f" [{name}: {str(problem[name])[:300]}]" for name in given]
    if problem.get("fix"):
        words.append(f" {problem['fix']}")
    identity = f", request {problem['request_id']}" if problem.get("request_id") else ""
    return f"{''.join(words)} (HTTP {problem['status']}{identity})"
