"""The jobs that the service keeps: on disk within a bound, each until its lifetime is over.

    waiting -> running -> done | failed;    expired or cancelled: forgotten

What is on disk is never changed, only added (`folder`), so a crash at any time leaves each job
waiting or ended. A job that had not ended when the service stopped is waiting again after its
start, and since its seed was fixed at acceptance its answer is the same.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from service.engine.results import Ticket
from service.errors import (
    DeadlineExceeded,
    DiskFull,
    InternalError,
    JobsFull,
    KeyReused,
    Problem,
    TooExpensive,
    UnknownJob,
)
from service.jobs import folder
from service.jobs.folder import OVERHEAD, JobFolder
from service.jobs.record import Outcome, Record
from service.settings import Settings

_log = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "failed"]

_STARTS = 3  # that ended with the process: a job that was started so often is not tried again


@final
@dataclass(eq=False)
class StoredJob:
    """A job, and where it stands.

    Attributes:
        record: what was asked.
        folder: where it is on disk.
        size: bytes that it counts; expected ones until it has ended.
        ticket: of its run in the engine; None while there is none.
        submitted: when it got that, monotonic seconds.
        outcome: how it ended; None until then.
        taken: whether it was started.
        later: when it may be started, monotonic seconds.
        forgotten: whether it has expired or was cancelled.
    """

    record: Record
    folder: Path
    size: int
    ticket: Ticket[Any] | None = None
    submitted: float = 0.0
    outcome: Outcome | None = None
    taken: bool = False
    later: float = 0.0
    forgotten: bool = False

    @property
    def state(self) -> State:
        """Where it stands: running from its first network call on."""
        if self.outcome is not None:
            return "done" if self.outcome.problem is None else "failed"
        running = self.ticket is not None and self.ticket.queue_seconds is not None
        return "running" if running else "waiting"

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.outcome is not None or self.forgotten

    def body(self) -> bytes:
        """Read the request's body; raises InternalError if it is not what was accepted."""
        return folder.read_body(self.folder, self.record)

    def answer(self, name: str) -> Path:
        """Return the file with an answer, one of `outcome.forms`."""
        return folder.answer_file(self.folder, name)


