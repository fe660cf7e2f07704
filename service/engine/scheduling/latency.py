"""How long a batch takes, by its rows: the one clock, fed once a batch and read by every estimate.

    seconds(k): linear between the sizes that were measured; s_1 below them, s_b k / b beyond them

Sizes are first timed at start, so a server that has done nothing yet knows how fast it is. What is
measured later counts by its last 50 batches. A size that was slow once and has not been seen since
goes back to its best, by half in a minute: a slow moment does not refuse callers for good, and
asking again changes nothing.

When a job would be done if no other came, by the scheduler's policy and the measured batches.

Among chains and terms: in T ticks with room for M rows, a job with w evaluations left in r rows (of
chains: at most one evaluation a row and tick) is done, and each other job i has had what the equal
shares give it:

    T = max(n, (w + sum over i of min(w_i, w, r_i T)) / M),   n = w / r of chains, w / M of terms

that is: nobody gets more than the job itself while its share is full, more than is left of him, or
more than his rows can use. So what lies before a job in the queue is not what it waits for: long
jobs count no more than its own length. The other kind counts with what `term_share` gives it.

The time follows from the ticks' size: all jobs together fill E = min(M T, w + sum of
min(w_i, r_i T)) rows of those T ticks, so T ticks of E / T rows each (`latency`), and beside them
the other queues' ticks, in the proportion of the scheduler's clocks.

Among systems of particles, where each job has its own ticks and all the same evaluations, a job of
e_i evaluations a step has min(w_i, w) / min(M, e_i) ticks of that size until then.

Those who come later only add to it. Not thread-safe; no clock of its own.

How long a job still takes, by its own pace: seconds_left = (total - done) / rate.

The rate is that of the last seconds, so it holds whatever else the engine is doing by the end of
them. No clock here: the caller says when.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from service.engine.scheduling.batch import Queue

_FORGET = 0.98  # of a batch's weight at the next of its size: about the last 50 count
_SEED = 10.0  # batches that a timing at start counts as
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

    def seed(self, rows: int, seconds: float, now: float = 0.0) -> None:
        """A batch of so many rows was timed at start, seconds of one step."""
        size = self._sizes.setdefault(rows.bit_length(), _Size())
        size.add(_SEED, 1.0, rows, seconds, now)

    def measure(self, rows: int, seconds: float, steps: int, now: float) -> None:
        """A batch of so many rows by so many steps took so many seconds a step."""
        kept = _FORGET**steps
        size = self._sizes.setdefault(rows.bit_length(), _Size())
        size.add((1 - kept) / (1 - _FORGET), kept, rows, seconds, now)

    def seconds(self, rows: float, now: float) -> float:
        """A step of so many rows; 0 where nothing has been measured."""
        known = sorted((size.rows / size.weight, size.mean(now)) for size in self._sizes.values())
        if not known:
            return 0.0
        if rows <= known[0][0]:
            return known[0][1]
        for (a, at_a), (b, at_b) in itertools.pairwise(known):
            if rows <= b:
                return at_a + (at_b - at_a) * (rows - a) / (b - a)
        most, longest = known[-1]
        return longest * rows / most


class Load(NamedTuple):
    """What is left of a job: rows of the network that it can use at once, or, where these are
    independent (terms), as many as there are evaluations; and evaluations. Of systems also what one
    step of all of them takes.
    """

    rows: int
    evaluations: int
    parallel: bool
    step: int = 0

    def usable(self, room: int) -> int:
        """Rows of a tick that it can use, at most."""
        return min(room, self.evaluations if self.parallel else self.rows)


Loads = Sequence[tuple[Load, int]]  # each with how many jobs there are of it


class Span(NamedTuple):
    """So many ticks, of so many rows each on average."""

    ticks: float
    rows: float


@final
@dataclass(frozen=True)
class Shares:
    """The scheduler's policy within one model, as a flow.

    Args:
        batch_size: M, most rows of a tick.
        term_share: of a tick, kept for terms while chains could fill it.
    """

    batch_size: int
    term_share: float

    def until_done(self, job: Load, others: Loads) -> list[Span]:
        """The model's ticks until this job is done, `others` being those that are there now."""
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
            owed = sum(n * other.evaluations for other, n in apart)
            rivals.append((owed, min(usable, share * room)))
        least = own / job.usable(room)
        ticks = max(1.0, least, _crossing(own, rivals, room))
        taken = own + sum(
            n * min(other.evaluations, other.usable(room) * ticks) for other, n in others
        )
        return [Span(ticks, min(room, taken / ticks))]

    def until_empty(self, loads: Loads) -> list[Span]:
        """The model's ticks until all of these are done."""
        evaluations = sum(n * load.evaluations for load, n in loads)
        room = self.batch_size
        longest = max(load.evaluations / load.usable(room) for load, _ in loads)
        ticks = max(1.0, longest, evaluations / room)
        return [Span(ticks, evaluations / ticks)]

    def demand(self, loads: Loads) -> float:
        """How many ticks these jobs could fill now, at least one: the weight of its clock."""
        return _demand(loads, self.batch_size)


