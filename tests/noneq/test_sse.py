"""A stream is read the same however its bytes are cut, and tells of progress and previews."""

import base64
import json
from collections.abc import Iterator
from io import BytesIO

import httpx
import numpy as np
import pytest
from PIL import Image

from noneq import Client, ConnectionLost, Patience, Preview, Progress
from noneq.sse import EventReader

PROGRESS = {
    "state": "running", "step": 3, "total": 8, "seconds_left": None, "queue_seconds": 0.5,
    "compute_seconds": 0.25, "of_a_later_version": 1,
}  # fmt: skip
RESULT = {
    "model": "grey", "seed": 1, "exact": False, "sampler": {}, "samples": [[[[0, 7]]]],
    "network_evaluations": 8,
}  # fmt: skip


def png(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


PIXELS = np.array([[0, 255]], np.uint8)
PREVIEW = {
    "step": 3,
    "rows": ["finished", "running", "waiting"],
    "estimates": [base64.b64encode(png(PIXELS)).decode(), [0.5, -1.0], None],
}
STREAM = b"".join(
    [
        b"event: progress\ndata: %b\n\n" % json.dumps(PROGRESS).encode(),
        b": still here\n\n",
        b"event: preview\ndata: %b\n\n" % json.dumps(PREVIEW).encode(),
        b"event: another\ndata: {}\n\n",
        b"event: result\ndata: %b\n\n" % json.dumps(RESULT).encode(),
    ]
)


def cut(stream: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(stream), size):
        yield stream[start : start + size]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, len(STREAM)])
def test_events_are_the_same_however_the_stream_is_cut(size: int) -> None:
    reader = EventReader()
    found = [event for chunk in cut(STREAM, size) for event in reader.feed(chunk)]
    assert [name for name, _ in found] == ["progress", "preview", "another", "result"]
    assert found[0][1] == PROGRESS
    assert found[-1][1] == RESULT


def asked(stream: bytes) -> Client:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["accept"] == "text/event-stream; previews=3"
        return httpx.Response(
            200, headers={"content-type": "text/event-stream"}, content=cut(stream, 5)
        )

    return Client(transport=httpx.MockTransport(answer), patience=Patience(retries=0))


def test_a_listener_is_told_and_the_answer_comes_last() -> None:
    told: list[Progress | Preview] = []
    with asked(STREAM) as client:
        answer = client.sample(1, progress=told.append, previews=3)
    assert answer.numpy().tolist() == [[[[0.0, 7.0]]]]
    assert (answer.timing.queue_seconds, answer.timing.compute_seconds) == (0.5, 0.25)
    progress, preview = told
    assert isinstance(progress, Progress)
    assert (progress.state, progress.step, progress.total) == ("running", 3, 8)
    assert isinstance(preview, Preview)
    assert preview.rows == ("finished", "running", "waiting")
    drawn, numbers, none = preview.estimates
    assert isinstance(drawn, bytes)
    assert np.array_equal(np.asarray(Image.open(BytesIO(drawn))), PIXELS)
    assert isinstance(numbers, np.ndarray)
    assert numbers.tolist() == [0.5, -1.0]
    assert none is None


def test_a_stream_that_ends_early_has_no_answer() -> None:
    with asked(STREAM[:-5]) as client, pytest.raises(ConnectionLost, match="before its result"):
        client.sample(1, progress=lambda _: None, previews=3)
