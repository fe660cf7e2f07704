"""Simulates 10, 100 and 1,000 replicas behind the router, with service times of the real engine.

    python -m benchmarks.replicas [--model models/mnist] [--price 0.04]

The engine is timed first: seconds of work of each request of the mix. Then requests come at random
times (Poisson) through a proxy for every 8 replicas. A replica does its work in order, one second a
second, so latencies are those of a queue, without what batching adds for a request alone. Routers:

    random     any replica
    count      the better of two random ones by requests in hand, known exactly: Ray's default
    owed       deploy/ray/router.py: the best of 4 random ones by reports every 0.25 s, and by what
               this proxy has sent since
    owed, all  the same, but the best of all
    exact      the least work owed, known exactly: what no router can do better

A request of more than half a second is split over the replicas. Of `owed` it also says what the
reports cost: Ray's controller sends the list of replicas to every proxy and replica at each change.
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import sample
from typing import Final

import numpy as np

from diffusion.checkpoint import load
from diffusion.samplers import Ancestral
from service.engine import Engine, SampleJob
from service.engine.router import MIN_SECONDS
from service.settings import Settings

MIX: Final = ((4, 20, 0.45), (16, 20, 0.3), (16, 100, 0.2), (64, 100, 0.05))  # rows, steps, share
SOME: Final = 4  # replicas that the router compares
DELAY: Final = 0.05  # seconds from a replica's report to the proxies
PROXY: Final = 8  # replicas of a proxy: those of a machine
ENTRY: Final = 244  # bytes of a replica in the controller's list, pickled (measured: Ray 2.60)


@dataclass(frozen=True)
class Kind:
    """A kind of request: its work in seconds, samples, and share of the requests."""

    work: float
    samples: int
    share: float


def measure(path: Path) -> list[Kind]:
    """The mix, as the engine of this machine does it with one thread: seconds of its CPU time."""
    model, _ = load(path / "model.safetensors")
    engine = Engine({"m": model}, Settings(device="cpu", threads=1))
    engine.warm()
    job = SampleJob("m", 64, 1, Ancestral(steps=20).plan(model))
    engine.submit(job).result()
    begun = time.process_time()
    engine.submit(job).result()
    evaluation = (time.process_time() - begun) / job.cost
    engine.stop()
    return [Kind(rows * steps * evaluation, rows, share) for rows, steps, share in MIX]


@dataclass
class Cluster:
    """Replicas: when each has done what it owes, and what the proxies know of that.

    Args:
        count: of replicas.
        period: seconds between a replica's reports.
        usual: seconds of work of a request, on average, which is what a proxy counts for one.
    """

    count: int
    period: float
    usual: float

    def __post_init__(self) -> None:
        self.dice = np.random.default_rng(1)
        self.free = np.zeros(self.count)  # when it has nothing left to do
        self.ends: list[list[float]] = [[] for _ in range(self.count)]  # of requests in hand
        proxies = max(1, self.count // PROXY)
        self.sent = np.zeros((proxies, self.count))
        self.reported, self.since = np.zeros(self.count), np.zeros(self.count)
        self.next = self.dice.uniform(0, self.period, self.count)

    def report(self, now: float) -> None:
        """Take in the reports that have arrived by now."""
        (due,) = np.nonzero(self.next + DELAY <= now)
        for r in due:
            at = self.next[r] + self.period * math.floor((now - DELAY - self.next[r]) / self.period)
            self.reported[r], self.since[r] = max(0.0, self.free[r] - at), at
            self.sent[:, r] = 0.0
            self.next[r] = at + self.period

    def choose(self, router: str, now: float, proxy: int) -> int:
        """The replica of a request."""
        if router == "random":
            return int(self.dice.integers(self.count))
        if router == "count":
            pair = self.dice.integers(self.count, size=2)
            for r in pair:
                self.ends[r] = [end for end in self.ends[r] if end > now]
            return int(min(pair, key=lambda r: len(self.ends[r])))
        some = np.arange(self.count)
        if router == "owed":
            some = np.array(sample(range(self.count), min(SOME, self.count)))
        owed = self.free[some] - now
        if router != "exact":
            owed = self.reported[some] - (now - self.since[some])
        owed = np.maximum(0.0, owed)
        if router != "exact":
            owed += self.sent[proxy, some]
        (least,) = np.nonzero(owed <= owed.min() + 1e-12)
        return int(some[self.dice.choice(least)])

    def take(self, router: str, now: float, work: float, known: float) -> float:
        """Give one replica some work, which the proxy takes for `known`; when it is done."""
        proxy = int(self.dice.integers(len(self.sent)))
        r = self.choose(router, now, proxy)
        self.free[r] = max(self.free[r], now) + work
        self.sent[proxy, r] += known
        if router == "count":
            self.ends[r].append(self.free[r])
        return float(self.free[r])


def simulate(
    kinds: Sequence[Kind], count: int, load: float, router: str, period: float, requests: int
) -> np.ndarray:
    """Seconds that each request took over its work, [requests], without the first tenth."""
    shares = np.array([kind.share for kind in kinds])
    usual = float(sum(kind.work * kind.share for kind in kinds))
    cluster, dice = Cluster(count, period, usual), np.random.default_rng(2)
    gaps = dice.exponential(usual / (load * count), requests)
    picked = dice.choice(len(kinds), requests, p=shares)
    now, found = 0.0, np.empty(requests)
    for i in range(requests):
        now += gaps[i]
        if router.startswith("owed"):
            cluster.report(now)
        work = kinds[picked[i]].work
        parts = max(1, min(count, int(work / MIN_SECONDS)))
        known = usual if parts == 1 else work / parts  # a part says what it is
        ends = [cluster.take(router, now, work / parts, known) for _ in range(parts)]
        found[i] = max(ends) - now - work / parts
    return found[requests // 10 :]


def main() -> None:
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("models/mnist"))
    parser.add_argument("--price", type=float, default=0.04, help="of a replica's hour")
    parser.add_argument("--requests", type=int, default=30_000)
    given = parser.parse_args()
    kinds = measure(given.model)
    for kind, (rows, steps, share) in zip(kinds, MIX, strict=True):
        print(f"{rows} samples of {steps} steps ({share:.0%}): {kind.work:.3f} s of work")
    per_sample = sum(k.work * k.share for k in kinds) / sum(k.samples * k.share for k in kinds)
    print("\nwait (s): median, 99th percentile; cost of a million samples")
    for count in (10, 100, 1000):
        for busy in (0.5, 0.8, 0.9):
            cells = []
            for router in ("random", "count", "owed", "owed, all", "exact"):
                wait = simulate(kinds, count, busy, router, 0.25, given.requests)
                cells.append(f"{router} {np.median(wait):.3f}, {np.quantile(wait, 0.99):.2f}")
            cost = 1e6 * per_sample / 3600 / busy * given.price
            print(f"{count:5} replicas, {busy:.0%} busy: {'; '.join(cells)}; {cost:.2f}")
    print("\nreports: period, wait at 80 % (median, 99th percentile), megabytes a second of lists")
    for count in (10, 100, 1000):
        for period in (0.25, 1.0, 4.0, 10.0):
            wait = simulate(kinds, count, 0.8, "owed", period, given.requests)
            listeners = count + count // PROXY
            # The controller's loop sends at most ten lists a second to each.
            sent = min(10.0, count / period) * listeners * count * ENTRY / 1e6
            told = f"{np.median(wait):.3f}, {np.quantile(wait, 0.99):.2f}"
            print(f"{count:5} replicas, {period:5.2f} s: {told}; {sent:.1f} MB/s")


if __name__ == "__main__":
    main()
