"""The folder of stored jobs: what it keeps, for how long, and what does it no harm."""

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import (
    DeadlineExceeded,
    DiskFull,
    InternalError,
    JobsFull,
    KeyReused,
    NotReady,
    TooExpensive,
    UnknownJob,
)
from service.jobs import folder as folders
from service.jobs.folder import OVERHEAD, check_folder, new_id
from service.jobs.record import Outcome, Record, fingerprint
from service.jobs.store import JobStore, StoredJob
from service.settings import Settings

BODY = b'{"num_samples": 4}'
Make = Callable[..., JobStore]


def record(body: bytes = BODY, **fields: object) -> Record:
    asked = ("/sample", (("a", "1"), ("a", "2")), "application/json")
    given = {
        "id": new_id(),
        "owner": "",
        "path": asked[0],
        "query": asked[1],
        "content_type": asked[2],
        "fingerprint": fingerprint(*asked, body),
        "key": None,
        "model": "m",
        "seed": 7,
        "cost": 40,
        "created": time.time(),
        "deadline": None,
        "room": 1000,
    }
    return Record.model_validate(given | fields)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Stores of one folder, each after the one before has gone, as a service restarts."""
    made: list[JobStore] = []

    def open_store(**settings: object) -> JobStore:
        for store in made:
            store.close()
        given = Settings.model_validate({"jobs": tmp_path / "jobs", **settings})
        made.append(JobStore(given))
        assert made[-1].open()
        return made[-1]

    return open_store


def done(store: JobStore, job: StoredJob, data: bytes = b"{}", ended: float | None = None) -> None:
    outcome = Outcome(ended=ended or time.time(), forms={"application/json": "answer.json"})
    store.finish(job, outcome, {"answer.json": data})


def test_jobs_survive_a_restart_in_their_order_and_with_their_answers(make: Make) -> None:
    store = make()
    asked = [record(created=float(i), key=f"k{i}") for i in range(4)]
    jobs = [store.create(one, BODY) for one in asked]
    assert store.take() is jobs[0]
    done(store, jobs[0], b"[1]", ended=time.time())
    store.fail(jobs[1], InternalError("no"))
    store.forget(jobs[2])
    before = store.used
    again = make()
    kept = list(reversed(again.of("")))
    assert [job.record for job in kept] == [asked[0], asked[1], asked[3]]
    assert [job.state for job in kept] == ["done", "failed", "waiting"]
    assert kept[0].answer("answer.json").read_bytes() == b"[1]"
    assert kept[1].outcome is not None
    assert kept[1].outcome.problem == InternalError("no").to_document()
    assert kept[2].body() == BODY
    assert abs(again.used - before) < OVERHEAD  # the files that say how a job ended
    assert again.find_key("", "k3", asked[3].fingerprint) is kept[2]
    with pytest.raises(KeyReused):
        again.find_key("", "k3", "other")
    assert again.find_key("other", "k3", "other") is None
    taken = again.take()
    assert taken is kept[2]
    assert again.take() is None


def test_a_crash_leaves_a_job_whole_or_not_at_all(make: Make, tmp_path: Path) -> None:
    store = make()
    job = store.create(record(), BODY)
    part = tmp_path / "jobs" / f"{new_id()}.part"
    part.mkdir()
    (part / "request").write_bytes(b"hal")
    result = job.folder / "result.part"
    result.mkdir()
    (result / "answer.json").write_bytes(b"{")
    again = make()
    (kept,) = again.of("")
    assert (kept.state, part.exists()) == ("waiting", False)
    done(again, kept)  # over what the crash left
    assert kept.state == "done"
    assert make().of("")[0].state == "done"


def test_foreign_and_damaged_files_do_no_harm_and_stay(make: Make, tmp_path: Path) -> None:
    store = make()
    good, torn, lost, odd = (store.create(record(), BODY) for _ in range(4))
    path = tmp_path / "jobs"
    (path / "notes.txt").write_text("mine")
    (path / "photographs").mkdir()
    (path / "photographs" / "a.png").write_bytes(b"")
    (path / new_id()).mkdir()
    (path / new_id()).write_text("a file")
    (path / "ffff.part").mkdir()
    (torn.folder / "job.json").write_text('{"version": 1, "id')
    (lost.folder / "request").unlink()
    (odd.folder / "job.json").write_text(json.dumps({**odd.record.model_dump(), "version": 2}))
    names = {entry.name for entry in path.iterdir()}
    again = make()
    assert {job.record.id for job in again.of("")} == {good.record.id, lost.record.id}
    assert {entry.name for entry in path.iterdir()} == names
    with pytest.raises(InternalError, match="damaged"):
        again.find(lost.record.id, "").body()
    fresh = again.create(record(), BODY)
    done(again, fresh)
    (fresh.folder / "result" / "outcome.json").write_text("[]")
    assert fresh.record.id not in {job.record.id for job in make().of("")}


def test_the_bound_holds_and_names_the_next_room(make: Make) -> None:
    most = 3 * (OVERHEAD + 1000) + 2**20
    store = make(max_jobs=3, max_jobs_bytes=most)
    with pytest.raises(TooExpensive):
        store.create(record(room=most), BODY)
    first = store.create(record(), BODY)
    second = store.create(record(room=2**20), BODY)
    assert store.used > 2**20
    with pytest.raises(JobsFull) as refused:
        store.create(record(room=2**20), BODY)
    assert refused.value.retry_after >= 59  # nothing has ended yet
    store.create(record(), BODY)
    with pytest.raises(JobsFull):
        store.create(record(), BODY)
    done(store, first, ended=time.time() - 86400 + 5)
    with pytest.raises(JobsFull) as refused:
        store.create(record(), BODY)
    assert refused.value.retry_after <= 6
    assert store.used < most
    store.forget(second)
    store.create(record(room=2**20), BODY)


def test_an_answer_larger_than_expected_fails_only_where_there_is_no_room(make: Make) -> None:
    store = make(max_jobs_bytes=2**20)
    job, other = store.create(record(), BODY), store.create(record(), BODY)
    done(store, job, bytes(2**19))
    assert job.state == "done"
    done(store, other, bytes(2**19))
    assert (other.state, job.state) == ("failed", "done")
    assert other.outcome is not None
    assert other.outcome.problem is not None
    assert other.outcome.problem["type"] == "urn:noneq:problem:disk-full"
    assert store.used <= 2**20


def test_ended_jobs_expire_and_others_do_not(make: Make) -> None:
    store = make(jobs_seconds=60)
    old = store.create(record(created=time.time() - 1e6, key="k"), BODY)
    waiting = store.create(record(created=time.time() - 1e6), BODY)
    done(store, old, ended=time.time() - 61)
    assert store.of("") == [waiting]
    with pytest.raises(UnknownJob):
        store.find(old.record.id, "")
    assert store.find_key("", "k", "other") is None
    fresh = store.create(record(key="k"), BODY)
    store.expire()
    assert not old.folder.exists()
    assert store.find_key("", "k", fresh.record.fingerprint) is fresh  # the later job's, still
    done(store, fresh)
    store.expire()
    assert fresh in store.of("")


def test_a_full_disk_is_a_problem_and_leaves_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = make()
    job = store.create(record(), BODY)
    before = sorted((tmp_path / "jobs").rglob("*"))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(folders.os, "fsync", full)
        with pytest.raises(DiskFull, match="No space left"):
            store.create(record(), BODY)
        assert sorted((tmp_path / "jobs").rglob("*")) == before
        done(store, job)
    assert job.outcome is not None
    assert job.outcome.problem is not None
    assert job.outcome.problem["status"] == 507
    assert [one.record.id for one in store.of("")] == [job.record.id]
    assert make().of("")[0].state == "waiting"  # the disk knows of no end: it is run again


def test_an_owner_with_few_running_goes_first(make: Make) -> None:
    store = make()
    busy = [store.create(record(owner="a"), BODY) for _ in range(3)]
    other = store.create(record(owner="b"), BODY)
    assert [store.take() for _ in range(4)] == [busy[0], other, *busy[1:]]


def test_a_job_that_ends_the_service_each_time_is_given_up(make: Make) -> None:
    for _ in range(3):
        store = make()
        job = store.of("")[0] if store.of("") else store.create(record(), BODY)
        store.start(job)
    store.put_back(job)  # that time it stopped in order
    for _ in range(3):
        store = make()
        store.start(store.of("")[0])
    store = make()
    with pytest.raises(InternalError, match="3 times"):
        store.start(store.of("")[0])


def test_a_deadline_passes_while_a_job_waits(make: Make) -> None:
    store = make()
    store.start(store.create(record(deadline=time.time() + 100), BODY))
    with pytest.raises(DeadlineExceeded):
        store.start(store.create(record(deadline=time.time() - 1), BODY))


def test_two_services_do_not_share_a_folder(tmp_path: Path) -> None:
    settings = Settings(jobs=tmp_path / "jobs")
    first, second = JobStore(settings), JobStore(settings)
    assert first.open()
    assert not second.open()
    with pytest.raises(NotReady):
        second.create(record(), BODY)
    job = first.create(record(), BODY)
    first.close()
    assert second.open()
    assert [one.record for one in second.of("")] == [job.record]
    second.close()


def test_without_a_folder_it_is_temporary_and_says_so(tmp_path: Path) -> None:
    store = JobStore(Settings())
    assert store.open()
    job = store.create(record(), BODY)
    assert (store.durable, job.folder.exists()) == (False, True)
    store.close()
    assert not job.folder.parent.exists()
    assert JobStore(Settings(jobs=tmp_path)).durable


def test_a_folder_that_cannot_be_written_is_a_mistake(tmp_path: Path) -> None:
    check_folder(tmp_path / "new" / "jobs")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="NONEQ_JOBS"):
        check_folder(tmp_path / "file")


def test_each_part_of_a_request_is_in_its_fingerprint() -> None:
    one = ("/sample", (("a", "1"),), "application/json", b"x")
    others = [
        ("/loglik", *one[1:]),
        (one[0], (("a", "2"),), *one[2:]),
        (*one[:2], None, one[3]),
        (*one[:3], b"y"),
    ]
    assert len({fingerprint(*each) for each in [one, *others]}) == 5
