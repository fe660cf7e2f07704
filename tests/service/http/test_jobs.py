"""Requests that are answered later: the same answers, whoever leaves, and nobody is delayed."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI

from service.settings import Settings
from tests.service.http.caller import (
    Caller,
    assert_problem,
    connect,
    held,
    network,
    parse,
    starting,
    until,
)

pytestmark = pytest.mark.anyio

LATER = {"prefer": "respond-async"}
ASKED: dict[str, dict[str, Any]] = {
    "/sample": {"model": "gaussian-mixture", "num_samples": 3, "sampler": {"steps": 8}},
    "/loglik": {"model": "bit-patterns", "data": [[1, 0, 0, 0]], "terms": 9},
    "/inpaint": {
        "model": "gaussian-mixture",
        "observed": [[0.5, 0]],
        "known": [1, 0],
        "method": "product",
        "sampler": {"steps": 8},
    },
    "/denoise": {"model": "grey", "observed": [[[9] * 8] * 6], "noise_std": 40.0},
    "/posterior": {
        "model": "gaussian-mixture",
        "operator": {"kind": "dense", "rows": [[1, 0.5]]},
        "observed": [[0.3]],
        "noise_std": 0.1,
        "method": {"name": "twisted", "particles": 4},
        "sampler": {"steps": 8},
    },
}
FORMS = ("application/json", "image/png", "application/octet-stream", "text/csv")


@pytest.fixture
async def caller(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(app) as found:
        yield found
        for job in (await found.get("/jobs")).json()["jobs"]:
            await found.delete(f"/jobs/{job['id']}")


async def submit(
    client: httpx.AsyncClient, path: str = "/sample", **headers: str
) -> dict[str, Any]:
    response = await client.post(path, json=ASKED[path], headers={**LATER, **headers})
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/jobs/{job['id']}"
    assert response.headers["preference-applied"] == "respond-async"
    return job


async def ended(client: httpx.AsyncClient, job: dict[str, Any]) -> dict[str, Any]:
    response = await client.get(f"/jobs/{job['id']}", headers={"prefer": "wait=60"})
    found: dict[str, Any] = response.json()
    assert found["state"] in ("done", "failed")
    return found


@pytest.mark.parametrize("path", ASKED)
async def test_the_answer_is_the_direct_one_in_every_form(
    caller: httpx.AsyncClient, path: str
) -> None:
    job = await submit(caller, path)
    done = await ended(caller, job)
    assert (done["state"], done["step"], done["seed"]) == ("done", done["total"], job["seed"])
    asked = {**ASKED[path], "seed": job["seed"]}
    for form in FORMS:
        headers = {"accept": form}
        direct = await caller.post(path, json=asked, headers=headers)
        later = await caller.get(f"/jobs/{job['id']}/result", headers=headers)
        assert later.status_code == direct.status_code
        if direct.status_code == 200:
            assert later.headers["content-type"] == direct.headers["content-type"]
            assert float(later.headers["x-compute-time"]) > 0
            assert later.content == direct.content
        else:
            slug = direct.json()["type"].rpartition(":")[2]
            assert_problem(later, direct.status_code, slug)
    events = parse((await caller.get(job["result"], headers={"accept": "text/event-stream"})).text)
    assert [name for name, _ in events] == ["progress", "result"]
    assert json.loads(events[-1][1]) == (await caller.get(job["result"])).json()


async def test_a_range_of_an_answer_can_be_taken(caller: httpx.AsyncClient) -> None:
    job = await submit(caller)
    await ended(caller, job)
    whole = (await caller.get(job["result"])).content
    part = await caller.get(job["result"], headers={"range": f"bytes=10-{len(whole) - 1}"})
    assert (part.status_code, part.content) == (206, whole[10:])


async def test_what_could_not_be_answered_is_no_job(caller: httpx.AsyncClient) -> None:
    for body, status, slug in (
        ({"model": "nobody"}, 404, "unknown-model"),
        ({"model": "grey", "num_samples": 10**6}, 422, "too-expensive"),
        ({"model": "grey", "num_sample": 1}, 422, "invalid-request"),
    ):
        assert_problem(await caller.post("/sample", json=body, headers=LATER), status, slug)
    refused = await caller.post(
        "/sample", json={"model": "grey"}, headers={**LATER, "accept": "text/csv"}
    )
    assert_problem(refused, 422, "invalid-request")
    unlike = await caller.post("/sample", json={}, headers={**LATER, "accept": "text/html"})
    assert_problem(unlike, 406, "not-acceptable")
    assert (await caller.get("/jobs")).json() == {"jobs": []}


async def test_a_job_that_fails_keeps_its_problem(app: FastAPI, caller: httpx.AsyncClient) -> None:
    hook = network(app).register_forward_hook(lambda *given: given[2] * torch.nan)
    try:
        direct = await caller.post("/sample", json=ASKED["/sample"])
        job = await submit(caller)
        failed = await ended(caller, job)
    finally:
        hook.remove()
    assert (failed["state"], direct.status_code) == ("failed", 500)
    slug = direct.json()["type"].rpartition(":")[2]
    later = assert_problem(await caller.get(job["result"]), direct.status_code, slug)
    assert failed["problem"].items() <= later.items()
    events = parse((await caller.get(job["result"], headers={"accept": "text/event-stream"})).text)
    assert events[-1][0] == "error"
    assert json.loads(events[-1][1])["type"] == later["type"]
    listed = (await caller.get("/jobs", params={"state": "failed"})).json()["jobs"]
    assert [one["id"] for one in listed] == [job["id"]]
    assert (await caller.get("/jobs", params={"state": "done"})).json()["jobs"] == []


async def test_a_request_waits_a_moment_for_its_result(
    app: FastAPI, caller: httpx.AsyncClient
) -> None:
    asked, wait = ASKED["/sample"], {"prefer": 'respond-async, wait="60"', "accept": "text/csv"}
    there = await caller.post("/sample", json=asked, headers=wait)
    assert there.status_code == 200
    assert there.text.startswith("x0,x1\n")
    assert there.headers["preference-applied"] == "respond-async, wait=60"
    assert there.headers["location"].startswith("/jobs/")
    with held(app):
        soon = {"prefer": "respond-async, wait=1"}
        later = await caller.post("/sample", json=asked, headers=soon)
        assert later.status_code == 202
        result = f"{later.headers['location']}/result"
        early = await caller.get(result)
        assert_problem(early, 409, "job-not-done")
        assert int(early.headers["retry-after"]) == early.json()["retry_after"] >= 1


async def test_a_full_queue_refuses_no_job_and_a_job_delays_no_request(single: Path) -> None:
    settings = Settings(models=single, device="cpu", batch_size=4, max_queue_cost=8)
    async with starting(settings) as app, connect(app) as caller:
        with held(app) as gate:
            job = await submit(caller)
            asked = ASKED["/sample"]
            direct = [
                asyncio.ensure_future(caller.post("/sample", json=asked, timeout=60))
                for _ in range(2)
            ]
            await until(lambda: any(one.done() for one in direct))  # the other fills the queue
            more = await submit(caller)
            gate.set()
            refused, answered = sorted(
                await asyncio.gather(*direct), key=lambda one: -one.status_code
            )
            assert_problem(refused, 503, "queue-full")
            assert answered.status_code == 200
        for one in (job, more):
            assert (await ended(caller, one))["state"] == "done"


async def test_leaving_cancels_no_job(app: FastAPI, caller: httpx.AsyncClient) -> None:
    with held(app) as gate:
        job = await submit(caller)
        for path in (f"/jobs/{job['id']}", job["result"]):
            watcher = Caller(app, {}, "text/event-stream", path, method="GET")
            name, data = await watcher.next("progress")
            assert (name, data["total"]) == ("progress", 24)
            await watcher.leave()
        gate.set()
        assert (await ended(caller, job))["state"] == "done"
    events = parse(
        (await caller.get(f"/jobs/{job['id']}", headers={"accept": "text/event-stream"})).text
    )
    assert json.loads(events[-1][1]) == (await caller.get(f"/jobs/{job['id']}")).json()


async def test_delete_cancels_and_forgets(app: FastAPI, caller: httpx.AsyncClient) -> None:
    backend = app.state.backend
    with held(app) as gate:
        running, waiting = await submit(caller), await submit(caller)
        watcher = Caller(app, {}, "text/event-stream", running["result"], method="GET")
        await watcher.next("progress")
        for job in (running, waiting):
            assert (await caller.delete(f"/jobs/{job['id']}")).json()["id"] == job["id"]
            for method, path in (("GET", ""), ("GET", "/result"), ("DELETE", "")):
                gone = await caller.request(method, f"/jobs/{job['id']}{path}")
                assert_problem(gone, 404, "unknown-job")
        _, problem = await watcher.next("error")
        assert problem["type"] == "urn:noneq:problem:unknown-job"
        gate.set()
        await until(lambda: backend.engine.held == 0)
    assert (await caller.get("/jobs")).json() == {"jobs": []}


async def test_the_same_key_is_the_same_job(app: FastAPI, caller: httpx.AsyncClient) -> None:
    with held(app):
        both = await asyncio.gather(*(submit(caller, **{"idempotency-key": "k-1"}) for _ in "abcd"))
        assert len({job["id"] for job in both}) == len({job["seed"] for job in both}) == 1
        quoted = await submit(caller, **{"idempotency-key": '"k-1"'})
        assert (quoted["id"], quoted["idempotency_key"]) == (both[0]["id"], "k-1")
        other = {**ASKED["/sample"], "num_samples": 2}
        again = {**LATER, "idempotency-key": "k-1"}
        refused = assert_problem(
            await caller.post("/sample", json=other, headers=again), 422, "key-reused"
        )
        assert refused["job"] == both[0]["id"]
        elsewhere = await caller.post("/denoise", json=ASKED["/denoise"], headers=again)
        assert_problem(elsewhere, 422, "key-reused")
        assert (await submit(caller, **{"idempotency-key": "k-2"}))["id"] != both[0]["id"]
    for bad in ("", "two words", "x" * 256):
        refused_key = await caller.post(
            "/sample", json=other, headers={**LATER, "idempotency-key": bad}
        )
        assert_problem(refused_key, 422, "invalid-request")
    await caller.delete(f"/jobs/{both[0]['id']}")
    fresh = await caller.post("/sample", json=other, headers=again)  # the key is free again
    assert fresh.status_code == 202


async def test_each_key_has_jobs_of_its_own(
    single: Path, serve: Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
) -> None:
    async with serve(Settings(models=single, device="cpu", batch_size=4, api_keys="a,b")) as caller:
        a, b = ({"authorization": f"Bearer {key}"} for key in "ab")
        keyed = {"idempotency-key": "same"}
        mine, other = await submit(caller, **a, **keyed), await submit(caller, **b, **keyed)
        assert mine["id"] != other["id"]
        for method, path in (("GET", ""), ("GET", "/result"), ("DELETE", "")):
            address = f"/jobs/{mine['id']}{path}"
            assert_problem(await caller.request(method, address), 401, "unauthorized")
            unknown = assert_problem(
                await caller.request(method, address, headers=b), 404, "unknown-job"
            )
            never = await caller.request(method, f"/jobs/{'0' * 16}{path}", headers=b)
            assert unknown["detail"] == never.json()["detail"]
        listed = (await caller.get("/jobs", headers=b)).json()["jobs"]
        assert [job["id"] for job in listed] == [other["id"]]


async def test_a_job_waits_for_its_keys_budget_and_is_found_by_a_new_key(
    single: Path,
    tmp_path: Path,
    serve: Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]],
) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text('[alice]\nkey = "old"\nbudget = 30\n[bob]\nkey = "b"\n')
    given = {"models": single, "device": "cpu", "batch_size": 4, "jobs": tmp_path / "jobs"}
    settings = Settings.model_validate({**given, "api_key_file": keys})
    old, new, bob = ({"authorization": f"Bearer {key}"} for key in ("old", "new", "b"))
    async with serve(settings) as caller:
        first, second = await submit(caller, **old), await submit(caller, **old)  # 24 each
        wait = {"prefer": "wait=60"}
        done = await caller.get(f"/jobs/{first['id']}", headers={**old, **wait})
        assert done.json()["state"] == "done"
        direct = await caller.post("/sample", json=ASKED["/sample"], headers=old)
        assert_problem(direct, 429, "budget-exceeded")
        others = await submit(caller, **bob)  # which nothing holds up
        assert (await caller.get(f"/jobs/{others['id']}", headers={**bob, **wait})).json()["ended"]
        stands = await caller.get(f"/jobs/{second['id']}", headers=old)
        assert stands.json()["state"] == "waiting"
    keys.write_text('[alice]\nkey = "new"\n[bob]\nkey = "b"\n')
    async with serve(settings) as caller:
        done = await caller.get(f"/jobs/{second['id']}", headers={**new, **wait})
        assert done.json()["state"] == "done"
        listed = (await caller.get("/jobs", headers=new)).json()["jobs"]
        assert [one["id"] for one in listed] == [second["id"], first["id"]]


async def test_a_deadline_holds_for_a_job(app: FastAPI, caller: httpx.AsyncClient) -> None:
    with held(app) as gate:
        job = await submit(caller, **{"x-deadline": "0.05"})
        await asyncio.sleep(0.1)
        gate.set()
        failed = await ended(caller, job)
    assert failed["problem"]["type"] == "urn:noneq:problem:deadline-exceeded"
    assert_problem(await caller.get(job["result"]), 504, "deadline-exceeded")


async def test_without_jobs_the_preference_is_ignored(
    single: Path, serve: Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
) -> None:
    async with serve(Settings(models=single, device="cpu", batch_size=4, max_jobs=0)) as caller:
        direct = await caller.post("/sample", json=ASKED["/sample"], headers=LATER)
        assert (direct.status_code, "preference-applied" in direct.headers) == (200, False)


async def test_a_body_is_kept_as_it_came(caller: httpx.AsyncClient) -> None:
    packed = gzip.compress(json.dumps({**ASKED["/loglik"], "seed": 7}).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    job = (await caller.post("/loglik", content=packed, headers={**headers, **LATER})).json()
    assert (await ended(caller, job))["seed"] == 7
    direct = await caller.post("/loglik", content=packed, headers=headers)
    assert (await caller.get(job["result"])).json()["results"] == direct.json()["results"]


async def test_metrics_count_jobs(caller: httpx.AsyncClient) -> None:
    await ended(caller, await submit(caller))
    text = (await caller.get("/metrics")).text
    assert 'noneq_jobs{state="done"} 1.0' in text
    assert 'noneq_jobs_ended_total{outcome="ok"}' in text
    assert 'route="/jobs/{id}"' in text


async def test_head_and_unknown_methods(caller: httpx.AsyncClient) -> None:
    job = await submit(caller)
    assert (await caller.head(f"/jobs/{job['id']}")).status_code == 200
    refused = await caller.post(f"/jobs/{job['id']}")
    assert_problem(refused, 405, "method-not-allowed")
    assert refused.headers["allow"] == "DELETE, GET, HEAD"
