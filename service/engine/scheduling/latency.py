"""How long batches take, and so when a job will be done if no other comes.

`StepTimes` holds the measured seconds of a step by batch size. The engine feeds it once per batch;
forecasts and the choice of steps per batch read it.

    seconds(k): linear between the sizes that were measured; s_1 below them, s_b k / b beyond them

Sizes are first timed at start, so a new server knows how fast it is. What is measured later counts
by its last 50 batches. A size that was slow and has not been seen since goes back to its best time,
half of the way in a minute, so that callers are not refused for good after one slow moment.

`Forecast` follows the scheduler's policy as a flow. Among chains and terms: in T batches with room
for M rows, a job with w evaluations left in r rows (of chains: at most one evaluation per row and
batch) is done, and each other job i has had what the equal shares give it:

    T = max(n, (w + sum over i of min(w_i, w, r_i T)) / M),   n = w / r of chains, w / M of terms

that is: no other job gets more than this one, more than it has left, or more than its rows can use.
So long jobs that are already queued delay a job by no more than its own length. The other kind
counts with what `term_share` gives it.

The time follows from the batches' size: all jobs together fill E = min(M T, w + sum of
min(w_i, r_i T)) rows of those T batches, so T batches of E / T rows each, and beside them the other
lanes' batches, in the proportion of the scheduler's virtual times.

Among particle systems, where each job has batches of its own and all get the same evaluations, a
job of e_i evaluations per step has min(w_i, w) / min(M, e_i) batches of that size until then.

Jobs that come later only add to it.
"""

import itertools
import math
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, final

from service.engine.scheduling.batch import Batch, Lane, Load, Loads

_FORGET = 0.98  # of a batch's weight at the next of its size: about the last 50 count
_SEED = 10.0  # batches that a timing at start counts as
_PATIENCE = 100  # full network calls that go well before more rows are tried
_HALF_LIFE = 60.0  # seconds


@dataclass(slots=True)
class _Size:
    """Batches of about one size: sums with weights, and the least mean there has been."""

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    best: float = math.inf
    seen: float = 0.0

    def add(self, weight: float, kept: float, rows: int, seconds: float, now: float) -> None:
        self.weight = kept * self.weight + weight
        self.rows = kept * self.rows + weight * rows
        self.seconds = kept * self.seconds + weight * seconds
        self.best, self.seen = min(self.best, self.seconds / self.weight), now

    def mean(self, now: float) -> float:
        age = max(0.0, now - self.seen) / _HALF_LIFE
        return self.best + (self.seconds / self.weight - self.best) * math.exp2(-age)


