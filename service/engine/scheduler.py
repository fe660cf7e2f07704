"""Which rows share the next network call: share(job) = min(what it can use, batch_size / jobs).

Every job is so many rows of so many units of work, a unit being one network evaluation. There are
two kinds of row: of a *chain* the units are steps and follow each other, one a tick at most; of a
*datum* they are terms of a bound, independent of each other, any number a tick. A row holds a slot
from its first unit to its last. A *tick* is of one model.

The policy, all of it:

- Jobs of a kind take turns, a row a turn, until the tick is full, so each has an equal share of it
  and whoever cannot use all of its share leaves it to the others. A chain job of r rows by n steps
  among J jobs, in ticks with room for M rows of their kind, is done in n (r J / M + 1) + 1 ticks,
  however long the others are; of terms, whose order is free, in (r n + 1) J / M + 1.
- A job advances its oldest rows first and starts a new row only where its share exceeds the rows
  it has running, so slots are held by rows that move. The i-th oldest job never had more than an
  i-th of the batch, so J jobs hold no more than the sum over i of ceil(M / i) slots.
- A quarter of the slots is kept for first rows: a job that has a row gets no other out of it. So
  while there are no more jobs of a kind than that quarter has slots, a newcomer finds one at once
  and is in a tick within ceil(J / M) ticks, whatever runs. Beyond that, newcomers get the slots
  that rows leave, in the order they came, before any job gets a further row: the first of them
  within n ceil(slots / M) ticks, n the steps of the longest row.
- Chains go first and terms fill the batch. While chains alone could fill it, `term_share` of it is
  kept for terms.
- Without terms beside them a tick's chains advance several steps in it, for about `BURST_SECONDS`:
  small networks take less time than a tick's bookkeeping, and whoever waits has his turn no later
  than that.
- Models take turns in proportion: each tick's seconds, divided by how many batches the model's jobs
  could fill, advance the model's clock, and the earliest clock goes next. So tiny models are not
  held up by the long ticks of large ones.

Pure Python: no tensors, no time, no threads. The caller says how long a tick took.
"""

import math
from dataclasses import dataclass

from service.engine.lanes import Entry, Lane, Progress, Work

BURST_SECONDS = 0.02


@dataclass(frozen=True)
class Tick:
    """The rows of one network call.

    An entry with unit 0 is of a row that was just given its slot; `ends` are the entries after
    which a row is finished, and its slot to be read before the next tick. `length` is how many
    units each entry advances: more than one only where there are chains alone.
    """

    model: str
    chains: list[Entry]
    terms: list[Entry]
    ends: list[Entry]
    length: int = 1

    def __len__(self) -> int:
        return len(self.chains) + len(self.terms)

    @property
    def evaluations(self) -> int:
        """Rows put through the network."""
        return len(self) * self.length


class _Model:
    """The two lanes of a model, and its clock of seconds used per batch asked for."""

    def __init__(self, slots: int, capacity: int, pace: float) -> None:
        self.chains, self.terms = Lane(slots), Lane(slots)
        self.capacity = capacity
        self.clock = 0.0
        self.pace, self.paced = pace, capacity  # seconds a unit of the latest tick, and its rows
        self.term_credit = 0.0

    @property
    def active(self) -> bool:
        return bool(self.chains.rotation or self.terms.rotation)

    def lane(self, work: Work) -> Lane:
        return self.terms if work.parallel else self.chains

    def demand(self) -> float:
        """How many batches its jobs could fill now, at least one: a tick is never less."""
        jobs = (*self.chains.rotation, *self.terms.rotation)
        return max(1.0, sum(job.usable(self.capacity) for job in jobs) / self.capacity)

    def seconds(self, rows: int) -> float:
        """The most that a unit of so many rows takes, as far as the latest tick tells."""
        return self.pace * max(1.0, rows / self.paced)


