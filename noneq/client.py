"""The two clients, `Client` and `AsyncClient`.

Both only move bytes: an `Exchange`, which does no I/O, builds the request, reads the response as it
arrives, and decides whether to try again.
"""

import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing, closing
from dataclasses import replace
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from typing import (
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Self,
    TypeVar,
    final,
    get_args,
    get_type_hints,
)
from weakref import finalize

import anyio
import httpx

from noneq import environment, jobs, requests, tasks
from noneq.codec import BINARY, EVENTS, JSON, Timing, decode
from noneq.errors import (
    ConnectionFailed,
    ConnectionLost,
    NoneqError,
    TimedOut,
    UnreadableAnswer,
    read_problem,
    refusal,
)
from noneq.jobs import AsyncJob, Job
from noneq.requests import Request
from noneq.retries import Attempts, Patience
from noneq.sse import Event, EventReader, Preview, Progress, read_preview, read_progress
from noneq.tasks import Task

P = ParamSpec("P")
T = TypeVar("T")


@final
class Exchange(Generic[T]):
    """Handles one call: its request, the response as its bytes arrive, and when to try again.

        start(status, reason, headers), feed(chunk) -> events, ..., end() -> the answer
        failed(error) -> the failure; pause(failure) -> seconds until the next attempt, or raises

    Args:
        request: the request, which may be sent several times.
        patience: the client's limits on retries.
        url: the service's address, for messages.
    """

    def __init__(self, request: Request[T], patience: Patience, url: str) -> None:
        self._request, self._url = request, url
        self._attempts = Attempts(patience)
        self._started = False

    @property
    def http(self) -> dict[str, Any]:
        """Return the arguments of httpx's `stream`."""
        request = self._request
        content = None if request.content is None else request.content[0]
        return {
            "method": request.method,
            "url": request.path,
            "content": content,
            "headers": request.headers,
        }

    def start(self, response: httpx.Response) -> None:
        """Read a response's status and headers."""
        self._started = True
        self._status, self._reason = response.status_code, response.reason_phrase
        headers = self._headers = response.headers
        self._kind = headers.get("content-type", "").split(";")[0].strip().lower()
        is_stream = self._kind == EVENTS and self._status < 300
        self._events = EventReader() if is_stream else None
        self._pieces: list[bytes] = []
        self._result: dict[str, Any] | None = None
        self._timing = Timing(
            headers.get("x-request-id", ""),
            float(headers.get("x-queue-time", 0.0)),
            float(headers.get("x-compute-time", 0.0)),
        )

    def feed(self, chunk: bytes) -> list[Event]:
        """Read the next bytes of the body, and return the events in them.

        Raises:
            Refused: the stream ended in a problem.
            UnreadableAnswer: an event cannot be read.
        """
        if self._events is None:
            self._pieces.append(chunk)
            return []
        return [
            event
            for name, data in self._events.feed(chunk)
            for event in self._read_event(name, data)
        ]

    def _read_event(self, name: str, data: Any) -> Iterator[Event]:  # noqa: ANN401  (JSON)
        if name == "error":
            raise refusal({"status": 500, **data})
        if name == "result":
            self._result = data
        elif name == "progress":
            progress = read_progress(data)
            self._timing = replace(
                self._timing,
                queue_seconds=progress.queue_seconds,
                compute_seconds=progress.compute_seconds,
            )
            yield progress
        elif name == "preview":
            yield read_preview(data)

    def end(self) -> T:
        """Return the answer, once all bytes have been fed.

        Raises:
            Refused: the response is a problem.
            ConnectionLost: the stream ended before its result.
            UnreadableAnswer: the response is not one of a noneq service.
        """
        raw = b"".join(self._pieces)
        if self._status >= 400:
            problem = read_problem(self._status, self._reason, raw)
            raise refusal(problem, self._headers.get("retry-after"))
        if self._events is not None:
            if self._result is None:
                raise ConnectionLost("the stream ended before its result: ask again")
            return self._read_json(self._result)
        if self._status >= 300 or self._kind not in (BINARY, JSON):
            raise UnreadableAnswer(
                f"received HTTP {self._status} with {self._kind or 'no content type'}, where a "
                f"noneq service answers {BINARY}: check the address"
            )
        if self._kind == BINARY:
            return self._request.read(decode(raw), self._timing)
        try:
            document = json.loads(raw)
        except ValueError as error:
            raise UnreadableAnswer(
                f"the answer is not JSON ({error}): check the address"
            ) from error
        return self._read_json(document)

    def _read_json(self, document: Any) -> T:  # noqa: ANN401
        try:
            body = self._request.from_json(document)
        except (KeyError, TypeError, ValueError) as error:
            raise UnreadableAnswer(f"the answer lacks what it should have: {error!r}") from error
        return self._request.read(body, self._timing)

    def failed(self, error: NoneqError | httpx.HTTPError | httpx.InvalidURL) -> NoneqError:
        """Return the failure that the error means to a caller."""
        started, self._started = self._started, False
        if isinstance(error, NoneqError):
            return error
        return _connection_error(error, self._url, started=started)

    def pause(self, failure: NoneqError) -> float:
        """Return the seconds until the next attempt, or raise `failure` to give up.

        Called outside `except`, so that httpx's trace-backs, which tell nothing more, stay away.
        """
        return self._attempts.after(failure)


