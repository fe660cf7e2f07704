"""The closed set of errors."""

import json

import pytest

from service import errors as problems
from service.errors import (
    InvalidRequest,
    MethodNotAllowed,
    Problem,
    QueueFull,
    Unauthorized,
    Unavailable,
)


def concrete(kind: type[Problem] = Problem) -> list[type[Problem]]:
    below = [kind for child in kind.__subclasses__() for kind in concrete(child)]
    return below if kind in (Problem, Unavailable) else [kind, *below]


@pytest.mark.parametrize("kind", concrete(), ids=lambda kind: kind.__name__)
def test_each_has_a_status_a_title_and_a_document(kind: type[Problem]) -> None:
    problem = kind("what came", allow="GET") if kind is MethodNotAllowed else kind("what came")
    document = problem.to_document()
    assert document["status"] == kind.status
    assert 400 <= kind.status < 600
    assert list(document)[:4] == ["type", "title", "status", "detail"]
    assert json.loads(json.dumps(document)) == document
    assert all(name == name.lower() and isinstance(v, str) for name, v in problem.headers.items())
    assert str(problem) == "what came"


def test_types_are_distinct() -> None:
    assert len({kind.slug for kind in concrete()}) == len(concrete()) > 10


def test_members_appear_where_given() -> None:
    problem = InvalidRequest("no", expected=[1, 28, 28], fix="resize", location="data", index=None)
    document = problem.to_document()
    assert document["expected"] == [1, 28, 28]
    assert document["location"] == "data"
    assert "index" not in document
    assert "received" not in document


def test_headers() -> None:
    assert QueueFull("full", retry_after=2.1).headers == {"retry-after": "3"}
    assert QueueFull("full", retry_after=0.0).headers == {"retry-after": "1"}
    assert Unauthorized("who").headers == {"www-authenticate": "Bearer"}
    assert MethodNotAllowed("no", allow="GET, POST").headers == {"allow": "GET, POST"}


def test_media_type() -> None:
    assert problems.MEDIA_TYPE == "application/problem+json"