@final
class StepTimes:
    """The batches of one kind of one model. Sizes are told apart by powers of two."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}
        self._lock = threading.Lock()  # the engine's thread measures, those that submit read

    def seed(self, rows: int, seconds: float, now: float = 0.0) -> None:
        """Take in `seconds` of one step of `rows` rows, timed at start."""
        self._add(_SEED, 1.0, rows, seconds, now)

    def measure(self, rows: int, seconds: float, steps: int, now: float) -> None:
        """Take in a batch of `steps` steps, each of `rows` rows and `seconds` seconds."""
        kept = _FORGET**steps
        self._add((1 - kept) / (1 - _FORGET), kept, rows, seconds, now)

    def seconds(self, rows: float, now: float) -> float:
        """Seconds of a step of `rows` rows; 0 where nothing has been measured."""
        with self._lock:
            sizes = self._sizes.values()
            known = sorted((size.rows / size.weight, size.mean(now)) for size in sizes)
        if not known:
            return 0.0
        if rows <= known[0][0]:
            return known[0][1]
        for (a, at_a), (b, at_b) in itertools.pairwise(known):
            if rows <= b:
                return at_a + (at_b - at_a) * (rows - a) / (b - a)
        most, longest = known[-1]
        return longest * rows / most

    def _add(self, weight: float, kept: float, rows: int, seconds: float, now: float) -> None:
        with self._lock:
            size = self._sizes.setdefault(rows.bit_length(), _Size())
            size.add(weight, kept, rows, seconds, now)


@final
class Throughput:
    """How many rows the batches of one lane may have now, and how long they take.

    Attributes:
        batch_size: most rows of a batch; fewer after memory ran out.
    """

    def __init__(self, batch_size: int = 1) -> None:
        self.allow(batch_size)
        # Chains alone advance several steps in a batch, which beside terms they do not.
        self._times = StepTimes(), StepTimes()

    def allow(self, rows: int) -> None:
        """Let a batch have up to `rows` rows, while memory lasts."""
        self.batch_size = self._most = rows
        self._good = 0  # network calls of full batches since memory ran out

    def shrink(self, rows: int) -> None:
        """Limit batches to `rows` rows, as memory ran out."""
        self.batch_size, self._good = rows, 0

    def grow(self, rows: int, calls: int) -> bool:
        """Count `calls` good network calls of `rows` rows; returns whether batches have grown."""
        if self.batch_size == self._most or rows < self.batch_size:
            return False
        self._good += calls
        if self._good < _PATIENCE:
            return False
        self.batch_size, self._good = min(2 * self.batch_size, self._most), 0
        return True

    def seed(self, rows: int, seconds: float, *, terms: bool = False) -> None:
        """Take in `seconds` of a step of `rows` rows, with terms or without, timed at start."""
        self._times[terms].seed(rows, seconds, time.monotonic())

    def measure(self, batch: Batch, seconds: float) -> None:
        """Take in how long a batch took."""
        steps = batch.num_steps
        times = self._times[bool(batch.terms)]
        times.measure(batch.evaluations // steps, seconds / steps, steps, time.monotonic())

    def seconds(self, rows: float, *, terms: bool = False) -> float:
        """Seconds of a step of `rows` rows, with terms or without; 0 where none was measured."""
        return self._times[terms].seconds(rows, time.monotonic())

    @property
    def evaluation(self) -> float:
        """Seconds of one network evaluation, as one of a full batch; 0 before any was measured."""
        return self.seconds(self.batch_size) / self.batch_size


class Span(NamedTuple):
    """A number of batches, and the rows each has on average."""

    batches: float
    rows: float


@final
@dataclass(frozen=True)
class RowPolicy:
    """The scheduler's policy within one model, as a flow.

    Args:
        batch_size: M, most rows of a batch.
        term_share: of a batch, kept for terms while chains could fill it.
    """

    batch_size: int
    term_share: float

    def until_done(self, job: Load, others: Loads) -> list[Span]:
        """The model's batches until this job is done, `others` being those that are there now."""
        room, own = self.batch_size, job.evaluations
        rivals: list[tuple[float, float]] = [
            (n * min(other.evaluations, own), n * (room if other.parallel else other.usable(room)))
            for other, n in others
            if other.parallel == job.parallel
        ]
        apart = [(other, n) for other, n in others if other.parallel != job.parallel]
        if apart:
            share = 1 - self.term_share if job.parallel else self.term_share
            usable = sum(n * other.usable(room) for other, n in apart)
            pending = sum(n * other.evaluations for other, n in apart)
            rivals.append((pending, min(usable, share * room)))
        least = own / job.usable(room)
        batches = max(1.0, least, _crossing(own, rivals, room))
        taken = own + sum(
            n * min(other.evaluations, other.usable(room) * batches) for other, n in others
        )
        return [Span(batches, min(room, taken / batches))]

    def until_empty(self, loads: Loads) -> list[Span]:
        """The model's batches until all of these are done."""
        evaluations = sum(n * load.evaluations for load, n in loads)
        room = self.batch_size
        longest = max(load.evaluations / load.usable(room) for load, _ in loads)
        batches = max(1.0, longest, evaluations / room)
        return [Span(batches, evaluations / batches)]


