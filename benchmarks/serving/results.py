"""Summarise the outcomes of a load: throughput, latencies, refusals, losses."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.measure import table
from benchmarks.serving.load import Outcome
from benchmarks.serving.requests import KINDS, Kind

Quantile = tuple[float, bool]  # seconds, and whether they are only a lower bound


@dataclass(frozen=True)
class Latency:
    """Latencies of the requests of one kind.

    Attributes:
        count: requests that arrived in the window, or for closed loads ended in it.
        refused: how many of them were refused.
        p50, p99: latencies of the others.
    """

    count: int
    refused: int
    p50: Quantile
    p99: Quantile


@dataclass(frozen=True)
class Result:
    """One measurement of a system under a load.

    Attributes:
        system, load: their names.
        requests, evaluations: rates per second, of requests answered in the window.
        latencies: latencies by kind.
        failed: requests accepted and then answered with an error, in the whole load.
        waiting: in open loads, requests accepted but unanswered when the load ended.
    """

    system: str
    load: str
    requests: float
    evaluations: float
    failed: int
    waiting: int
    latencies: Mapping[Kind, Latency] = field(default_factory=dict)


def summarise(
    system: str, load: str, outcomes: Sequence[Outcome], begin: float, end: float, *, closed: bool
) -> Result:
    """Summarise the outcomes in the window from `begin` to `end`.

    A closed load's latencies are of requests that ended in the window, since the client cancels
    those waiting at its end. An open load's are of requests that arrived in it; unanswered ones
    count with their waiting time as a lower bound, since omitting them would flatter slow systems.
    """
    ended = [o for o in outcomes if o.fate != "waiting" and begin <= o.ended < end]
    answered = [o for o in ended if o.fate == "answered"]
    seen = ended if closed else [o for o in outcomes if begin <= o.begun < end]
    kinds = {kind: [o for o in seen if o.request.kind == kind] for kind in KINDS}
    return Result(
        system,
        load,
        len(answered) / (end - begin),
        sum(o.request.cost for o in answered) / (end - begin),
        sum(o.fate == "failed" for o in outcomes),
        0 if closed else sum(o.fate == "waiting" for o in outcomes),
        {kind: _latency(found) for kind, found in kinds.items() if found},
    )


def _latency(outcomes: Sequence[Outcome]) -> Latency:
    lasting = [o for o in outcomes if o.fate in ("answered", "waiting")]
    times = [(o.seconds, o.fate == "waiting") for o in lasting]
    refused = sum(o.fate == "refused" for o in outcomes)
    return Latency(len(outcomes), refused, quantile(times, 0.5), quantile(times, 0.99))


def quantile(values: Iterable[Quantile], q: float) -> Quantile:
    """Return the q-quantile by nearest rank; a lower bound if any value up to it is one."""
    ordered = sorted(values)
    if not ordered:
        return math.nan, False
    rank = max(0, math.ceil(q * len(ordered)) - 1)
    return ordered[rank][0], any(waiting for _, waiting in ordered[: rank + 1])


def load_table(results: Sequence[Result]) -> str:
    """Format a row per system under one load: medians over the rounds, with their range."""
    systems = dict.fromkeys(result.system for result in results)
    kinds = [kind for kind in KINDS if any(kind in result.latencies for result in results)]
    head = ["", "requests/s", "evaluations/s"]
    head += [f"{kind} {part}" for kind in kinds for part in ("p50, s", "p99, s", "refused")]
    lines = []
    for system in systems:
        own = [result for result in results if result.system == system]
        line = [system, spread([r.requests for r in own]), spread([r.evaluations for r in own])]
        for kind in kinds:
            found = [r.latencies[kind] for r in own if kind in r.latencies]
            counts = sum(x.refused for x in found), sum(x.count for x in found)
            line += [_times([x.p50 for x in found]), _times([x.p99 for x in found])]
            line.append(f"{counts[0]} of {counts[1]}")
        losses = sum(r.failed for r in own), sum(r.waiting for r in own)
        lines.append([*line, *map(str, losses)])
    return table([*head, "failed", "no answer yet"], lines)


def ratios(results: Sequence[Result], ours: str, theirs: str) -> str:
    """Format the median over rounds of our ratio to another system under one load."""
    pairs = list(
        zip(
            [r for r in results if r.system == ours],
            [r for r in results if r.system == theirs],
            strict=False,  # a run may have been cut short
        )
    )
    if not pairs:
        return ""
    faster = [a.evaluations / b.evaluations for a, b in pairs if b.evaluations]
    parts = [f"{spread(faster)} times the evaluations/s"] if faster else []
    for kind in KINDS:
        tails = [
            (a.latencies[kind].p99, b.latencies[kind].p99)
            for a, b in pairs
            if kind in a.latencies and kind in b.latencies
        ]
        # If ours is only a lower bound, nothing follows for the ratio.
        slower = [(long / short, bound) for (short, unsure), (long, bound) in tails if not unsure]
        slower = [(times, bound) for times, bound in slower if not math.isnan(times)]
        if slower:
            parts.append(f"{kind} p99 {_times(slower)} times as short")
    return f"{ours} over {theirs}: {', '.join(parts)}"


def spread(values: Sequence[float]) -> str:
    """Format the median and, for several values, the range."""
    middle = _number(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({_number(min(values))} to {_number(max(values))})"


def _times(values: Sequence[Quantile]) -> str:
    """Format the median and range, with ">" if a value is only a lower bound."""
    known = [seconds for seconds, _ in values if not math.isnan(seconds)]
    if not known:
        return "none"
    return ("> " if any(waiting for _, waiting in values) else "") + spread(known)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
