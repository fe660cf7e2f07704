"""What a stored job is: the request as it was accepted, and how it ended."""

import hashlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """What was asked, and is never changed.

    Attributes:
        version: of this layout.
        id: names the job and its folder.
        owner: who may see it: a digest of the API key; empty where the service is open to all.
        path: the route.
        query: of the address, as pairs.
        content_type: of the body.
        fingerprint: of path, query, content type and body.
        key: the Idempotency-Key that it came with.
        model: which model answers.
        seed: of the noise, which fixes the answer.
        cost: network evaluations.
        created: when it was accepted, seconds since 1970.
        deadline: when its answer is no longer wanted, likewise.
        room: bytes that its answer is expected to take.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    version: Literal[1] = 1
    id: str
    owner: str
    path: str
    query: tuple[tuple[str, str], ...]
    content_type: str | None
    fingerprint: str
    key: str | None
    model: str
    seed: int
    cost: int
    created: float
    deadline: float | None
    room: int


class Outcome(BaseModel):
    """How a job ended.

    Attributes:
        ended: when, seconds since 1970.
        queue_seconds: from acceptance to the first network call.
        compute_seconds: from there to the result.
        problem: the problem document of a job that failed.
        forms: of one that did not, by media type: the file that has the answer, or the problem
            document of a form that it does not have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ended: float
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    problem: dict[str, Any] | None = None
    forms: dict[str, str | dict[str, Any]] = {}


def fingerprint(
    path: str, query: tuple[tuple[str, str], ...], content_type: str | None, body: bytes
) -> str:
    """Hash a request: two with the same fingerprint are the same."""
    digest = hashlib.sha256(repr((path, query, content_type)).encode())
    digest.update(body)
    return digest.hexdigest()
