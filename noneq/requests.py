"""One call: what is sent, and how its answer is read. No input or output, and no clock.

    question(path, ...) -> Question -> Reading(status, headers), feed(chunk) -> news, ..., end()

The names of a call's arguments are those of the fields of the service's requests. The others,
`deadline`, `progress` and `previews`, are settings of the call.
"""

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypedDict, TypeVar, final

from noneq.answer import Answer, Timing
from noneq.codec import BINARY, EVENTS, JSON, Array, Body, decode, encode
from noneq.errors import ConnectionLost, UnreadableAnswer, read_problem, refusal
from noneq.sse import EventReader, Listener, News, read_preview, read_progress

Found = TypeVar("Found")
FoundAnswer = TypeVar("FoundAnswer", bound=Answer)


@final
@dataclass(frozen=True)
class Question(Generic[Found]):
    """One call of the service.

    Attributes:
        path: of its route.
        read: the answer, from a safetensors file or from JSON (a `Body` without tensors).
        lift: the arrays of an answer that came as JSON.
        body: what is sent; None for GET.
        deadline: seconds after which the answer is of no more use; the service then drops it.
        listener: told of the progress, where somebody waits for the answer.
        previews: how many of the first samples are shown on their way.
        streamed: whether the answer comes by a stream that tells of progress; so it does where
            there is a listener.
    """

    path: str
    read: Callable[[Body, Timing], Found]
    lift: Callable[[Mapping[str, Any]], Body] = Body
    body: Body | None = None
    deadline: float | None = None
    listener: Listener | None = None
    previews: int = 0
    streamed: bool = False

    @property
    def method(self) -> str:
        """GET or POST."""
        return "GET" if self.body is None else "POST"

    @cached_property
    def content(self) -> tuple[bytes, str] | None:
        """The body's bytes and their type, made once for all attempts."""
        return None if self.body is None else encode(self.body)

    def tell(self, news: News) -> None:
        """Tell the listener, if there is one."""
        if self.listener is not None:
            self.listener(news)

    @property
    def headers(self) -> dict[str, str]:
        """What the request says of itself."""
        found = {"accept": self._accept()}
        if self.content is not None:
            found["content-type"] = self.content[1]
        if self.deadline is not None:
            found["x-deadline"] = f"{self.deadline:.6f}"
        return found

    def _accept(self) -> str:
        if self.body is None:
            return JSON
        if self.listener is None and not self.streamed:
            return BINARY
        return f"{EVENTS}; previews={self.previews}" if self.previews else EVENTS


@final
class Reading(Generic[Found]):
    """The answer to one attempt at a question, as its bytes come.

    Args:
        question: that was asked.
        status: of the response.
        reason: the status in words.
        headers: of the response, names in lower case.
    """

    def __init__(
        self, question: Question[Found], status: int, reason: str, headers: Mapping[str, str]
    ) -> None:
        self._question, self._status, self._reason = question, status, reason
        self._headers = headers
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        self._kind = kind
        self._events = EventReader() if kind == EVENTS and status < 300 else None
        self._pieces: list[bytes] = []
        self._result: dict[str, Any] | None = None
        self._timing = Timing(
            headers.get("x-request-id", ""),
            float(headers.get("x-queue-time", 0.0)),
            float(headers.get("x-compute-time", 0.0)),
        )

    def feed(self, chunk: bytes) -> list[News]:
        """Take the next bytes; what they tell.

        Raises:
            Refused: the stream told of a problem.
            UnreadableAnswer: it told something else.
        """
        if self._events is None:
            self._pieces.append(chunk)
            return []
        events = self._events.feed(chunk)
        return [news for name, data in events for news in self._heed(name, data)]

    def _heed(self, name: str, data: Any) -> Iterator[News]:  # noqa: ANN401  (JSON)
        if name == "error":
            raise refusal({"status": 500, **data})
        if name == "result":
            self._result = data
        elif name == "progress":
            progress = read_progress(data)
            self._timing = Timing(
                self._timing.request_id, progress.queue_seconds, progress.compute_seconds
            )
            yield progress
        elif name == "preview":
            yield read_preview(data)

    def end(self) -> Found:
        """The answer, now that there are no more bytes.

        Raises:
            Refused: it is a problem.
            ConnectionLost: the stream ended before its result.
            UnreadableAnswer: it is no answer of a noneq service.
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
                f"came HTTP {self._status} with {self._kind or 'no content type'}, where a noneq "
                f"service answers {BINARY}: check the address"
            )
        if self._kind == BINARY:
            return self._question.read(decode(raw), self._timing)
        try:
            document = json.loads(raw)
        except ValueError as error:
            raise UnreadableAnswer(f"the answer is no JSON ({error}): check the address") from error
        return self._read_json(document)

    def _read_json(self, document: Any) -> Found:  # noqa: ANN401
        try:
            body = self._question.lift(document)
        except (KeyError, TypeError, ValueError) as error:
            raise UnreadableAnswer(f"the answer lacks what it should have: {error!r}") from error
        return self._question.read(body, self._timing)


SamplerName = str | Mapping[str, Any]


class Asked(TypedDict, total=False):
    """What every call takes.

    Attributes:
        model: which; may be left out where one is served, or a default is set.
        seed: of the noise. Where it is None one is drawn, and sent, so that asking again gives the
            same answer.
        deadline: seconds after which the answer is of no more use; the service then drops it.
        progress: called with each `Progress`, and `Preview`, on the way to the answer.
    """

    model: str | None
    seed: int | None
    deadline: float | None
    progress: Listener | None


class Drawn(Asked, total=False):
    """What every call takes whose answer are samples.

    Attributes:
        previews: how many of them are shown on their way.
    """

    previews: int


def question(
    path: str,
    read: Callable[[Body, Timing], Found],
    lift: Callable[[Mapping[str, Any]], Body],
    asked: Mapping[str, Any],
    **tensors: Array,
) -> Question[Found]:
    """The question that asks `path` what was `asked`: what is None is left out.

    Args:
        path: of the route.
        read: the answer, as `Question` has it.
        lift: its arrays, likewise.
        asked: fields of the request by name, and what is the call's own.
        tensors: the fields that are arrays.
    """
    fields = {name: x for name, x in asked.items() if x is not None}
    listener, previews = fields.pop("progress", None), fields.pop("previews", 0)
    deadline = fields.pop("deadline", None)
    fields.setdefault("seed", draw_seed())
    body = Body(fields, tensors)
    return Question(path, read, lift, body, deadline, listener, previews)


def draw_seed() -> int:
    """A fresh seed, that every reader of JSON holds exactly."""
    return secrets.randbelow(2**32)


def sampler_of(sampler: SamplerName, steps: int | None) -> dict[str, Any]:
    """A sampler with its settings, by its name alone or with them."""
    found = {"name": sampler} if isinstance(sampler, str) else dict(sampler)
    return found if steps is None else {**found, "steps": steps}
