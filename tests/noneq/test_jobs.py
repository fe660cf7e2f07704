"""A job's handle: the same answer as by waiting, whatever becomes of the caller or the service."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from noneq import (
    AsyncClient,
    BadRequest,
    Busy,
    Client,
    Patience,
    Progress,
    TimedOut,
    UnknownModel,
    UnreadableAnswer,
    requests,
)
from service.app import create_app
from service.settings import Settings
from tests.noneq.conftest import Run, on_a_socket
from tests.noneq.scripted import response, scripted
from tests.service.http.caller import held

DRAWN = requests.sample(3, model="gaussian-mixture", steps=8, seed=7)
BOUNDS = requests.loglik([[0.5, -1.0], [9.0, 9.0]], model="gaussian-mixture", terms=9, seed=7)
FILLED = requests.inpaint(
    [[0.5, 0.0]], [1, 0], model="gaussian-mixture", method="product", steps=8, seed=7
)


@pytest.mark.parametrize("request_", [DRAWN, BOUNDS, FILLED], ids=["sample", "loglik", "inpaint"])
def test_a_job_has_the_answer_of_its_request(url: str, request_: requests.Request[object]) -> None:
    with Client(url) as client:
        job = client.submit(request_)
        told: list[object] = []
        ended = job.wait(progress=told.append)
        assert (ended.state, ended.seed, ended.step) == ("done", 7, ended.total)
        assert isinstance(told[-1], Progress)
        assert told[-1].state == "done"
        direct = client.send(request_)
        again = client.job(job.id)  # as another process has it
        for answer in (job.result(), again.result()):
            assert type(answer) is type(direct)
            for name, x in direct.body.tensors.items():  # type: ignore[attr-defined]
                np.testing.assert_array_equal(answer.body.tensors[name], x)  # type: ignore[attr-defined]
            assert answer.timing.compute_seconds > 0  # type: ignore[attr-defined]
        if request_ is BOUNDS:
            np.testing.assert_array_equal(again.result().bits_per_dim, direct.bits_per_dim)  # type: ignore[attr-defined]
        assert job.id in {one.id for one in client.jobs(state="done")}
        job.cancel()
        with pytest.raises(BadRequest, match="no such job"):
            again.status()
        with pytest.raises(BadRequest):
            client.job(job.id)


@pytest.mark.anyio
async def test_the_other_client_has_the_same(client: AsyncClient) -> None:
    job = await client.submit(DRAWN, idempotency_key="mine")
    same = await client.submit(DRAWN, idempotency_key="mine")
    assert same.id == job.id
    assert (await job.wait()).state == "done"
    direct = await client.sample(3, model="gaussian-mixture", steps=8, seed=7)
    found = await (await client.job(job.id)).result()
    np.testing.assert_array_equal(found.samples, direct.samples)
    assert (await job.status()).over
    assert [one.id for one in await client.jobs()] == [job.id]
    await job.cancel()
    assert await client.jobs() == []


def test_what_could_not_be_answered_is_refused_at_once(url: str) -> None:
    with Client(url) as client, pytest.raises(UnknownModel):
        client.submit(requests.sample(3, model="nobody"))


def test_a_wait_may_end_before_the_job(folder: Path) -> None:
    app = create_app(Settings(models=folder, device="cpu", batch_size=8))
    with on_a_socket(app) as url, Client(url) as client, held(app) as gate:
        job = client.submit(DRAWN)
        with pytest.raises(TimedOut, match="it goes on"):
            job.wait(timeout=0.2)
        timer = threading.Timer(1.0, gate.set)
        timer.start()
        with Client(url, timeout=0.5) as hasty:  # for which a long poll is too long
            assert hasty.job(job.id).wait().state == "done"
        timer.join()


def test_who_waits_does_so_through_a_restart(folder: Path, tmp_path: Path) -> None:
    settings = Settings(models=folder, device="cpu", batch_size=8, jobs=tmp_path / "jobs")
    first, found = create_app(settings), list[str]()
    with on_a_socket(first) as url, held(first):
        client = Client(url)
        job = client.submit(DRAWN)
        while job.status().state != "running":
            time.sleep(0.01)
        waiting = threading.Thread(target=lambda: found.append(job.wait().state))
        waiting.start()
        first.state.backend._closing = True  # as a signal does
    with on_a_socket(create_app(settings), int(url.rpartition(":")[2])), client:
        waiting.join(60)
    assert found == ["done"]


def test_a_submission_is_repeated_under_its_key() -> None:
    document = {"type": "urn:noneq:problem:jobs-full", "title": "No room", "status": 503}
    body, kind = json.dumps(document).encode(), "application/problem+json"
    full = response("503 Full", body, content_type=kind, retry_after="0")
    once = Patience(retries=1)
    with scripted([full] * 2) as (url, asked), Client(url, patience=once) as client:
        with pytest.raises(Busy, match="No room"):
            client.submit(DRAWN)
        lines = [line.lower() for one in asked for line in one.split(b"\r\n")]
    keys = [line for line in lines if line.startswith(b"idempotency-key: ")]
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert lines.count(b"prefer: respond-async") == 2


def test_a_service_that_keeps_no_jobs_is_told(
    serve: Callable[..., AbstractContextManager[str]],
) -> None:
    with (
        serve(max_jobs=0) as url,
        Client(url) as client,
        pytest.raises(UnreadableAnswer, match="keeps no jobs"),
    ):
        client.submit(DRAWN)


def test_the_command(noneq: Run, tmp_path: Path) -> None:
    asked = ("-m", "gaussian-mixture", "-n", "3", "--steps", "8", "--seed", "7")
    status, out, err = noneq("sample", *asked, "--submit")
    assert status == 0
    id_ = out.strip()
    assert f"noneq jobs wait {id_}" in err
    assert "does not survive a restart" in err
    status, out, _ = noneq("jobs", "wait", id_, "-o", "drawn.npy")
    assert status == 0
    assert "seed 7" in out
    assert noneq("sample", *asked, "-o", "direct.npy")[0] == 0
    np.testing.assert_array_equal(np.load("drawn.npy"), np.load("direct.npy"))
    assert noneq("jobs", "get", id_, "-o", "-")[1].startswith("x0,x1\n")
    _, out, _ = noneq("jobs", "--json", "list", "--state", "done")
    assert id_ in {one["id"] for one in json.loads(out)}
    assert id_ in noneq("jobs")[1]
    assert noneq("jobs", "cancel", id_)[0] == 0
    status, _, err = noneq("jobs", "get", id_)
    assert status == 2
    assert "No such job" in err
    status, _, err = noneq("sample", *asked, "--submit", "--local", str(tmp_path))
    assert status == 2
    assert "noneq serve" in err