@final
@dataclass(frozen=True)
class Turns:
    """The scheduler's policy among the systems of a model, as a flow.

    Args:
        batch_size: M, most rows of a tick.
    """

    batch_size: int

    def until_done(self, job: Load, others: Loads) -> list[Span]:
        """Ticks until this job is done, `others` being those that are there, each with its own."""
        own = job.evaluations
        return self._spans([(job, own, 1), *((o, min(o.evaluations, own), n) for o, n in others)])

    def until_empty(self, loads: Loads) -> list[Span]:
        """Ticks until all of these are done."""
        return self._spans([(load, load.evaluations, n) for load, n in loads])

    def _spans(self, parts: Iterable[tuple[Load, int, int]]) -> list[Span]:
        """Each load's evaluations, of so many such jobs, at the size of its own ticks."""
        spans = []
        for load, evaluations, count in parts:
            rows = min(self.batch_size, load.step or load.rows)
            spans.append(Span(count * evaluations / rows, rows))
        return spans

    def demand(self, loads: Loads) -> float:
        """How many ticks these jobs could fill now, at least one: the weight of its clock."""
        return _demand(loads, self.batch_size)


def _demand(loads: Loads, room: int) -> float:
    return max(1.0, sum(n * load.usable(room) for load, n in loads) / room)


def _crossing(own: int, rivals: Iterable[tuple[float, float]], room: int) -> float:
    """The T > 0 with room T = own + sum of min(most, rate T); there is one, for the sum is concave.

    Args:
        own: evaluations of the job itself.
        rivals: (most, rate) of each other.
        room: rows of a tick.
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
    """The measured ticks of every queue, and what follows for a job that is about to come.

    Args:
        queues: their names.
        term_share: the scheduler's.
    """

    def __init__(self, queues: Iterable[Queue], term_share: float) -> None:
        self._term_share = term_share
        self._shares: dict[Queue, Shares | Turns] = {}
        # Chains alone advance several steps a tick, which beside terms they do not.
        self._times = {queue: (StepTimes(), StepTimes()) for queue in queues}
        for queue in self._times:
            self.limit(queue, 1)

    def limit(self, queue: Queue, rows: int) -> None:
        """From now on a tick of `queue` has at most so many rows."""
        self._shares[queue] = Turns(rows) if queue.systems else Shares(rows, self._term_share)

    def times(self, queue: Queue, *, terms: bool = False) -> StepTimes:
        """The clock of a queue's ticks: of those with terms, or of those without."""
        return self._times[queue][terms]

    def seconds(
        self, queue: Queue, job: Load, others: Mapping[Queue, Loads], now: float = 0.0
    ) -> float:
        """The time until the job is done; 0 where its queue's ticks were never measured.

        Args:
            queue: whose job it is.
            job: all of it.
            others: the jobs that are there now, by queue.
            now: monotonic seconds.
        """
        beside = others.get(queue, ())
        shares, all_of_it = self._shares[queue], [(job, 1), *beside]
        own = self._lasting(queue, shares.until_done(job, beside), all_of_it, now)
        total, demand = own, shares.demand(all_of_it)
        for name, loads in others.items():
            if name != queue and loads:
                needed = self._until_empty(name, loads, now)
                total += min(needed, own * self._shares[name].demand(loads) / demand)
        return total

    def until_empty(self, others: Mapping[Queue, Loads], now: float = 0.0) -> float:
        """The time until all of these jobs are done."""
        return sum(self._until_empty(name, loads, now) for name, loads in others.items() if loads)

    def _until_empty(self, queue: Queue, loads: Loads, now: float) -> float:
        return self._lasting(queue, self._shares[queue].until_empty(loads), loads, now)

    def _lasting(self, queue: Queue, spans: Iterable[Span], loads: Loads, now: float) -> float:
        times = self.times(queue, terms=any(load.parallel for load, _ in loads))
        return sum(span.ticks * times.seconds(span.rows, now) for span in spans)


_WINDOW = 10.0  # seconds after which what was measured has lost most of its weight


@final
class Pace:
    """A job's progress over time.

    Args:
        total: network evaluations it needs.
        started: when its first row was put through the network, seconds.
    """

    def __init__(self, total: int, started: float) -> None:
        self._total = total
        self._done = 0
        self._changed = started
        self._evaluations = self._seconds = 0.0

    def observe(self, done: int, now: float) -> None:
        """So many evaluations are done by now."""
        if done == self._done or now <= self._changed:
            return  # between ticks nothing is learnt
        passed = now - self._changed
        kept = math.exp(-passed / _WINDOW)
        self._evaluations = kept * self._evaluations + done - self._done
        self._seconds = kept * self._seconds + passed
        self._done, self._changed = done, now

    @property
    def seconds_left(self) -> float | None:
        """From when the last progress was seen; None until there was some."""
        if not self._evaluations:
            return None
        return (self._total - self._done) * self._seconds / self._evaluations
