"""What both clients need to open a line to the service, and what they say when it fails."""

from typing import Any, TypeVar

import httpx

from noneq.errors import ConnectionFailed, ConnectionLost, TimedOut
from noneq.question import Question, Reading

URL = "http://localhost:8000"

Found = TypeVar("Found")


def settings(url: str, api_key: str | None, timeout: float | None) -> dict[str, Any]:
    """What httpx's clients take. To connect there are 10 seconds, whatever an answer may take."""
    connect = 10.0 if timeout is None else min(10.0, timeout)
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    return {
        "base_url": url,
        "headers": headers,
        "timeout": httpx.Timeout(timeout, connect=connect),
    }


def request(line: httpx.Client | httpx.AsyncClient, question: Question[Any]) -> httpx.Request:
    """The question as httpx sends it."""
    content = None if question.content is None else question.content[0]
    return line.build_request(
        question.method, question.path, content=content, headers=question.headers
    )


def reading(question: Question[Found], response: httpx.Response) -> Reading[Found]:
    """The answer that a response begins."""
    return Reading(question, response.status_code, response.reason_phrase, response.headers)


def failure(
    error: httpx.HTTPError | httpx.InvalidURL, url: str, *, begun: bool
) -> ConnectionFailed:
    """What a failure of the connection means to the caller.

    Args:
        error: as httpx raised it.
        url: of the service.
        begun: whether an answer had begun to arrive.
    """
    said = str(error) or type(error).__name__
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return TimedOut(
            f"nothing came from {url} within the client's timeout ({said}): allow more "
            "(timeout=...), ask for less, or pass progress=..., whose stream is never silent"
        )
    if begun or isinstance(error, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError):
        return ConnectionLost(
            f"the connection to {url} broke before the answer was whole ({said}): ask again; with "
            "the same seed it is the same answer"
        )
    return ConnectionFailed(
        f"no noneq service answers at {url} ({said}): start one with `noneq serve`, or name the "
        "address of another"
    )
