"""An accepted job that has not ended."""

from dataclasses import dataclass
from typing import Any, final

from service.engine.forecast import Load
from service.engine.jobs import Job
from service.engine.results import Ticket


def whole_of(job: Job) -> Load:
    """All of a job, none of which is done."""
    step = max(1, job.cost // job.units) if job.queue.systems else 0
    return Load(job.rows * job.width, job.cost, job.parallel, step)


@final
@dataclass(eq=False)
class Record:
    """What the engine keeps of a job from acceptance to its end.

    Attributes:
        key: its name within the engine.
        job: what was asked.
        ticket: what its caller holds.
        rows_left: rows whose result is outstanding.
        accepted: when it came, monotonic seconds.
        size: bytes that it holds.
        deadline: when its answer is of no more use, monotonic seconds; infinity for never.
        started: when a row of it was first in a tick; None until then.
    """

    key: int
    job: Job
    ticket: Ticket[Any]
    rows_left: int
    accepted: float
    size: int
    deadline: float
    started: float | None = None

    @property
    def left(self) -> Load:
        """What is left of it. Read beside the engine's thread, so a tick late at worst."""
        ticket = self.ticket
        whole = whole_of(self.job)
        left = max(1, ticket.cost - ticket.done)
        return whole._replace(rows=max(1, self.rows_left * self.job.width), evaluations=left)