class Scheduler:
    """Jobs in, ticks out.

    Args:
        term_share: share of a batch kept for terms while chains could fill it.
    """

    def __init__(self, term_share: float = 0.125) -> None:
        self._models: dict[str, _Model] = {}
        self._jobs: dict[int, Progress] = {}
        self._term_share = term_share
        self._now = 0.0
        self._tick = 0

    def __len__(self) -> int:
        """How many jobs are not finished."""
        return len(self._jobs)

    @property
    def rows_running(self) -> int:
        """Rows that hold a slot."""
        return sum(len(job.running) for job in self._jobs.values())

    @property
    def rows_waiting(self) -> int:
        """Rows that have not started."""
        return sum(job.work.rows - job.waiting for job in self._jobs.values())

    def add(self, work: Work) -> None:
        """Take in a job, behind those that came before."""
        model = self._models[work.model]
        if not model.active:
            # Time spent idle earns nothing: it joins the others where they are now.
            model.clock = max(model.clock, self._now)
        job = self._jobs[work.key] = Progress(work)
        model.lane(work).rotation.append(job)

    def remove(self, key: int) -> int:
        """Drop a job (finished or not, known or not) and free its slots.

        Returns:
            The units it had left.
        """
        job = self._jobs.pop(key, None)
        if job is None:
            return 0
        self._models[job.work.model].lane(job.work).drop(job)
        return job.remaining

    def held(self, key: int) -> tuple[int, dict[int, int]]:
        """How many rows of a job have started, and the slots, by row, of those yet to end."""
        job = self._jobs[key]
        return job.waiting, {row.row: row.slot for row in job.running}

    def next(self) -> Tick | None:
        """The rows of the next tick, or None when nothing is left to do. Call `retire` after it."""
        name = min(
            (name for name, model in self._models.items() if model.active),
            key=lambda name: self._models[name].clock,
            default=None,
        )
        if name is None:
            return None
        model = self._models[name]
        self._now = model.clock
        self._tick += 1
        chains, terms = self._fill(model)
        length = self._burst(model)
        units = {key: self._jobs[key].work.units for key in {e.key for e in (*chains, *terms)}}
        ends = [entry for entry in (*chains, *terms) if entry.unit + length == units[entry.key]]
        return Tick(name, chains, terms, ends, length)

    def _burst(self, model: _Model) -> int:
        """How many units the entries just chosen advance; their rows are moved on accordingly."""
        if model.terms.rotation:
            return 1
        taken = [job for job in model.chains.rotation if job.tick == self._tick]
        rows = [(job, row) for job in taken for row in job.running[: job.taken]]
        left = min(job.work.units - row.unit for job, row in rows)
        more = max(0, min(left, int(BURST_SECONDS / model.seconds(len(rows)))))
        for _, row in rows:
            row.unit += more
        return 1 + more

    def retire(self, tick: Tick, seconds: float = 1.0) -> None:
        """The tick is done, in so many seconds: slots of rows that ended are free again."""
        model = self._models[tick.model]
        model.clock += seconds / model.demand()
        model.pace, model.paced = max(seconds, 1e-9) / tick.length, len(tick)
        for key in {entry.key for entry in tick.ends}:
            job = self._jobs.get(key)
            if job is None:  # removed while the tick ran
                continue
            model.lane(job.work).settle(job)
            if not job.running and job.waiting == job.work.rows:
                self.remove(key)

    def serve(self, model: str, batch_size: int, slots: int, seconds: float = math.inf) -> None:
        """Take in jobs of `model`, with this room of its own.

        Args:
            model: its name.
            batch_size: most rows of a tick.
            slots: most chains, and most data, that hold a slot at once.
            seconds: what a tick takes, as far as is known: the first may be a burst then.
        """
        self._models[model] = _Model(slots, batch_size, seconds)

    def limit(self, model: str, rows: int) -> None:
        """From now on a tick of `model` has at most `rows` rows."""
        self._models[model].capacity = max(1, rows)

    def _fill(self, model: _Model) -> tuple[list[Entry], list[Entry]]:
        room = model.capacity
        kept = 0
        if model.chains.rotation and model.terms.rotation:
            # A share below one row adds up over ticks, so it holds for batches of any size.
            model.term_credit += self._term_share * room
            kept = int(model.term_credit)
            model.term_credit -= kept
        chains = model.chains.take(room - kept, self._tick)
        terms = model.terms.take(room - len(chains), self._tick)
        chains += model.chains.take(room - len(chains) - len(terms), self._tick)
        return chains, terms
