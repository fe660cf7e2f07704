"""Attack a service with hostile clients: `python -m benchmarks.fire --queue-bytes 536870912`.

On localhost, it runs all at once, each bounded in number and time:

- clients that request large answers and stop reading;
- images that decompress to more than they declare;
- many long requests, each for one sample;
- an occasional short request, and /health/live throughout.

It passes if the process survives, every accepted request is answered, health answers within a
second, and a minute later memory has returned to within a fifth of its level before. `--pid` and
`--port` name a service that is already running, for example in a container.

A separate process probes health. It also reports how late it woke from its own sleep, which is how
long any process here waits for a processor.
"""

import argparse
import asyncio
import base64
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from benchmarks.http import get, post
from benchmarks.server import HOST, serving

_STALLED = 24
_SAMPLED = 100_000  # bytes of the answer that a stalled client reads
_PAUSE = 0.25  # seconds between two probes of a service


@dataclass
class Seen:
    """The results of an attack.

    Attributes:
        outcomes: number of requests by kind and outcome.
        short: seconds taken by each answered short request.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    short: list[float] = field(default_factory=list)


@dataclass
class Watched:
    """Periodic measurements of a service from outside.

    Attributes:
        health: seconds taken by each answer of /health/live; infinity without an answer.
        late: seconds by which each wake-up was late.
        memory: resident bytes.
    """

    health: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def bomb(side: int = 13_300) -> str:
    """Make a grey PNG whose second header declares far more than its first, in base64."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    def header(size: int) -> bytes:
        return chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0))

    packer = zlib.compressobj(9)
    line = bytes(side + 1)
    packed = b"".join(packer.compress(line) for _ in range(side)) + packer.flush()
    parts = header(28), header(side), chunk(b"IDAT", packed), chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


