"""The client for coroutines: many questions at once, of which the service makes common batches."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import wraps
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar, final

import anyio
import httpx

from noneq import line, questions
from noneq.errors import NoneqError
from noneq.events import Preview, Progress
from noneq.question import Question
from noneq.retries import Attempts, Patience

P = ParamSpec("P")
Found = TypeVar("Found")


def _call(
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
        api_key: where it wants one.
        timeout: seconds of silence to bear; None for any number.
        patience: whether and how long to ask again where the service is busy or the line breaks.
        transport: in the place of httpx's own; httpx.ASGITransport(app) asks an app in process.
    """

    def __init__(
        self,
        url: str = line.URL,
        *,
        api_key: str | None = None,
        timeout: float | None = 600.0,
        patience: Patience = Patience(),  # noqa: B008  (frozen)
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url, self._patience = url, patience
        self._http = httpx.AsyncClient(transport=transport, **line.settings(url, api_key, timeout))

    sample = _call(questions.sample)
    loglik = _call(questions.loglik)
    inpaint = _call(questions.inpaint)
    denoise = _call(questions.denoise)
    posterior = _call(questions.posterior)
    models = _call(questions.models)
    model = _call(questions.model)
    examples = _call(questions.examples)

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
        """How a question fares, event after event; the last is its answer.

            async with aclosing(client.stream(questions.sample(16, model="mnist"))) as events:
                async for event in events:
                    ...

        As `Client.stream`. `contextlib.aclosing` takes the question back at once where the loop is
        left; without it that happens when Python collects the stream.

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
            response = await self._http.send(line.request(self._http, question), stream=True)
            begun = True
            try:
                reading = line.reading(question, response)
                async for chunk in response.aiter_bytes():
                    for news in reading.feed(chunk):
                        yield news
                answer = reading.end()
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise line.failure(error, self.url, begun=begun) from error
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