def _connection_error(
    error: httpx.HTTPError | httpx.InvalidURL, url: str, *, started: bool
) -> ConnectionFailed:
    """Make the exception for a failed connection; `started`: whether a response had begun."""
    text = str(error) or type(error).__name__
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return TimedOut(
            f"nothing came from {url} within the client's timeout ({text}): allow more "
            "(timeout=...), ask for less, or pass progress=..., whose stream is never silent"
        )
    if started or isinstance(error, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError):
        return ConnectionLost(
            f"the connection to {url} broke before the answer was complete ({text}): ask again; "
            "the same seed gives the same answer"
        )
    return ConnectionFailed(
        f"no noneq service answers at {url} ({text}): start one with `noneq serve`, or give the "
        "address of another"
    )


def _settings(url: str, api_key: str | None, timeout: float | None) -> dict[str, Any]:
    """Return the arguments of httpx's clients; connecting may always take 10 seconds.

    Raises:
        ValueError: the address cannot be read.
    """
    try:
        base_url = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url} is no address ({error}): write http://host:port") from None
    connect = 10.0 if timeout is None else min(10.0, timeout)
    key = environment.api_key(api_key)
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return {
        "base_url": base_url,
        "headers": headers,
        "timeout": httpx.Timeout(timeout, connect=connect),
    }


class _Absent:
    """The default of an option that is then not sent."""

    def __repr__(self) -> str:
        return "..."


def _signature(make: Callable[..., object]) -> Signature:
    """Return the signature of a method made of `make`: every option by name, and the answer."""
    hints = get_type_hints(make)
    own = [one for one in signature(make).parameters.values() if one.kind != one.VAR_KEYWORD]
    (rest,) = get_args(hints.get("options")) or (None,)  # of Unpack[...]
    options = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=_Absent(), annotation=hint)
        for name, hint in (get_type_hints(rest) if rest else {}).items()
    ]
    parameters = [Parameter("self", Parameter.POSITIONAL_ONLY), *own, *options]
    return Signature(parameters, return_annotation=get_args(hints["return"])[-1])


def _method(make: Callable[P, Request[T]]) -> "Callable[Concatenate[Client, P], T]":
    """Turn a function of requests.py into a method."""

    @wraps(make)
    def method(self: "Client", /, *args: P.args, **keys: P.kwargs) -> T:
        return self.send(make(*args, **keys))

    method.__signature__ = _signature(make)  # type: ignore[attr-defined]
    return method


def _task(make: Callable[P, Task[T]]) -> "Callable[Concatenate[Client, P], T]":
    """Turn a function of tasks.py into a method."""

    @wraps(make)
    def method(self: "Client", /, *args: P.args, **keys: P.kwargs) -> T:
        return self.run(make(*args, **keys))

    method.__signature__ = _signature(make)  # type: ignore[attr-defined]
    return method


