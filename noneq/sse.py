"""Reads the events of a response's stream: the request's progress, then its answer.

progress, [preview], progress, ..., progress, result          or, at any point, error
"""

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from noneq.codec import Array
from noneq.errors import UnreadableAnswer

RowState = Literal["finished", "running", "waiting"]


@dataclass(frozen=True)
class Progress:
    """The progress of a request.

    Attributes:
        state: "waiting" (for other requests), "running" or "done".
        step: network evaluations done, all rows together.
        total: network evaluations needed.
        seconds_left: an estimate; None until there is one.
        queue_seconds: the wait until the first network call.
        compute_seconds: the time since then.
    """

    state: Literal["waiting", "running", "done"]
    step: int
    total: int
    seconds_left: float | None
    queue_seconds: float
    compute_seconds: float


Estimated = bytes | Array | Mapping[str, Any] | None


@dataclass(frozen=True, eq=False)
class Preview:
    """The network's estimates of the first samples while they are drawn.

    Attributes:
        step: network evaluations done at that time.
        rows: the state of each row.
        estimates: each row's estimate in data units: an image as PNG bytes, a row of a table as an
            object by column name, other data as an array; None while the row waits.
    """

    step: int
    rows: Sequence[RowState]
    estimates: Sequence[Estimated]


Event = Progress | Preview
Listener = Callable[[Event], None]


class EventReader:
    """Splits a stream's bytes, as they arrive, into events (name, data)."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._end = b""

    def feed(self, chunk: bytes) -> Iterator[tuple[str, Any]]:
        """Yield the events that end in this chunk."""
        self._pieces.append(chunk)
        ends = b"\n\n" in self._end + chunk
        self._end = (self._end + chunk)[-1:]
        if not ends:
            return  # join an answer of megabytes once, not with every chunk
        *blocks, rest = b"".join(self._pieces).split(b"\n\n")
        self._pieces = [rest]
        for block in blocks:
            lines = dict(line.partition(b": ")[::2] for line in block.split(b"\n"))
            if b"event" not in lines:
                continue  # a comment, which only keeps the connection alive
            try:
                yield lines[b"event"].decode(), json.loads(lines[b"data"])
            except (KeyError, ValueError) as error:
                raise UnreadableAnswer(
                    f"an event of the stream cannot be read: {block!r}"
                ) from error


def read_progress(data: Mapping[str, Any]) -> Progress:
    """Read a `progress` event."""
    return Progress(**{name: data[name] for name in Progress.__dataclass_fields__})


def read_preview(data: Mapping[str, Any]) -> Preview:
    """Read a `preview` event."""
    return Preview(data["step"], tuple(data["rows"]), tuple(map(_estimate, data["estimates"])))


def _estimate(value: object) -> Estimated:
    if isinstance(value, str):
        return base64.b64decode(value)
    if isinstance(value, Mapping):
        return value
    return None if value is None else np.asarray(value, np.float32)
