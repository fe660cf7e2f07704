"""What one request may ask for, whatever else is there: its cost and its bytes."""

import math

from diffusion.model import DiffusionModel
from service.engine.jobs import Job, SystemJob, TermJob
from service.errors import TooExpensive
from service.settings import Settings

APIECE = 2**16  # bytes that a request holds beside its data: connection, plan, records


def check_cost(cost: int, settings: Settings) -> None:
    """Raise TooExpensive beyond `max_request_cost`."""
    if cost > settings.max_request_cost:
        raise TooExpensive(
            "The request needs more network evaluations than one request may.",
            received=cost,
            expected=f"at most {settings.max_request_cost}",
            fix="Ask for fewer samples or data, for fewer steps (`sampler.steps`) or `terms`, or "
            "split it; the operator sets the limit (NONEQ_MAX_REQUEST_COST).",
        )


def check_limits(job: Job, model: DiffusionModel, settings: Settings) -> int:
    """The bytes that the job holds from acceptance to its end.

    Raises:
        TooExpensive: its cost, or its bytes, are more than one request may have.
    """
    check_cost(job.cost, settings)
    size = size_of(job, model)
    # Its body is still held when it is accepted: beside that it must fit, or it never would.
    room = settings.max_queue_bytes - settings.max_body_bytes - 2 * APIECE
    if size > room:
        raise TooExpensive(
            "The request's data and answer would hold more memory than one request may.",
            expected=f"at most {room} bytes",
            received=size,
            fix="Part it into several requests; the operator sets NONEQ_MAX_QUEUE_BYTES.",
        )
    return size


def size_of(job: Job, model: DiffusionModel) -> int:
    """Bytes of host memory that a job holds from acceptance to its end: what came, its answer."""
    if isinstance(job, TermJob):
        answer = 8 * job.cost + job.answer_bytes
        return job.x_0.nbytes + job.steps.nbytes + answer
    brought = [] if job.observation is None else list(job.observation.tensors)
    answer = 4 * job.samples * math.prod(model.event)
    if isinstance(job, SystemJob):
        answer += 8 * job.rows * job.units  # the effective sample size by step
        return sum(part.nbytes for part in brought) + answer
    if job.frames is not None:
        answer += 2 * len(job.frames.units) * answer + job.answer_bytes
    if job.start is not None:
        brought.append(job.start)
    return sum(part.nbytes for part in brought) + answer