@final
class Client:
    """A client that waits for its answers, which threads may share::

        with Client() as client:
            digits = client.sample(16, model="mnist")
            digits.image().show()

    Args:
        url: the service's address; None for NONEQ_URL, or http://localhost:8000.
        api_key: the key, if the service requires one; None for NONEQ_API_KEY.
        timeout: the longest wait for the next bytes, in seconds; None for no limit.
        patience: how often and how long to retry if the service is busy or the connection breaks.
        transport: replaces httpx's own.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | None = 600.0,
        patience: Patience = Patience(),  # noqa: B008  (frozen)
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url, self._patience = environment.address(url), patience
        self._http = httpx.Client(transport=transport, **_settings(self.url, api_key, timeout))
        finalize(self, self._http.close)  # for `Client().sample(...)`, which is never closed

    sample = _method(requests.sample)
    loglik = _method(requests.loglik)
    inpaint = _method(requests.inpaint)
    denoise = _method(requests.denoise)
    posterior = _method(requests.posterior)
    models = _method(requests.models)
    model = _method(requests.model)
    examples = _method(requests.examples)
    load = _method(requests.load)
    unload = _method(requests.unload)
    impute = _task(tasks.impute)
    score = _task(tasks.score)
    generate = _task(tasks.generate)
    jobs = _method(jobs.jobs)

    def send(self, request: Request[T]) -> T:
        """Send a request and return its answer.

        Raises:
            NoneqError: see errors.py.
        """
        exchange = self._events(request)
        with closing(exchange) as events:
            while isinstance(event := next(events), Progress | Preview):
                if request.listener is not None:
                    request.listener(event)
        return event

    ask = send  # its name before 0.2.0, until 0.3.0

    def run(self, task: Task[T]) -> T:
        """Send a task's requests, one after the other, and return its result."""
        act: Callable[[], Request[Any]] = partial(next, task)
        while True:
            try:
                request = act()
            except StopIteration as ended:
                return ended.value  # type: ignore[no-any-return]
            try:
                act = partial(task.send, self.send(request))
            except NoneqError as error:
                act = partial(task.throw, error)

    def stream(self, request: Request[T]) -> Iterator[Event | T]:
        """Yield the progress of a request, event by event, and finally its answer::

            for event in client.stream(requests.sample(16, model="mnist", previews=4)):
                ...

        Leaving the loop cancels the request: the service frees its rows at the next step.
        If the connection breaks and the request is repeated, its progress starts again.

        Raises:
            NoneqError: see errors.py.
        """
        return self._events(replace(request, streamed=True))

    def _events(self, request: Request[T]) -> Generator[Event | T, None, None]:
        exchange = Exchange(request, request.patience or self._patience, self.url)
        while True:
            try:
                with self._http.stream(**exchange.http) as response:
                    exchange.start(response)
                    for chunk in response.iter_bytes():
                        yield from exchange.feed(chunk)
                answer = exchange.end()
            except (NoneqError, httpx.HTTPError, httpx.InvalidURL) as error:
                failure = exchange.failed(error)
            else:
                yield answer
                return
            time.sleep(exchange.pause(failure))

    def submit(self, request: Request[T], *, idempotency_key: str | None = None) -> Job[T]:
        """Have a request answered later, and return a handle on the job that it becomes::

            job = client.submit(requests.sample(4096, model="mnist"))
            digits = job.result()

        Args:
            request: what to ask.
            idempotency_key: the same request with the same key is the same job; None for a new one.

        Raises:
            NoneqError: see errors.py; a request that could not be carried out is refused at once.
        """
        found = self.send(jobs.submission(request, idempotency_key))
        return Job(self, found.id, request.read, request.from_json)

    def job(self, id_: str) -> Job[Any]:
        """Return a handle on a job by its id; raises BadRequest if there is none."""
        return Job(self, id_, *self.run(jobs.finding(id_)))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _coroutine(
    make: Callable[P, Request[T]],
) -> "Callable[Concatenate[AsyncClient, P], Awaitable[T]]":
    """Turn a function of requests.py into an async method."""

    @wraps(make)
    async def method(self: "AsyncClient", /, *args: P.args, **keys: P.kwargs) -> T:
        return await self.send(make(*args, **keys))

    method.__signature__ = _signature(make)  # type: ignore[attr-defined]
    return method


