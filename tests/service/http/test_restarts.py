"""Stored jobs while the service itself is killed, or stopped, and started again."""

import signal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.settings import Settings
from tests.service.http.caller import assert_problem, connect, held, starting, until
from tests.service.http.command import running

LATER = {"prefer": "respond-async"}
LONG: dict[str, Any] = {"model": "gaussian-mixture", "num_samples": 160}


def state(url: str, job: dict[str, Any], wait: int = 0) -> dict[str, Any]:
    response = httpx.get(f"{url}/jobs/{job['id']}", headers={"prefer": f"wait={wait}"}, timeout=90)
    found: dict[str, Any] = response.json()
    return found


def watch_until_it_runs(url: str, job: dict[str, Any]) -> None:
    address, accept = f"{url}/jobs/{job['id']}", {"accept": "text/event-stream"}
    with httpx.stream("GET", address, headers=accept, timeout=60) as events:
        assert any('"running"' in line for line in events.iter_lines())


def test_a_job_goes_on_after_a_crash_with_the_same_answer(single: Path, tmp_path: Path) -> None:
    flags = ("--jobs", str(tmp_path / "jobs"))
    with running(single, *flags) as (process, url, _):
        job = httpx.post(f"{url}/sample", json=LONG, headers=LATER).json()
        assert job["durable"]
        watch_until_it_runs(url, job)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    with running(single, *flags) as (process, url, _):
        again = state(url, job, wait=60)
        assert again["state"] == "done"
        assert (again["seed"], again["created"]) == (job["seed"], job["created"])
        later = httpx.get(f"{url}/jobs/{job['id']}/result").json()
        direct = httpx.post(f"{url}/sample", json={**LONG, "seed": job["seed"]}, timeout=60).json()
    close = {"rtol": 1e-4, "atol": 1e-4}  # a batch of another size may sum in another order
    np.testing.assert_allclose(later["samples"], direct["samples"], **close)


@pytest.mark.anyio
async def test_who_waits_for_a_job_learns_that_the_service_stops(
    single: Path, tmp_path: Path
) -> None:
    settings = Settings(models=single, device="cpu", batch_size=8, jobs=tmp_path / "jobs")
    async with starting(settings) as app, connect(app) as caller:
        with held(app) as gate:
            job = (await caller.post("/sample", json=LONG, headers=LATER)).json()
            await until(lambda: app.state.jobs.store.count("running") == 1)
            app.state.backend._closing = True  # as a signal does, before the drain
            for path, last in ((f"/jobs/{job['id']}", "draining"), (job["result"], "draining")):
                text = (await caller.get(path, headers={"accept": "text/event-stream"})).text
                assert last in text.rsplit("event: error", 1)[1]
            waited = await caller.get(f"/jobs/{job['id']}", headers={"prefer": "wait=60"})
            assert_problem(waited, 503, "draining")
            stands = await caller.get(f"/jobs/{job['id']}")
            assert stands.json()["state"] == "running"
            gate.set()
    async with starting(settings) as app, connect(app) as caller:
        waited = await caller.get(f"/jobs/{job['id']}", headers={"prefer": "wait=60"})
        assert waited.json()["state"] == "done"
