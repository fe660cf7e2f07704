"""The folder of the jobs, which is all that survives a restart of the service.

    ID/job.json              the record: which route, model, seed, whose it is
    ID/request               the request's body, until the job has ended
    ID/starts                how often it was started, a byte each; removed by an orderly stop
    ID/result/outcome.json   how it ended
    ID/result/...            its answer in each form

Each folder is made under another name and then renamed, so that what has its right name is whole.
What is not ours is left alone.
"""

import errno
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, final

from pydantic import ValidationError

from service.errors import DiskFull, InternalError, NotReady
from service.jobs.record import Outcome, Record, fingerprint

if os.name != "nt":
    import fcntl

_log = logging.getLogger(__name__)

OVERHEAD = 2**14  # bytes that a job counts beside its body and answer: files take whole blocks
_RECORD, _REQUEST, _STARTS, _RESULT, _OUTCOME = (
    "job.json",
    "request",
    "starts",
    "result",
    "outcome.json",
)
_PART = ".part"  # ends the name of a folder that is not whole yet
_LOCK = ".lock"
_ID = re.compile(r"[0-9a-f]{16}")


class Found(NamedTuple):
    """A job of an earlier process: what was asked, its folder and its bytes, and how it ended."""

    record: Record
    folder: Path
    size: int
    outcome: Outcome | None


@final
class JobFolder:
    """The folder that holds the jobs' own.

    Args:
        path: where; None for a temporary folder, which is made when it is needed.
    """

    def __init__(self, path: Path | None) -> None:
        self._named, self._path = path, None if path is None else path
        self._lock: int | None = None
        self._open = False

    @property
    def durable(self) -> bool:
        """Whether jobs survive a restart."""
        return self._named is not None

    def open(self) -> list[Found] | None:
        """Take the folder and read the jobs that are there; None while another process has it."""
        if self._named is None or self._open:
            return []
        self._named.mkdir(parents=True, exist_ok=True)
        if not self._take_lock(self._named):
            return None
        self._open = True
        paths = sorted(self._named.iterdir())
        found = [job for path in paths if (job := _load(path)) is not None]
        return sorted(found, key=lambda job: job.record.created)

    def close(self) -> None:
        """Give the folder up; a temporary one is removed."""
        self._open = False
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._named is None and self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            self._path = None

    def create(self, record: Record, body: bytes) -> Path:
        """Write an accepted job; when this returns, the disk has it.

        Raises:
            NotReady: another process has the folder.
            DiskFull: it cannot be written.
        """
        folder = self._place() / record.id
        with _new_folder(folder) as part:
            _write(part / _REQUEST, body)
            _write(part / _RECORD, record.model_dump_json().encode())
        return folder

    def _place(self) -> Path:
        if self._named is not None and not self._open:
            raise NotReady(
                "Another process has the folder of jobs, as while a service is replaced.",
                retry_after=2,
                fix="Each service needs a folder of its own (NONEQ_JOBS).",
            )
        if self._path is None:
            try:
                self._path = Path(tempfile.mkdtemp(prefix="noneq-jobs-"))
            except OSError as error:
                raise DiskFull(
                    f"There is no folder for jobs: {error.strerror or error}.",
                    fix="Tell the operator to set NONEQ_JOBS. Or ask without respond-async.",
                ) from error
        return self._path

    def _take_lock(self, folder: Path) -> bool:
        if os.name == "nt":
            return True
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        self._lock = handle
        return True


def new_id() -> str:
    """Make the id of a job."""
    return secrets.token_hex(8)


def check_folder(path: Path) -> None:
    """Raise ValueError unless jobs can be written there; makes the folder."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(
            f"NONEQ_JOBS: {path} cannot be written: {error.strerror or error}; name a folder that "
            "the service may write to, or leave it empty for a temporary one"
        ) from None


def read_body(folder: Path, record: Record) -> bytes:
    """Read a job's request; raises InternalError if it is not what was accepted."""
    raw = b""
    with suppress(OSError):
        raw = (folder / _REQUEST).read_bytes()
    if fingerprint(record.path, record.query, record.content_type, raw) != record.fingerprint:
        raise InternalError("The job's file is damaged.", fix="Send the request again.")
    return raw


def answer_file(folder: Path, name: str) -> Path:
    """Return where an answer is."""
    return folder / _RESULT / name


def save_result(folder: Path, outcome: Outcome, files: Mapping[str, bytes]) -> None:
    """Write how a job ended; its request is not needed any more. Raises DiskFull."""
    with _new_folder(folder / _RESULT) as part:
        for name, data in files.items():
            _write(part / name, data)
        _write(part / _OUTCOME, outcome.model_dump_json().encode())
    with suppress(OSError):
        (folder / _REQUEST).unlink(missing_ok=True)


def count_start(folder: Path) -> int:
    """Count a start, and return how many there have been since the last orderly stop."""
    starts = folder / _STARTS
    with suppress(OSError):  # full: then it is only not counted
        with starts.open("ab") as out:
            out.write(b".")
        return starts.stat().st_size
    return 1


def forget_starts(folder: Path) -> None:
    """Count from none again."""
    with suppress(OSError):
        (folder / _STARTS).unlink(missing_ok=True)


def delete(folder: Path) -> None:
    """Remove a job's folder, as far as that is possible."""
    for path in (folder / (_RESULT + _PART), folder / _RESULT, folder):
        with suppress(OSError):
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder, which has its name only once it is whole and on the disk.

    Raises:
        DiskFull: it could not be written; nothing of it is left.
    """
    part = folder.with_name(folder.name + _PART)
    delete(part)  # a crash may have left one
    try:
        part.mkdir()
        yield part
        _sync(part)
        part.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        delete(part)
        raise DiskFull(
            f"The job could not be written to the disk: {error.strerror or error}.",
            fix="Tell the operator that NONEQ_JOBS needs room. Or ask without respond-async.",
        ) from error


def _write(path: Path, data: bytes) -> None:
    """Write a file, and wait until the disk has it."""
    with path.open("xb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _sync(folder: Path) -> None:
    """Wait until the disk has the names in a folder."""
    if os.name != "nt":  # where folders cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _load(path: Path) -> Found | None:
    """Read a job of an earlier process; None for what is not one, which is left alone."""
    name = path.name
    if name.endswith(_PART) and _ID.fullmatch(name.removesuffix(_PART)) and path.is_dir():
        delete(path)  # it was never accepted
        return None
    if name == _LOCK:
        return None
    try:
        if not _ID.fullmatch(name):
            raise ValueError("its name is not a job's")
        record = Record.model_validate_json((path / _RECORD).read_bytes())
        if record.id != name:
            raise ValueError(f"it is of job {record.id[:100]}")
        file = path / _RESULT / _OUTCOME
        outcome = Outcome.model_validate_json(file.read_bytes()) if file.exists() else None
        sizes = [file.stat().st_size for file in _files(path) if file.is_file()]
    except (OSError, ValueError) as error:
        reason = "it is damaged" if isinstance(error, ValidationError) else f"{error}"
        _log.warning("%s is not read as a job: %s", path, reason)
        return None
    size = OVERHEAD + sum(sizes) + (record.room if outcome is None else 0)
    return Found(record, path, size, outcome)


def _files(folder: Path) -> Iterable[Path]:
    yield folder / _REQUEST
    if (folder / _RESULT).is_dir():
        yield from (folder / _RESULT).iterdir()
