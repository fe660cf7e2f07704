"""What the scheduler knows of jobs, and what it says of ticks: numbers, no tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Queue(NamedTuple):
    """Jobs that may meet in a tick: a model's chains and terms; or its systems of particles, which
    need other calls of the network and so ticks of their own.
    """

    model: str
    systems: bool = False


@dataclass(frozen=True)
class Work:
    """What the scheduler knows of a job.

    Args:
        key: names the job; unique among those not finished.
        queue: whom it may share a tick with.
        rows: how many chains, data, or systems.
        units: of each row: steps of a chain or a system, terms of a datum.
        parallel: whether a row's units are independent (a datum's terms) or in sequence.
        width: rows of the network that each row is: the particles of a system.
        costs: network evaluations of each system by every unit but its last; of other rows every
            unit takes one.
        last: network evaluations of each system by its last unit.
    """

    key: int
    queue: Queue
    rows: int
    units: int
    parallel: bool
    width: int = 1
    costs: tuple[int, ...] = ()
    last: int = 1

    def __post_init__(self) -> None:
        if self.rows < 1 or self.units < 1:
            raise ValueError(
                f"a job has at least one row of one unit, came {self.rows} rows of {self.units}"
            )


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
