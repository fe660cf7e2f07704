"""When a job would be done if no other came, by the scheduler's policy and the measured ticks.

In T ticks with room for M rows, a job with w evaluations left in r rows (of chains: at most one
evaluation a row and tick) is done, and each other job i has had what the equal shares give it:

    T = max(n, (w + sum over i of min(w_i, w, r_i T)) / M),   n = w / r of chains, w / M of terms

that is: nobody gets more than the job itself while its share is full, more than is left of him, or
more than his rows can use. So what lies before a job in the queue is not what it waits for: long
jobs count no more than its own length. The other kind counts with what `term_share` gives it.

The time follows from the ticks' size: all jobs together fill E = min(M T, w + sum of
min(w_i, r_i T)) rows of those T ticks, so T ticks of E / T rows each (`speed`), and beside them the
other models' ticks, in the proportion of the scheduler's clocks.

All of it is a bound from below, up to the roundings of a tick: those who come later, rows that wait
for a slot and answers that are long to write only add to it. Not thread-safe; no clock of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from service.engine.speed import Speed


class Load(NamedTuple):
    """What is left of a job: rows, evaluations, and whether these are independent (terms)."""

    rows: int
    evaluations: int
    parallel: bool

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

    def until_done(self, job: Load, others: Loads) -> Span:
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
        return Span(ticks, min(room, taken / ticks))

    def demand(self, loads: Loads) -> float:
        """How many ticks these jobs could fill now, at least one: the weight of its clock."""
        return max(
            1.0, sum(n * load.usable(self.batch_size) for load, n in loads) / self.batch_size
        )


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
    """The measured ticks of every model, and what follows for a job that is about to come.

    Args:
        models: their names.
        term_share: the scheduler's.
    """

    def __init__(self, models: Iterable[str], term_share: float) -> None:
        self._term_share = term_share
        self._shares: dict[str, Shares] = {}
        self._speeds = {name: Speed() for name in models}
        for name in self._speeds:
            self.limit(name, 1)

    def limit(self, model: str, rows: int) -> None:
        """From now on a tick of `model` has at most so many rows."""
        self._shares[model] = Shares(rows, self._term_share)

    def measure(self, model: str, rows: int, seconds: float, calls: int = 1) -> None:
        """A tick of so many rows took so many seconds; or each of several in a burst."""
        self._speeds[model].measure(rows, seconds, calls)

    def doubt(self, model: str) -> None:
        """A job was refused and none of its model is there: so nothing would be measured again."""
        self._speeds[model].doubt()

    def seconds(self, model: str, job: Load, others: Mapping[str, Loads]) -> float:
        """The least time until the job is done; 0 where its model's ticks were never measured.

        Args:
            model: whose job it is.
            job: all of it.
            others: the jobs that are there now, by model.
        """
        beside = others.get(model, ())
        shares = self._shares[model]
        span = shares.until_done(job, beside)
        own = span.ticks * self._speeds[model].seconds(span.rows)
        total, demand = own, shares.demand([(job, 1), *beside])
        for name, loads in others.items():
            if name != model and loads:
                owed = sum(n * load.evaluations for load, n in loads)
                room = self._shares[name].batch_size
                needed = owed / room * self._speeds[name].seconds(room)
                total += min(needed, own * self._shares[name].demand(loads) / demand)
        return total
