"""What the scheduler knows of jobs, and what it says of ticks: numbers, no tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Queue(NamedTuple):
    """Jobs that may meet in a tick: a model's chains and terms; or its systems of particles, which
    need other calls of the network and so ticks of their own.
    """

    model: str
    systems: bool = False


class Load(NamedTuple):
    """What is left of a job.

    Attributes:
        rows: of the network, that it can use at once; of terms, any number up to `evaluations`.
        evaluations: network evaluations.
        parallel: whether its positions are independent (terms).
        step: of particle systems, the evaluations of one step of all of them.
    """

    rows: int
    evaluations: int
    parallel: bool
    step: int = 0

    def usable(self, room: int) -> int:
        """Rows of a batch that it can use, at most."""
        return min(room, self.evaluations if self.parallel else self.rows)


Loads = Sequence[tuple[Load, int]]  # each with how many jobs there are of it


@dataclass(frozen=True)
class JobShape:
    """A job in numbers: all that admission, the forecast and the scheduler know of it.

    Args:
        queue: whom it may share a batch with.
        rows: how many chains, examples, or particle systems.
        units: of each row: steps of a chain or a system, terms of an example.
        parallel: whether a row's units are independent (an example's terms) or in sequence.
        width: rows of the network that each row is: the particles of a system.
        costs: network evaluations of each system by every unit but its last; of other rows every
            unit takes one.
        last: network evaluations of each system by its last unit.
    """

    queue: Queue
    rows: int
    units: int
    parallel: bool = False
    width: int = 1
    costs: tuple[int, ...] = ()
    last: int = 1

    def __post_init__(self) -> None:
        if self.rows < 1 or self.units < 1:
            raise ValueError(
                f"a job has at least one row of one unit, came {self.rows} rows of {self.units}"
            )

    @property
    def cost(self) -> int:
        """Network evaluations."""
        if not self.queue.systems:
            return self.rows * self.units
        return (self.units - 1) * sum(self.costs) + self.rows * self.last

    @property
    def load(self) -> Load:
        """All of it, none of which is done."""
        step = max(1, self.cost // self.units) if self.queue.systems else 0
        return Load(self.rows * self.width, self.cost, self.parallel, step)


class Entry(NamedTuple):
    """One row of a tick: unit `unit` of row `row` of job `key`, whose state is in `slot`."""

    key: int
    row: int
    slot: int
    unit: int


@dataclass(frozen=True)
class Tick:
    """The rows of one turn of the device.

    An entry with unit 0 is of a row that begins; `ends` are the entries after which a row is
    finished, to be read before the next tick.

    Attributes:
        queue: whose.
        chains: rows whose units are in sequence: chains, or the systems of one job.
        terms: rows whose units are independent, in the same network call.
        ends: those that finish.
        shares: network evaluations of each job.
        length: units that each entry advances; more than one only without terms.
        width: rows of the network that each entry is.
        piece: of a single system, how many more of its particles are looked at in this tick; the
            unit is over with the last of them. None where every unit is made whole.
    """

    queue: Queue
    chains: list[Entry]
    terms: list[Entry]
    ends: list[Entry]
    shares: Mapping[int, int]
    length: int = 1
    width: int = 1
    piece: int | None = None

    def __len__(self) -> int:
        return len(self.chains) + len(self.terms)

    @property
    def rows(self) -> int:
        """Rows of the network."""
        return len(self) * self.width if self.piece is None else self.piece

    @property
    def evaluations(self) -> int:
        """Network evaluations of all jobs."""
        return sum(self.shares.values())
