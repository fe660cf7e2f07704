"""Measure how long GETs take on several servers, probed at a fixed interval.

    python -m benchmarks.probe SECONDS PORT/PATH...

It runs as its own process, so that the load generator does not delay it, and prints a JSON list of
seconds for each server. A probe is timed from when it was due, so that a server that hangs is not
probed less often.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence

from benchmarks.http import get

_BEAT = 0.02  # seconds between two probes of a server


async def probe(seconds: float, targets: Sequence[str]) -> list[list[float]]:
    """Return the seconds of every probe by target."""
    start = time.perf_counter()

    async def ask(target: str, due: float) -> float:
        await asyncio.sleep(due - (time.perf_counter() - start))
        port, _, path = target.partition("/")
        answer = await get(int(port), f"/{path}")
        if answer.status != 200:
            raise RuntimeError(f"{target} answered {answer.status}")
        return time.perf_counter() - start - due

    async def follow(target: str, shift: float) -> list[float]:
        beats = [shift + _BEAT * i for i in range(int(seconds / _BEAT))]
        return await asyncio.gather(*(ask(target, due) for due in beats))

    shifts = [_BEAT * i / len(targets) for i in range(len(targets))]  # not all at once
    return await asyncio.gather(*map(follow, targets, shifts))


if __name__ == "__main__":
    print(json.dumps(asyncio.run(probe(float(sys.argv[1]), sys.argv[2:]))))
