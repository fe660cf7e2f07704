"""Every problem that the service can answer is an exception that says what to do about it."""

import time
from collections.abc import Iterator
from email.utils import formatdate

import pytest

from noneq import errors
from service import errors as problems


def closed_set(kind: type[problems.Problem] = problems.Problem) -> Iterator[type[problems.Problem]]:
    for one in kind.__subclasses__():
        if hasattr(one, "slug"):
            yield one
        yield from closed_set(one)


EXPECTED = {
    "unauthorized": errors.Unauthorized,
    "forbidden": errors.Unauthorized,
    "unknown-model": errors.UnknownModel,
    "body-too-large": errors.TooLarge,
    "too-expensive": errors.TooLarge,
    "no-room": errors.Busy,
    "queue-full": errors.Busy,
    "too-many-connections": errors.Busy,
    "not-ready": errors.Busy,
    "draining": errors.Busy,
    "budget-exceeded": errors.Busy,
    "model-retired": errors.Busy,
    "deadline-unmeetable": errors.DeadlineMissed,
    "deadline-exceeded": errors.DeadlineMissed,
    "internal-error": errors.ServerFault,
    "numerical-failure": errors.ServerFault,
    "out-of-memory": errors.ServerFault,
    "engine-dead": errors.ServerFault,
    "no-device-memory": errors.ServerFault,
    "disk-full": errors.ServerFault,
    "job-not-done": errors.Busy,
    "jobs-full": errors.Busy,
}


@pytest.mark.parametrize("kind", sorted(set(closed_set()), key=lambda kind: kind.slug))
def test_each_problem_of_the_service_has_its_exception(kind: type[problems.Problem]) -> None:
    keys = {"allow": "GET"} if kind is problems.MethodNotAllowed else {}
    document = {**kind("what came", fix="fix it", **keys).to_document(), "request_id": "r1"}
    found = errors.refusal(document)
    assert type(found) is EXPECTED.get(kind.slug, errors.BadRequest)
    assert found.problem == document
    assert (found.status, found.request_id) == (kind.status, "r1")
    for word in (kind.title, "what came", "fix it", str(kind.status), "r1"):
        assert word in str(found)
    assert (found.retry_after is not None) == issubclass(kind, problems.Unavailable)


def test_the_header_goes_before_the_document() -> None:
    document = problems.QueueFull("full", retry_after=7).to_document()
    assert errors.refusal(document).retry_after == 7
    assert errors.refusal(document, "9").retry_after == 9


def test_retry_after_may_be_seconds_or_a_date() -> None:
    assert errors.read_retry_after(" 12 ") == 12
    soon = errors.read_retry_after(formatdate(time.time() + 30, usegmt=True))
    assert soon is not None
    assert 28 <= soon <= 31
    assert errors.read_retry_after(formatdate(time.time() - 30, usegmt=True)) == 0
    assert errors.read_retry_after("tomorrow") is None
    assert errors.read_retry_after(None) is None


def test_a_proxys_own_page_is_told_by_its_status() -> None:
    found = errors.refusal(errors.read_problem(502, "Bad Gateway", b"<html>nginx</html>"))
    assert isinstance(found, errors.Busy)
    assert "nginx" in str(found)
    assert "Bad Gateway" in str(found)
    # A 500 without a document is a proxy's whose replica has died: the service's own have one.
    lost = errors.read_problem(500, "Internal Server Error", b"Internal Server Error")
    assert isinstance(errors.refusal(lost), errors.Busy)
    ours = b'{"type": "urn:noneq:problem:internal-error", "title": "Internal error"}'
    assert isinstance(errors.refusal(errors.read_problem(500, "", ours)), errors.ServerFault)