@final
class JobStore:
    """Keeps jobs; all methods may be called from any thread.

    Args:
        settings: `jobs`, `max_jobs`, `max_jobs_bytes` and `jobs_seconds` are used.
        wake: called when a job has come or gone.
    """

    def __init__(self, settings: Settings, wake: Callable[[], None] = lambda: None) -> None:
        self._settings, self._wake = settings, wake
        self._jobs: dict[str, StoredJob] = {}  # in the order in which they came
        self._keys: dict[tuple[str, str], StoredJob] = {}
        self._lock = threading.Lock()
        self._creating = threading.Lock()
        self._folder = JobFolder(settings.jobs)

    @property
    def durable(self) -> bool:
        """Whether jobs survive a restart."""
        return self._folder.durable

    def open(self) -> bool:
        """Take the folder and read the jobs that are there; False while another process has it."""
        found = self._folder.open()
        if found is None:
            return False
        with self._lock:
            for job in found:
                self._add(StoredJob(job.record, job.folder, job.size, outcome=job.outcome))
        return True

    def close(self) -> None:
        """Give the folder up; a temporary one is removed."""
        self._folder.close()

    # ------------------------------------------------------------------------------------ jobs

    def create(self, record: Record, body: bytes) -> StoredJob:
        """Accept a job; when this returns, the disk has it.

        With the key of another job of this owner it returns that one.

        Raises:
            KeyReused: the key is of a job with another request.
            NotReady: another process has the folder.
            JobsFull: there is no room for it now.
            TooExpensive: there would not be if it were alone.
            DiskFull: it cannot be written.
        """
        with self._creating:  # so that of two with one key the second finds the first
            known = self.find_key(record.owner, record.key, record.fingerprint)
            if known is not None:
                return known
            size = OVERHEAD + len(body) + record.room
            self._check_room(size)
            job = StoredJob(record, self._folder.create(record, body), size)
            with self._lock:
                self._add(job)
        self._wake()
        return job

    def find_key(self, owner: str, key: str | None, asked: str) -> StoredJob | None:
        """Find the job that a request with this key and fingerprint has made before.

        Raises:
            KeyReused: that was another request.
        """
        with self._lock:
            found = None if key is None else self._keys.get((owner, key))
        if found is None or self._expired(found):
            return None
        if found.record.fingerprint != asked:
            raise KeyReused(
                "The Idempotency-Key belongs to a job with another request.",
                received=key,
                job=found.record.id,
                fix="Send a new key with a new request, and the same request with the same key.",
            )
        return found

    def find(self, id_: str, owner: str) -> StoredJob:
        """Find a job; raises UnknownJob where there is none, or it is another owner's."""
        with self._lock:
            found = self._jobs.get(id_)
        if found is None or found.record.owner != owner or self._expired(found):
            raise UnknownJob(
                "There is no such job: it never was, has expired, or was cancelled.",
                received=id_[:100],
                fix="GET /jobs lists yours. The same request with the same seed, sent again, has "
                "the same answer.",
            )
        return found

    def of(self, owner: str) -> list[StoredJob]:
        """The jobs of an owner, the latest first."""
        with self._lock:
            found = [job for job in self._jobs.values() if job.record.owner == owner]
        return [job for job in reversed(found) if not self._expired(job)]

    def expires(self, job: StoredJob) -> float | None:
        """When it is forgotten, seconds since 1970; None until it has ended."""
        return None if job.outcome is None else job.outcome.ended + self._settings.jobs_seconds

    def forget(self, job: StoredJob) -> None:
        """Cancel a job, or remove one that has ended."""
        with self._lock:
            self._drop(job)
        if job.ticket is not None:
            job.ticket.cancel()
        folder.delete(job.folder)
        self._wake()

    def expire(self) -> None:
        """Forget the jobs whose lifetime is over."""
        with self._lock:
            over = [job for job in self._jobs.values() if self._expired(job)]
        for job in over:
            self.forget(job)

    # ------------------------------------------------------------------------------- their runs

    def take(self) -> StoredJob | None:
        """The next job to run: the first of the owner who has the fewest running."""
        with self._lock:
            jobs = self._jobs.values()
            running = Counter(job.record.owner for job in jobs if job.taken and not job.over)
            now = time.monotonic()
            waiting = [job for job in jobs if not (job.taken or job.over or job.later > now)]
            if not waiting:
                return None
            job = min(waiting, key=lambda job: running[job.record.owner])  # the first of equals
            job.taken = True
        return job

    def start(self, job: StoredJob) -> None:
        """Count a start, in case the process ends with it.

        Raises:
            InternalError: it was started too often.
            DeadlineExceeded: its deadline has passed.
        """
        deadline = job.record.deadline
        if deadline is not None and deadline <= time.time():
            raise DeadlineExceeded(
                "The deadline passed while the job waited.", fix="Allow more time."
            )
        if folder.count_start(job.folder) > _STARTS:
            raise InternalError(
                f"The service ended {_STARTS} times while it ran this job.",
                fix="Tell the operator the job's id.",
            )

    def put_back(self, job: StoredJob, *, counted: bool = False, seconds: float = 0.0) -> None:
        """Let a job that was not finished wait again, at least so many seconds.

        Its starts are `counted` or forgotten.
        """
        if not counted:
            folder.forget_starts(job.folder)
        job.later = time.monotonic() + seconds
        job.ticket, job.taken = None, False

    def finish(self, job: StoredJob, outcome: Outcome, files: Mapping[str, bytes]) -> None:
        """Keep how a job ended, and the files of its answer."""
        size = OVERHEAD + sum(map(len, files.values()))
        try:
            if self._used() - job.size + size > self._settings.max_jobs_bytes:
                raise DiskFull(
                    f"The answer has {size} bytes, more than expected, and there is no room.",
                    expected=f"at most {self._settings.max_jobs_bytes} bytes of all jobs",
                    fix="Ask for less in a request, or tell the operator (NONEQ_MAX_JOBS_BYTES).",
                )
            folder.save_result(job.folder, outcome, files)
        except DiskFull as problem:
            _log.warning("job %s: %s", job.record.id, problem.detail)
            outcome, size = outcome.model_copy(update=_failure(problem)), OVERHEAD
            with suppress(DiskFull):  # then only this process knows
                folder.save_result(job.folder, outcome, {})
        with self._lock:
            job.outcome, job.size, job.ticket = outcome, size, None
        if job.forgotten:  # while its answer was written
            folder.delete(job.folder)

    def fail(self, job: StoredJob, problem: Problem) -> None:
        """Keep that a job failed."""
        self.finish(job, Outcome(ended=time.time(), **_failure(problem)), {})

    # --------------------------------------------------------------------------------- figures

    def count(self, state: str) -> int:
        """How many jobs are in this state."""
        with self._lock:
            return sum(job.state == state for job in self._jobs.values())

    @property
    def used(self) -> int:
        """Bytes of all jobs, with what unfinished ones are expected to take."""
        return self._used()

    def _used(self) -> int:
        with self._lock:
            return sum(job.size for job in self._jobs.values())

    def _check_room(self, size: int) -> None:
        settings = self._settings
        if size > settings.max_jobs_bytes:
            raise TooExpensive(
                "The job and its answer would take more bytes than all jobs may.",
                received=size,
                expected=f"at most {settings.max_jobs_bytes} bytes",
                fix="Split it into several requests; the operator sets NONEQ_MAX_JOBS_BYTES.",
            )
        with self._lock:
            count, used = len(self._jobs), sum(job.size for job in self._jobs.values())
            ends = [end for job in self._jobs.values() if (end := self.expires(job)) is not None]
        if count < settings.max_jobs and used + size <= settings.max_jobs_bytes:
            return
        raise JobsFull(
            f"{count} jobs of {used} bytes are kept.",
            received=size,
            expected=f"at most {settings.max_jobs} jobs of {settings.max_jobs_bytes} bytes in all",
            retry_after=max(1.0, min(ends, default=time.time() + 60) - time.time()),
            fix="DELETE jobs whose answer you have, or try again later; the operator sets "
            "NONEQ_MAX_JOBS, NONEQ_MAX_JOBS_BYTES and NONEQ_JOBS_SECONDS.",
        )

    def _expired(self, job: StoredJob) -> bool:
        expires = self.expires(job)
        return expires is not None and expires <= time.time()

    def _add(self, job: StoredJob) -> None:
        self._jobs[job.record.id] = job
        if job.record.key is not None:
            self._keys[job.record.owner, job.record.key] = job

    def _drop(self, job: StoredJob) -> None:
        job.forgotten = True
        self._jobs.pop(job.record.id, None)
        key = (job.record.owner, job.record.key or "")
        if self._keys.get(key) is job:
            del self._keys[key]


def _failure(problem: Problem) -> dict[str, Any]:
    return {"problem": problem.to_document(), "forms": {}}
