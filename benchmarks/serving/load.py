"""Send a load of requests to a server and record the outcome of each.

A closed load keeps `clients` requests in flight, so the server is saturated and its throughput is
measured. In an open load requests arrive at given times whether the server keeps up or not, and
latency counts from the arrival.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.http import Answer, post
from benchmarks.serving.requests import Request
from benchmarks.serving.systems import System, accepted, good

Fate = Literal["answered", "refused", "failed", "waiting"]
_REFUSALS = (429, 503)
_PAUSE = 0.1  # seconds that a client waits after a failed request


@dataclass(frozen=True)
class Outcome:
    """The outcome of a request.

    Attributes:
        request: the request.
        begun: when it arrived, seconds from the load's start.
        ended: when it was answered or given up.
        fate: "waiting" if it had no answer when the load ended.
    """

    request: Request
    begun: float
    ended: float
    fate: Fate

    @property
    def seconds(self) -> float:
        """Seconds from arrival to answer."""
        return self.ended - self.begun


class Load:
    """A load on one server.

    Args:
        system: the server's system.
        port: its port.
        requests: the requests, in order.
    """

    def __init__(self, system: System, port: int, requests: Iterator[Request]) -> None:
        self._system, self._port, self._requests = system, port, requests
        self._outcomes: list[Outcome] = []
        self._start = time.perf_counter()

    async def closed(self, clients: int, seconds: float) -> list[Outcome]:
        """Keep `clients` requests in flight for `seconds`; unanswered ones end as "waiting"."""
        tasks = [asyncio.create_task(self._client()) for _ in range(clients)]
        await asyncio.sleep(seconds)
        return await self._end(tasks)

    async def open(self, arrivals: Iterable[float], seconds: float, grace: float) -> list[Outcome]:
        """Send a request at each arrival for `seconds`, then wait `grace` more for answers."""
        tasks: list[asyncio.Task[Any]] = []
        for arrival in arrivals:
            if arrival >= seconds:
                break
            await asyncio.sleep(arrival - self._now())
            tasks.append(asyncio.create_task(self._send(next(self._requests), arrival)))
        await asyncio.sleep(seconds - self._now())
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        return await self._end(tasks)

    async def _client(self) -> None:
        while True:
            fate = await self._send(next(self._requests), self._now())
            if fate != "answered":
                await asyncio.sleep(_PAUSE)

    async def _send(self, request: Request, begun: float) -> Fate:
        path, body = self._system.call(request)
        fate: Fate = "waiting"
        try:
            answer = await post(self._port, path, body, accepted(request))
            fate = _fate(request, answer)
        except OSError:
            fate = "failed"
        finally:  # also for those cancelled at the end
            self._outcomes.append(Outcome(request, begun, self._now(), fate))
        return fate

    async def _end(self, tasks: list["asyncio.Task[Any]"]) -> list[Outcome]:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return self._outcomes

    def _now(self) -> float:
        return time.perf_counter() - self._start


def _fate(request: Request, answer: Answer) -> Fate:
    if good(request, answer):
        return "answered"
    return "refused" if answer.status in _REFUSALS else "failed"
