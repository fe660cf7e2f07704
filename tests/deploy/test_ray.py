"""The service on a real local Ray: two replicas, and the answers of one server."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from noneq import Client, Patience
from noneq.errors import DeadlineMissed
from noneq.sse import Progress
from service.settings import Settings
from tests.deploy.local import on_ray
from tests.noneq.conftest import listening
from tests.service.http.conftest import save_animals, save_models

pytest.importorskip("ray", reason="Ray is an extra: pip install 'noneq[ray]'")
pytestmark = pytest.mark.timeout(600)

SETTINGS = {"batch_size": 16, "deterministic": True, "max_queue_cost": 60_000, "threads": 1}
LARGE = 1_000  # samples: seconds of work
STUBBORN = Patience(retries=20, seconds=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models")
    save_models(found)
    save_animals(found)
    return found


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with on_ray(folder, **SETTINGS) as found:
        yield found


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[str]:
    """One server without Ray, that takes as much."""
    limits: dict[str, Any] = {"max_samples": 65_536, "max_request_cost": 64_000_000}
    with listening(Settings(models=folder, device="cpu", **SETTINGS, **limits)) as found:
        yield found


def metrics(url: str) -> dict[str, float]:
    """Those of one of the replicas, summed over labels."""
    found: dict[str, float] = {}
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            name = name.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found


def test_it_answers_as_one_server_does(url: str, plain: str) -> None:
    with Client(url) as ray, Client(plain) as one:
        for client in (ray, one):
            assert {model.name for model in client.models().models} >= {"gaussian-mixture", "grey"}
        ours, theirs = (c.sample(7, model="gaussian-mixture", seed=3, steps=9) for c in (ray, one))
        assert np.array_equal(ours.samples, theirs.samples)
        data = np.linspace(-2, 2, 20).reshape(10, 2)
        ours, theirs = (c.loglik(data, model="gaussian-mixture", seed=5) for c in (ray, one))
        assert np.array_equal(ours.bound, theirs.bound)


def test_a_split_request_equals_the_unsplit_one(url: str, plain: str) -> None:
    with Client(url) as ray, Client(plain) as one:
        done, cost = metrics(url)["noneq_network_evaluations_total"], 0
        events: list[Progress] = []
        asked = {"model": "gaussian-mixture", "seed": 11, "steps": 60}
        ours = ray.sample(LARGE, **asked, progress=events.append)
        theirs = one.sample(LARGE, **asked)
        cost = ours.network_evaluations
    assert cost == LARGE * 60
    assert ours.samples.shape == (LARGE, 2)
    assert np.array_equal(ours.samples, theirs.samples)
    assert [event.step for event in events] == sorted(event.step for event in events)
    assert events[-1].step == events[-1].total == cost
    assert metrics(url)["noneq_network_evaluations_total"] - done < cost


def test_problems_deadlines_and_headers_pass_as_they_are(url: str) -> None:
    asked = {"model": "gaussian-mixture", "num_samples": 2, "seed": 1}
    answer = httpx.post(f"{url}/sample", json=asked, headers={"x-request-id": "mine"})
    assert answer.status_code == 200
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert float(answer.headers["x-compute-time"]) > 0
    unknown = httpx.post(f"{url}/sample", json={"model": "nobody"})
    assert unknown.status_code == 404
    assert unknown.headers["content-type"] == "application/problem+json"
    assert unknown.json()["request_id"] == unknown.headers["x-request-id"]
    with Client(url) as client, pytest.raises(DeadlineMissed):
        client.sample(LARGE, model="gaussian-mixture", deadline=0.05)


def test_a_full_queue_and_a_caller_who_leaves(url: str) -> None:
    wait_until_idle(url)
    whole = {"model": "gaussian-mixture", "num_samples": 4 * LARGE, "seed": 1}
    stream = {"accept": "text/event-stream"}
    with httpx.stream("POST", f"{url}/sample", json=whole, headers=stream) as first:
        assert first.status_code == 200
        events = first.iter_lines()
        while '"state":"running"' not in next(events):
            pass
        while not all(metrics(url)["noneq_queue_cost"] for _ in range(6)):
            pass  # the other replica's part is on its way
        for _ in range(6):  # on whichever replica
            refused = httpx.post(f"{url}/sample", json={**whole, "num_samples": 1})
            assert refused.status_code == 503
            assert refused.json()["type"] == "urn:noneq:problem:queue-full"
            assert int(refused.headers["retry-after"]) == refused.json()["retry_after"]
    wait_until_idle(url)  # leaving frees both replicas


def test_a_replica_that_is_killed_costs_nobody_an_answer(url: str, plain: str) -> None:
    seeds = range(12)
    asked: dict[str, Any] = {"model": "gaussian-mixture", "steps": 100}
    with Client(plain) as one:
        expected = [one.sample(50, seed=seed, **asked).samples for seed in seeds]
    found: dict[int, np.ndarray] = {}
    failures: list[Exception] = []
    first, queue = threading.Event(), list(seeds)

    def ask() -> None:
        with Client(url, patience=STUBBORN) as client:
            while queue:
                seed = queue.pop()
                try:
                    found[seed] = client.sample(50, seed=seed, **asked).samples
                except Exception as error:
                    failures.append(error)
                first.set()

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    assert first.wait(60)
    os.kill(replica(), signal.SIGKILL)
    for caller in callers:
        caller.join(120)
    assert not failures
    assert all(np.array_equal(found[seed], expected[seed]) for seed in seeds)


def wait_until_idle(url: str) -> None:
    end = time.monotonic() + 30
    while any(metrics(url)["noneq_queue_cost"] for _ in range(6)):
        assert time.monotonic() < end


def replica() -> int:
    """The process of one of the replicas."""
    processes = psutil.Process().children(recursive=True)
    return next(p.pid for p in processes if p.cmdline()[:1] == ["ray::ServeReplica:noneq:noneq"])
