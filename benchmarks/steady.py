"""Measure the server's start time, its memory, and its event loop under load.

    python -m benchmarks.steady [--models models] [--starts 5] [--requests 10000] [--seconds 30]

Start: from the process's start to 200 on /health/ready. Memory: the resident set after numbers of
requests to small models, with one in a hundred to mnist. Event loop: /health/live of an idle server
and of one that constantly draws, bounds and fills in mnist's digits, with some answers of 64 digits
as JSON. An empty server is probed at the same time to show the machine's share.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from benchmarks.http import post
from benchmarks.measure import machine, table
from benchmarks.server import Server, serving
from benchmarks.serving.results import quantile

Call = tuple[str, dict[str, Any]]  # path, body
_MARKS: Final = (10, 100, 1000, 10_000, 100_000)


def server(models: Path, names: Sequence[str], folder: Path) -> AbstractContextManager[Server]:
    """Start noneq with only these models."""
    chosen = folder / "-".join(names)
    chosen.mkdir(exist_ok=True)
    for name in names:
        if not (chosen / name).exists():
            (chosen / name).symlink_to((models / name).resolve())
    arguments = ["--models", str(chosen), "--log-level", "warning"]
    return serving("service", arguments, "/health/ready")


def starts(models: Path, folder: Path, count: int) -> str:
    """Tabulate the times to readiness."""
    every = sorted(path.parent.name for path in models.glob("*/model.safetensors"))
    lines = []
    for names in (["swissroll"], ["mnist"], every):
        found = []
        for _ in range(count):
            with server(models, names, folder) as started:
                found.append(started.seconds)
        middle, ends = statistics.median(found), (min(found), max(found))
        lines.append([", ".join(names), f"{middle:.2f}", f"{ends[0]:.2f} to {ends[1]:.2f}"])
    return table(["models", "start to ready, s, median", "range"], lines)


def memory(models: Path, folder: Path, count: int) -> str:
    """Tabulate the resident set after increasing numbers of requests to one server."""
    lines, done, calls = [], 0, _small_calls()
    with server(models, ["swissroll", "mnist"], folder) as started:
        for mark in (0, *(mark for mark in _MARKS if mark < count), count):
            asyncio.run(_ask_all(started.port, itertools.islice(calls, mark - done), clients=8))
            done = mark
            lines.append([f"{mark:,}", f"{_resident(started.pid):.0f}"])
    return table(["requests", "resident set, MiB"], lines)


def health(models: Path, folder: Path, seconds: float) -> str:
    """Tabulate how long /health/live takes, idle and under load, and a bare route beside it."""
    lines = []
    with server(models, ["mnist"], folder) as ours, serving("benchmarks.bare", [], "/") as bare:
        targets = [f"{ours.port}/health/live", f"{bare.port}/"]
        for state, port in (("idle", None), ("under load", ours.port)):
            found = asyncio.run(_probe_under(port, targets, seconds))
            for name, times in zip(("noneq, /health/live", "a bare route"), found, strict=True):
                three = [quantile([(x, False) for x in times], q)[0] for q in (0.5, 0.99, 1.0)]
                lines.append([state, name, str(len(times)), *(f"{1e3 * x:.2f}" for x in three)])
    return table(["server", "route", "probes", "p50, ms", "p99, ms", "longest, ms"], lines)


def _small_calls() -> Iterator[Call]:
    """Yield draws and bounds of the Swiss roll, with one in a hundred calls to mnist."""
    for seed in itertools.count():
        few = {"name": "ddim", "steps": 5}
        if seed % 100 == 5:
            yield "/sample", {"model": "mnist", "num_samples": 4, "sampler": few, "seed": seed}
        elif seed % 3 == 0:
            yield "/loglik", {"model": "swissroll", "data": [[0.5, -1.0], [1.0, 0.0]], "terms": 10}
        else:
            number = 1 + seed % 16
            yield "/sample", {"model": "swissroll", "num_samples": number, "sampler": few}


def _large_calls() -> Iterator[Call]:
    """Yield calls to mnist: long draws, short draws of many digits, bounds, half-hidden digits."""
    digit = [[[7 * i * j % 256 for j in range(28)] for i in range(28)]]
    mask = [[1] * 28] * 14 + [[0] * 28] * 14
    many = {"num_samples": 64, "sampler": {"name": "ddim", "steps": 5}}
    turn: tuple[Call, ...] = (
        ("/sample", many),
        ("/sample", {"sampler": {"name": "ancestral", "steps": 250}}),
        ("/loglik", {"data": [digit] * 8, "terms": 20, "per_step": True}),
        ("/sample", many),
        ("/inpaint", {"observed": [digit] * 4, "known": mask, "sampler": {"steps": 20}}),
    )
    return itertools.cycle(turn)


async def _ask_all(port: int, calls: Iterator[Call], clients: int) -> None:
    """Send all calls as JSON, `clients` at a time.

    Raises:
        ExceptionGroup: of RuntimeErrors, if one was not answered with 200.
    """

    async def client() -> None:
        for path, body in calls:
            answer = await post(port, path, body, "application/json")
            if answer.status != 200:
                raise RuntimeError(f"{path} answered {answer.status}: {answer.body[:300]!r}")

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())


async def _probe_under(
    port: int | None, targets: Sequence[str], seconds: float
) -> list[list[float]]:
    """Probe the targets after a load on `port`, if any, has built up."""
    load = None if port is None else asyncio.create_task(_ask_all(port, _large_calls(), 12))
    await asyncio.sleep(1.0 if load is None else seconds / 5)
    prober = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.probe", str(seconds), *targets),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await prober.communicate()
    if load is not None:
        if load.done():
            load.result()  # it only ends by an error, raised here
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
    if prober.returncode:
        raise RuntimeError("a probe failed; what it said is above")
    found: list[list[float]] = json.loads(said)
    return found


def _resident(pid: int) -> float:
    """Return a process's resident memory in MiB."""
    command = ["ps", "-o", "rss=", "-p", str(pid)]
    return int(subprocess.run(command, check=True, capture_output=True).stdout) / 1024


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30.0, help="of probing, each state")
    asked = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"\n{starts(asked.models, folder, asked.starts)}", flush=True)
        print(f"\n{memory(asked.models, folder, asked.requests)}", flush=True)
        print(f"\n{health(asked.models, folder, asked.seconds)}", flush=True)


if __name__ == "__main__":
    main()
