"""Endless fixed sequences of requests: short draws, long draws and likelihoods."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.serving.network import T

Kind = Literal["short", "long", "likelihood"]
KINDS: Final[tuple[Kind, ...]] = ("short", "long", "likelihood")

SHORT_STEPS: Final = (20, 30, 40, 50)  # round numbers, as people choose, which peers can batch
UNIFORM_STEPS: Final = 50
TERMS: Final = 100


@dataclass(frozen=True)
class Request:
    """A request for one sample or for the bound of one example.

    Attributes:
        kind: "short" is DDIM, "long" ancestral, "likelihood" a bound.
        cost: network evaluations: steps, or terms.
        seed: of the noise, and of the example.
    """

    kind: Kind
    cost: int
    seed: int


def uniform() -> Iterator[Request]:
    """Yield draws of 50 steps."""
    for seed in itertools.count():
        yield Request("short", UNIFORM_STEPS, seed)


def mixed() -> Iterator[Request]:
    """Yield draws of which one in ten has 1000 steps and nine 20 to 50, in random order."""
    chance = random.Random(0)
    for block in itertools.count():
        costs = [chance.choice(SHORT_STEPS) for _ in range(9)] + [T]
        chance.shuffle(costs)
        for place, cost in enumerate(costs):
            yield Request("long" if cost == T else "short", cost, 10 * block + place)


def likelihood() -> Iterator[Request]:
    """Yield draws of 50 steps and bounds of 100 terms alternately."""
    for seed in itertools.count():
        yield (
            Request("likelihood", TERMS, seed)
            if seed % 2
            else Request("short", UNIFORM_STEPS, seed)
        )


def mean_cost(order: Iterator[Request], count: int = 1000) -> float:
    """Return the mean number of network evaluations of the first `count` requests."""
    return sum(request.cost for request in itertools.islice(order, count)) / count


def arrivals(rate: float) -> Iterator[float]:
    """Yield the arrival times of a fixed Poisson process of `rate` per second, in seconds."""
    chance, now = random.Random(1), 0.0
    while True:
        now += chance.expovariate(rate)
        yield now
