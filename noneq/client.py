"""The client that waits for its answers."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from functools import wraps
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar, final
from weakref import finalize

import httpx

from noneq import line, questions
from noneq.errors import NoneqError
from noneq.events import Preview, Progress
from noneq.question import Question
from noneq.retries import Attempts, Patience

P = ParamSpec("P")
Found = TypeVar("Found")


def _call(make: Callable[P, Question[Found]]) -> "Callable[Concatenate[Client, P], Found]":
    """A call of questions.py as a method."""

    @wraps(make)
    def method(self: "Client", /, *args: P.args, **keys: P.kwargs) -> Found:
        return self.ask(make(*args, **keys))

    return method


@final
class Client:
    """Asks a noneq service, and waits. Threads may share one.

        with Client() as client:
            digits = client.sample(16, model="mnist")
            digits.image().show()

    Args:
        url: of the service.
        api_key: where it wants one.
        timeout: seconds of silence to bear; None for any number.
        patience: whether and how long to ask again where the service is busy or the line breaks.
        transport: in the place of httpx's own.
    """

    def __init__(
        self,
        url: str = line.URL,
        *,
        api_key: str | None = None,
        timeout: float | None = 600.0,
        patience: Patience = Patience(),  # noqa: B008  (frozen)
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url, self._patience = url, patience
        self._http = httpx.Client(transport=transport, **line.settings(url, api_key, timeout))
        finalize(self, self._http.close)  # for `Client().sample(...)`, which nobody closes

    sample = _call(questions.sample)
    loglik = _call(questions.loglik)
    inpaint = _call(questions.inpaint)
    denoise = _call(questions.denoise)
    posterior = _call(questions.posterior)
    models = _call(questions.models)
    model = _call(questions.model)
    examples = _call(questions.examples)

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
        """How a question fares, event after event; the last is its answer.

            for event in client.stream(questions.sample(16, model="mnist", previews=4)):
                ...

        Who leaves the loop takes the question back: the service frees its rows at the next step.
        Where a connection breaks and the question is asked again, its progress begins again.

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
            response = self._http.send(line.request(self._http, question), stream=True)
            begun = True
            try:
                reading = line.reading(question, response)
                for chunk in response.iter_bytes():
                    yield from reading.feed(chunk)
                answer = reading.end()
            finally:
                response.close()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise line.failure(error, self.url, begun=begun) from error
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
