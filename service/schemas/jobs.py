"""Pydantic models of the answers about stored jobs, which /docs shows."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class JobAnswer(BaseModel):
    """A request that is answered later, and where it stands."""

    model_config = ConfigDict(protected_namespaces=())

    id: str = Field(description="Names the job: GET /jobs/ID.")
    state: Literal["waiting", "running", "done", "failed"] = Field(
        description="It is `waiting` until its first network call."
    )
    path: str = Field(description="The route that was asked.")
    model: str = Field(description="Which model answers.")
    seed: int = Field(
        description="Fixed when the job was accepted: the same request with this seed gives the "
        "same answer."
    )
    step: int = Field(description="Network evaluations made, all rows together.")
    total: int = Field(description="Network evaluations needed.")
    seconds_left: float | None = Field(
        description="An estimate, by the job's rate so far; null until there is one."
    )
    queue_seconds: float = Field(
        description="From acceptance to the first network call, or until now."
    )
    compute_seconds: float = Field(description="Since then.")
    created: str = Field(description="When it was accepted (ISO 8601, UTC).")
    ended: str | None = Field(description="When it was done or failed; null until then.")
    expires: str | None = Field(
        description="When it is forgotten with its answer; null until it has ended."
    )
    durable: bool = Field(description="Whether it survives a restart of the service.")
    result: str = Field(description="Path of the answer, once the job is done.")
    idempotency_key: str | None = Field(description="The key that it came with.")
    problem: dict[str, Any] | None = Field(
        description="Of a job that failed, why: a problem document."
    )


class JobsAnswer(BaseModel):
    """The jobs of this API key, or of everybody where there are no keys, the latest first."""

    jobs: list[JobAnswer]