@final
@dataclass(frozen=True)
class GangPolicy:
    """The scheduler's policy among the systems of a model, as a flow.

    Args:
        batch_size: M, most rows of a batch.
    """

    batch_size: int

    def until_done(self, job: Load, others: Loads) -> list[Span]:
        """Batches until this job is done; each of `others` has its own."""
        own = job.evaluations
        return self._spans([(job, own, 1), *((o, min(o.evaluations, own), n) for o, n in others)])

    def until_empty(self, loads: Loads) -> list[Span]:
        """Batches until all of these are done."""
        return self._spans([(load, load.evaluations, n) for load, n in loads])

    def _spans(self, parts: Iterable[tuple[Load, int, int]]) -> list[Span]:
        """Batches of each (load, evaluations, jobs of it), at the size of its own batches."""
        spans = []
        for load, evaluations, count in parts:
            rows = min(self.batch_size, load.step or load.network_rows)
            spans.append(Span(count * evaluations / rows, rows))
        return spans


def demand(loads: Loads, room: int) -> float:
    """How many batches these jobs could fill now, at least one: the scheduler's weight."""
    return max(1.0, sum(n * load.usable(room) for load, n in loads) / room)


def _crossing(own: int, rivals: Iterable[tuple[float, float]], room: int) -> float:
    """The T > 0 with room T = own + sum of min(most, rate T); there is one, for the sum is concave.

    Args:
        own: evaluations of the job itself.
        rivals: (most, rate) of each other.
        room: rows of a batch.
    """
    ordered = sorted(rivals, key=lambda rival: rival[0] / rival[1])
    done, rate = float(own), room - sum(rate for _, rate in ordered)
    for most, its_rate in ordered:
        # Up to T = most / its_rate this one and those behind it take their full rates.
        if rate > 0 and done / rate <= most / its_rate:
            break
        done += most
        rate += its_rate
    return done / rate


@final
class Forecast:
    """What follows from the measured batches for a job that is about to come. Not thread-safe.

    Args:
        throughput: of every lane.
        term_share: the scheduler's.
    """

    def __init__(self, throughput: Mapping[Lane, Throughput], term_share: float) -> None:
        self._throughput, self._term_share = throughput, term_share

    def seconds(self, lane: Lane, job: Load, others: Mapping[Lane, Loads]) -> float:
        """The time until the job is done; 0 where its lane's batches were never measured.

        Args:
            lane: whose job it is.
            job: all of it.
            others: the jobs that are there now, by lane.
        """
        same_lane = others.get(lane, ())
        loads = [(job, 1), *same_lane]
        own = self._lasting(lane, self._policy(lane).until_done(job, same_lane), loads)
        total, own_demand = own, self._demand(lane, loads)
        for name, its_loads in others.items():
            if name != lane and its_loads:
                share = own * self._demand(name, its_loads) / own_demand
                total += min(self._until_empty(name, its_loads), share)
        return total

    def until_empty(self, others: Mapping[Lane, Loads]) -> float:
        """The time until all of these jobs are done."""
        return sum(self._until_empty(name, loads) for name, loads in others.items() if loads)

    def _policy(self, lane: Lane) -> "RowPolicy | GangPolicy":
        rows = self._throughput[lane].batch_size
        return GangPolicy(rows) if lane.systems else RowPolicy(rows, self._term_share)

    def _demand(self, lane: Lane, loads: Loads) -> float:
        return demand(loads, self._throughput[lane].batch_size)

    def _until_empty(self, lane: Lane, loads: Loads) -> float:
        return self._lasting(lane, self._policy(lane).until_empty(loads), loads)

    def _lasting(self, lane: Lane, spans: Iterable[Span], loads: Loads) -> float:
        throughput, terms = self._throughput[lane], any(load.parallel for load, _ in loads)
        return sum(span.batches * throughput.seconds(span.rows, terms=terms) for span in spans)
