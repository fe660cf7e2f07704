"""The two clients, `Client` and `AsyncClient`: they send a question and read its answer.

What is sent and how an answer is read is in requests.py, which does no input or output.
"""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing, closing
from dataclasses import replace
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, final
from weakref import finalize

import anyio
import httpx

from noneq import questions
from noneq.errors import ConnectionFailed, ConnectionLost, NoneqError, TimedOut
from noneq.requests import Question, Reading
from noneq.retries import Attempts, Patience
from noneq.sse import Preview, Progress

URL = "http://localhost:8000"

P = ParamSpec("P")
Found = TypeVar("Found")


def _method(make: Callable[P, Question[Found]]) -> "Callable[Concatenate[Client, P], Found]":
    """A call of questions.py as a method."""

    @wraps(make)
    def method(self: "Client", /, *args: P.args, **keys: P.kwargs) -> Found:
        return self.ask(make(*args, **keys))

    return method


@final
class Client:
    """A client that waits for its answers. Threads may share one.

        with Client() as client:
            digits = client.sample(16, model="mnist")
            digits.image().show()

    Args:
        url: of the service.
        api_key: if the service requires one.
        timeout: the longest silence, in seconds; None for no limit.
        patience: how often and how long to retry if the service is busy or the connection breaks.
        transport: in place of httpx's own.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        timeout: float | None = 600.0,
        patience: Patience = Patience(),  # noqa: B008  (frozen)
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url, self._patience = url, patience
        self._http = httpx.Client(transport=transport, **_settings(url, api_key, timeout))
        finalize(self, self._http.close)  # for `Client().sample(...)`, which nobody closes

    sample = _method(questions.sample)
    loglik = _method(questions.loglik)
    inpaint = _method(questions.inpaint)
    denoise = _method(questions.denoise)
    posterior = _method(questions.posterior)
    models = _method(questions.models)
    model = _method(questions.model)
    examples = _method(questions.examples)

    def ask(self, question: Question[Found]) -> Found:
        """The answer to any question.

        Raises:
            NoneqError: see errors.py.
        """
        heard = self._heard(question)
        with closing(heard) as events:
            while isinstance(event := next(events), Progress | Preview):
                question.tell(event)
        return event

    def stream(self, question: Question[Found]) -> Iterator[Progress | Preview | Found]:
        """The progress of a question, event by event; the last is its answer.

            for event in client.stream(questions.sample(16, model="mnist", previews=4)):
                ...

        Leaving the loop cancels the request: the service frees its rows at the next step.
        If the connection breaks and the request is repeated, its progress starts again.

        Raises:
            NoneqError: see errors.py.
        """
        return self._heard(replace(question, streamed=True))

    def _heard(
        self, question: Question[Found]
    ) -> Generator[Progress | Preview | Found, None, None]:
        attempts = Attempts(self._patience)
        while True:
            try:
                yield from self._attempt(question)
                return
            except NoneqError as error:
                pause = attempts.after(error)
            time.sleep(pause)

    def _attempt(self, question: Question[Found]) -> Iterator[Progress | Preview | Found]:
        begun = False
        try:
            response = self._http.send(_request(self._http, question), stream=True)
            begun = True
            try:
                reading = _reading(question, response)
                for chunk in response.iter_bytes():
                    yield from reading.feed(chunk)
                answer = reading.end()
            finally:
                response.close()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _failure(error, self.url, begun=begun) from error
        yield answer

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def _coroutine(
    make: Callable[P, Question[Found]],
) -> "Callable[Concatenate[AsyncClient, P], Awaitable[Found]]":
    """A call of questions.py as a method."""

    @wraps(make)
    async def method(self: "AsyncClient", /, *args: P.args, **keys: P.kwargs) -> Found:
        return await self.ask(make(*args, **keys))

    return method


@final
class AsyncClient:
    """`Client` for coroutines, of asyncio or trio; every call is awaited.

        async with AsyncClient() as client:
            digits = await client.sample(16, model="mnist")

    Args:
        url: of the service.
        api_key: if the service requires one.
        timeout: the longest silence, in seconds; None for no limit.
        patience: how often and how long to retry if the service is busy or the connection breaks.
        transport: in place of httpx's own; httpx.ASGITransport(app) asks an app in process.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        timeout: float | None = 600.0,
        patience: Patience = Patience(),  # noqa: B008  (frozen)
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url, self._patience = url, patience
        self._http = httpx.AsyncClient(transport=transport, **_settings(url, api_key, timeout))

    sample = _coroutine(questions.sample)
    loglik = _coroutine(questions.loglik)
    inpaint = _coroutine(questions.inpaint)
    denoise = _coroutine(questions.denoise)
    posterior = _coroutine(questions.posterior)
    models = _coroutine(questions.models)
    model = _coroutine(questions.model)
    examples = _coroutine(questions.examples)

    async def ask(self, question: Question[Found]) -> Found:
        """The answer to any question.

        Raises:
            NoneqError: see errors.py.
        """
        heard = self._heard(question)
        async with aclosing(heard) as events:
            while isinstance(event := await anext(events), Progress | Preview):
                question.tell(event)
        return event

    def stream(self, question: Question[Found]) -> AsyncGenerator[Progress | Preview | Found, None]:
        """The progress of a question, event by event; the last is its answer.

            async with aclosing(client.stream(questions.sample(16, model="mnist"))) as events:
                async for event in events:
                    ...

        As `Client.stream`. With `contextlib.aclosing` the request is cancelled as soon as the loop
        is left; without it, when Python collects the stream.

        Raises:
            NoneqError: see errors.py.
        """
        return self._heard(replace(question, streamed=True))

    async def _heard(
        self, question: Question[Found]
    ) -> AsyncGenerator[Progress | Preview | Found, None]:
        attempts = Attempts(self._patience)
        while True:
            try:
                attempt = self._attempt(question)
                async with aclosing(attempt) as events:
                    async for event in events:
                        yield event
                return
            except NoneqError as error:
                pause = attempts.after(error)
            await anyio.sleep(pause)

    async def _attempt(
        self, question: Question[Found]
    ) -> AsyncGenerator[Progress | Preview | Found, None]:
        begun = False
        try:
            response = await self._http.send(_request(self._http, question), stream=True)
            begun = True
            try:
                reading = _reading(question, response)
                async for chunk in response.aiter_bytes():
                    for news in reading.feed(chunk):
                        yield news
                answer = reading.end()
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _failure(error, self.url, begun=begun) from error
        yield answer

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()


def _settings(url: str, api_key: str | None, timeout: float | None) -> dict[str, Any]:
    """The arguments of httpx's clients. Connecting may take 10 seconds, whatever `timeout` is."""
    connect = 10.0 if timeout is None else min(10.0, timeout)
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    return {
        "base_url": url,
        "headers": headers,
        "timeout": httpx.Timeout(timeout, connect=connect),
    }


def _request(http: httpx.Client | httpx.AsyncClient, question: Question[Any]) -> httpx.Request:
    """The question as an httpx request."""
    content = None if question.content is None else question.content[0]
    return http.build_request(
        question.method, question.path, content=content, headers=question.headers
    )


def _reading(question: Question[Found], response: httpx.Response) -> Reading[Found]:
    """The reader of a response's body."""
    return Reading(question, response.status_code, response.reason_phrase, response.headers)


def _failure(
    error: httpx.HTTPError | httpx.InvalidURL, url: str, *, begun: bool
) -> ConnectionFailed:
    """The error that is raised for a failure of the connection.

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
