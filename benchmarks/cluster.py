"""Ray beside the plain server, and two replicas beside one.

    python -m benchmarks.cluster overhead          # a request alone: median and 99th percentile
    python -m benchmarks.cluster scaling           # one and two replicas, and two processes alone

`overhead` sends short requests one after the other, to both in turn. `scaling` keeps a mix of
samples and likelihoods waiting, and counts network evaluations a second; two servers that share
nothing say what the machine itself allows. A server has one thread, a replica one core.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from benchmarks.server import HOST, serving
from noneq import Client, Patience
from service.settings import Settings

MODELS = ("mnist", "gaussian-mixture")


@contextlib.contextmanager
def plain(models: Path) -> Iterator[str]:
    """A server without Ray."""
    arguments = ["--models", str(models), "--device", "cpu", "--threads", "1"]
    with serving("service", [*arguments, "--batch-size", "32"], "/health/ready") as server:
        yield f"http://{HOST}:{server.port}"


@contextlib.contextmanager
def on_ray(models: Path, replicas: int) -> Iterator[str]:
    """So many replicas on a Ray of their own."""
    arguments = ["--models", str(models), "--replicas", str(replicas)]
    with serving("benchmarks.cluster", ["serve", *arguments], "/health/ready") as server:
        yield f"http://{HOST}:{server.port}"


def serve(models: str, replicas: int, port: int) -> None:
    """Serve on Ray until the process is ended."""
    import ray
    from ray import serve as rayserve

    from deploy.ray.app import Arguments, build

    settings = Settings(models=Path(models), device="cpu", batch_size=32)
    ray.init(num_cpus=replicas, include_dashboard=False, log_to_driver=False)
    rayserve.start(http_options={"host": HOST, "port": port})
    rayserve.run(build(Arguments(replicas=replicas, cpus=1), settings), name="noneq", blocking=True)


def overhead(models: Path, count: int) -> dict[str, list[float]]:
    """Milliseconds of `count` requests of one row and one step, to each in turn."""
    asked = {"model": "gaussian-mixture", "seed": 1, "sampler": {"name": "ancestral", "steps": 1}}
    found: dict[str, list[float]] = {"plain": [], "ray": []}
    with plain(models) as one, on_ray(models, 1) as ray, httpx.Client(timeout=60) as client:
        for i in range(count + 20):
            for name, url in (("plain", one), ("ray", ray)):
                begun = time.perf_counter()
                client.post(f"{url}/sample", json=asked).raise_for_status()
                if i >= 20:  # the first ones open connections
                    found[name].append(1000 * (time.perf_counter() - begun))
    return found


def rate(urls: Sequence[str], seconds: float, callers: int) -> float:
    """Network evaluations a second of a mix that always waits, by callers of each URL."""
    ended, done = threading.Event(), itertools.count()
    totals: list[int] = []

    def ask(url: str, i: int) -> None:
        with Client(url, patience=Patience(retries=100, seconds=600)) as client:
            data = client.examples("mnist", 16)
            while not ended.is_set():
                seed = next(done)
                if (i + seed) % 4:
                    rows, steps = (4, 8, 16)[seed % 3], (10, 20, 40)[seed // 3 % 3]
                    cost = client.sample(
                        rows, model="mnist", seed=seed, steps=steps
                    ).network_evaluations
                else:
                    cost = client.loglik(
                        data, model="mnist", seed=seed, terms=10
                    ).network_evaluations
                if not ended.is_set():
                    totals.append(cost)

    threads = [
        threading.Thread(target=ask, args=(url, i), daemon=True)
        for url in urls
        for i in range(callers)
    ]
    for thread in threads:
        thread.start()
    time.sleep(3)  # until all wait
    totals.clear()
    begun = time.perf_counter()
    time.sleep(seconds)
    found = sum(totals) / (time.perf_counter() - begun)
    ended.set()
    for thread in threads:
        thread.join()
    return found


def scaling(models: Path, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Evaluations a second, round by round."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        with plain(models) as one:
            found.setdefault("one process", []).append(rate([one], seconds, 8))
            with plain(models) as two:
                found.setdefault("two processes", []).append(rate([one, two], seconds, 8))
        for replicas in (1, 2):
            with on_ray(models, replicas) as url:
                found.setdefault(f"Ray, {replicas}", []).append(rate([url], seconds, 8 * replicas))
    return found


def main() -> None:
    """Run what the command names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["overhead", "scaling", "serve"])
    parser.add_argument("--models", default="models")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.what == "serve":
        serve(given.models, given.replicas, given.port)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            Path(folder, name).symlink_to(Path(given.models, name).resolve())
        if given.what == "overhead":
            found = overhead(Path(folder), given.count)
            for name, times in found.items():
                at = statistics.quantiles(times, n=100)
                print(f"{name}: median {at[49]:.2f} ms, 99th percentile {at[98]:.2f} ms")
        else:
            found = scaling(Path(folder), given.seconds, given.rounds)
            for name, rates in found.items():
                spread = f"{min(rates):.0f} to {max(rates):.0f}"
                print(f"{name}: {statistics.median(rates):.0f} evaluations/s ({spread})")
            for ours, one in (("two processes", "one process"), ("Ray, 2", "Ray, 1")):
                ratios = [b / a for a, b in zip(found[one], found[ours], strict=True)]
                spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
                print(f"{ours} / {one}: {statistics.median(ratios):.2f} ({spread})")
    if given.json is not None:
        given.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