def resident(pid: int) -> int:
    """Return a process's resident memory in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def stall(port: int, seen: Seen, samples: int, until: float) -> None:
    """Request a large answer, read a little and stop."""
    sampler = {"name": "ancestral", "steps": 100}
    body = {"model": "heartbeat", "num_samples": samples, "frames": 100, "sampler": sampler}
    raw = orjson.dumps(body)
    head = f"POST /sample HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n"
    reader, writer = await asyncio.open_connection(HOST, port, limit=_SAMPLED)
    try:
        writer.write(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)
        async with asyncio.timeout(max(0.1, until - time.monotonic())):
            status = (await reader.readline()).split()[1].decode()
        seen.outcomes[f"large and not read: {status}"] += 1
        if status == "200":
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(max(0.0, until - time.monotonic()))
    except TimeoutError:
        seen.outcomes["large and not read: not yet begun"] += 1
    except (OSError, IndexError):
        seen.outcomes["large and not read: lost"] += 1
    finally:
        writer.transport.abort()


async def ask(port: int, seen: Seen, kind: str, path: str, body: object) -> None:
    """Send one request and record its outcome."""
    begun = time.monotonic()
    try:
        status = str((await post(port, path, body)).status)
    except OSError:
        status = "lost"
    seen.outcomes[f"{kind}: {status}"] += 1
    if kind == "short" and status == "200":
        seen.short.append(time.monotonic() - begun)


async def _watch(port: int, pid: int, seconds: float) -> Watched:
    seen, until = Watched(), time.monotonic() + seconds
    while time.monotonic() < until:
        begun = time.monotonic()
        try:
            alive = (await get(port, "/health/live")).status == 200
            seen.health.append(time.monotonic() - begun if alive else float("inf"))
            seen.memory.append(resident(pid))
        except OSError:  # no answer, or no process
            seen.health.append(float("inf"))
        begun = time.monotonic()
        await asyncio.sleep(_PAUSE)
        seen.late.append(time.monotonic() - begun - _PAUSE)
    return seen


def watch(port: int, pid: int, seconds: float) -> Watched:
    """Measure health and memory for `seconds`."""
    return asyncio.run(_watch(port, pid, seconds))


async def attack(port: int, long: int, pictures: int, seconds: float) -> Seen:
    """Run all attacks at once, for at most `seconds`."""
    seen, until = Seen(), time.monotonic() + seconds
    picture = bomb()
    slow = {"model": "swissroll", "num_samples": 1, "seed": 2, "sampler": {"name": "ancestral"}}
    quick = {**slow, "sampler": {"name": "ancestral", "steps": 10}}
    tasks = [
        # The largest may exceed the limit of one request; the others do not.
        *(stall(port, seen, (4096, 1024)[i % 2], until) for i in range(_STALLED)),
        *(
            ask(port, seen, "picture", "/loglik", {"model": "mnist", "data": [picture]})
            for _ in range(pictures)
        ),
        *(ask(port, seen, "long", "/sample", slow) for _ in range(long)),
    ]
    running = [asyncio.ensure_future(task) for task in tasks]
    while time.monotonic() < until - 5:
        await ask(port, seen, "short", "/sample", quick)
        await asyncio.sleep(1)
    _, pending = await asyncio.wait(running, timeout=60)
    for task in pending:
        task.cancel()
        seen.outcomes["cut off here"] += 1
    return seen


def judge(seen: Seen, watched: Watched, idle: int, after: int) -> list[str]:
    """List what went wrong."""
    wrong = []
    lost = sum(n for kind, n in seen.outcomes.items() if kind.endswith("lost"))
    if lost:
        wrong.append(f"{lost} requests were lost")
    if max(watched.health) > 1:
        wrong.append(f"/health/live took {max(watched.health):.2f} seconds")
    if after > 1.2 * idle:
        wrong.append(f"memory is {after >> 20} MiB a minute later, {idle >> 20} before")
    return wrong


def fire(port: int, pid: int, long: int, pictures: int, seconds: float) -> list[str]:
    """Attack, wait a minute, print the results and return what went wrong."""
    with ProcessPoolExecutor(1) as other:
        other.submit(watch, port, pid, 0.0).result()  # started before anything is timed
        time.sleep(12)  # let it release the memory used at start
        idle = resident(pid)
        watching = other.submit(watch, port, pid, seconds)
        seen = asyncio.run(attack(port, long, pictures, seconds))
        watched = watching.result()
    time.sleep(60)
    after = resident(pid)
    for kind, count in sorted(seen.outcomes.items()):
        print(f"{kind}: {count}")
    _tell("/health/live", watched.health)
    _tell("a process that slept woke late by", watched.late)
    if seen.short:
        _tell("short requests", seen.short)
    most = max(watched.memory)
    print(f"memory, MiB: {idle >> 20} idle, {most >> 20} at most, {after >> 20} a minute later")
    return judge(seen, watched, idle, after)


def _tell(what: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    middle, high = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    most = f"at most {ordered[-1]:.3f} of {len(ordered)}"
    print(f"{what}: median {middle:.3f} s, 99% {high:.3f}, {most}")


def main() -> None:
    """Attack a service that is started here, or a running one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="models", help="folder of a service started here")
    parser.add_argument("--queue-bytes", default="", help="its NONEQ_MAX_QUEUE_BYTES")
    parser.add_argument(
        "--port", type=int, default=0, help="of a service that runs on this machine"
    )
    parser.add_argument("--pid", type=int, default=0, help="of its process")
    parser.add_argument("--long", type=int, default=1000, help="long requests, at most 2000")
    parser.add_argument("--pictures", type=int, default=4, help="that unfold, at most 8")
    parser.add_argument("--seconds", type=float, default=60, help="at most 300")
    given = parser.parse_args()
    load = min(given.long, 2000), min(given.pictures, 8), min(given.seconds, 300.0)
    # Each request is a connection.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if given.port:
        wrong = fire(given.port, given.pid, *load)
    else:
        arguments = ["--models", given.models]
        if given.queue_bytes:
            arguments += ["--max-queue-bytes", given.queue_bytes]
        with serving("service", arguments, "/health/ready") as server:
            wrong = fire(server.port, server.pid, *load)
    print("\n".join(wrong) or "all is well")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