def _async_task(
    make: Callable[P, Task[T]],
) -> "Callable[Concatenate[AsyncClient, P], Awaitable[T]]":
    """Turn a function of tasks.py into an async method."""

    @wraps(make)
    async def method(self: "AsyncClient", /, *args: P.args, **keys: P.kwargs) -> T:
        return await self.run(make(*args, **keys))

    method.__signature__ = _signature(make)  # type: ignore[attr-defined]
    return method


@final
class AsyncClient:
    """A `Client` for asyncio or trio, whose calls are awaited::

        async with AsyncClient() as client:
            digits = await client.sample(16, model="mnist")

    The arguments are those of `Client`; `transport=httpx.ASGITransport(app)` calls an app in
    process.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | None = 600.0,
        patience: Patience = Patience(),  # noqa: B008  (frozen)
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url, self._patience = environment.address(url), patience
        self._http = httpx.AsyncClient(transport=transport, **_settings(self.url, api_key, timeout))

    sample = _coroutine(requests.sample)
    loglik = _coroutine(requests.loglik)
    inpaint = _coroutine(requests.inpaint)
    denoise = _coroutine(requests.denoise)
    posterior = _coroutine(requests.posterior)
    models = _coroutine(requests.models)
    model = _coroutine(requests.model)
    examples = _coroutine(requests.examples)
    load = _coroutine(requests.load)
    unload = _coroutine(requests.unload)
    impute = _async_task(tasks.impute)
    score = _async_task(tasks.score)
    generate = _async_task(tasks.generate)
    jobs = _coroutine(jobs.jobs)

    async def send(self, request: Request[T]) -> T:
        """Send a request and return its answer.

        Raises:
            NoneqError: see errors.py.
        """
        exchange = self._events(request)
        async with aclosing(exchange) as events:
            while isinstance(event := await anext(events), Progress | Preview):
                if request.listener is not None:
                    request.listener(event)
        return event

    ask = send  # its name before 0.2.0, until 0.3.0

    async def run(self, task: Task[T]) -> T:
        """Send a task's requests, one after the other, and return its result."""
        act: Callable[[], Request[Any]] = partial(next, task)
        while True:
            try:
                request = act()
            except StopIteration as ended:
                return ended.value  # type: ignore[no-any-return]
            try:
                act = partial(task.send, await self.send(request))
            except NoneqError as error:
                act = partial(task.throw, error)

    def stream(self, request: Request[T]) -> AsyncGenerator[Event | T, None]:
        """Yield the progress of a request, event by event, and finally its answer::

            async with aclosing(client.stream(requests.sample(16, model="mnist"))) as events:
                async for event in events:
                    ...

        With `contextlib.aclosing` the request is cancelled as soon as the loop is left; without it,
        when Python collects the stream.

        Raises:
            NoneqError: see errors.py.
        """
        return self._events(replace(request, streamed=True))

    async def _events(self, request: Request[T]) -> AsyncGenerator[Event | T, None]:
        exchange = Exchange(request, request.patience or self._patience, self.url)
        while True:
            try:
                async with self._http.stream(**exchange.http) as response:
                    exchange.start(response)
                    async for chunk in response.aiter_bytes():
                        for event in exchange.feed(chunk):
                            yield event
                answer = exchange.end()
            except (NoneqError, httpx.HTTPError, httpx.InvalidURL) as error:
                failure = exchange.failed(error)
            else:
                yield answer
                return
            await anyio.sleep(exchange.pause(failure))

    async def submit(
        self, request: Request[T], *, idempotency_key: str | None = None
    ) -> AsyncJob[T]:
        """Have a request answered later; the arguments are those of `Client.submit`."""
        found = await self.send(jobs.submission(request, idempotency_key))
        return AsyncJob(self, found.id, request.read, request.from_json)

    async def job(self, id_: str) -> AsyncJob[Any]:
        """Return a handle on a job by its id; raises BadRequest if there is none."""
        return AsyncJob(self, id_, *await self.run(jobs.finding(id_)))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
