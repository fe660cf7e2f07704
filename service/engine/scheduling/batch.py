"""What the scheduler knows of jobs, and the batches it makes of them: numbers, no tensors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import NamedTuple


class ModelVersion(NamedTuple):
    """A model as it was loaded: its name, and the number of times it had been loaded before."""

    model: str
    version: int = 0


class Lane(NamedTuple):
    """The key of the jobs that may share a batch: a model, and whether they are particle systems.

    Systems need other network calls than chains and terms, and so batches of their own. So does
    each version of a model, of which two are there while the older one's jobs end.
    """

    model: str
    systems: bool = False
    version: int = 0

    @property
    def model_version(self) -> ModelVersion:
        """Whose lane it is."""
        return ModelVersion(self.model, self.version)


class Load(NamedTuple):
    """What is left of a job.

    Attributes:
        network_rows: that it can use at once; of terms, any number up to `evaluations`.
        evaluations: network evaluations.
        parallel: whether its positions are independent (terms).
        step: of particle systems, the evaluations by one step of all of them.
    """

    network_rows: int
    evaluations: int
    parallel: bool
    step: int = 0

    def usable(self, room: int) -> int:
        """Network rows of a batch that it can use, of `room` there are."""
        return min(room, self.evaluations if self.parallel else self.network_rows)


Loads = Sequence[tuple[Load, int]]  # each with how many jobs there are of it


@dataclass(frozen=True)
class JobShape:
    """A job in numbers: all that admission, the forecast and the scheduler know of it.

    Args:
        lane: which jobs it may share a batch with.
        rows: how many chains, examples, or particle systems.
        positions: of each row: steps of a chain or a system, terms of an example.
        parallel: whether a row's positions are independent (an example's terms) or in sequence.
        width: network rows per row (a system's particles).
        costs: network evaluations of each system by every position but its last; of other rows
            every position takes one.
        last: network evaluations of each system by its last position.
    """

    lane: Lane
    rows: int
    positions: int
    parallel: bool = False
    width: int = 1
    costs: tuple[int, ...] = ()
    last: int = 1

    def __post_init__(self) -> None:
        if self.rows < 1 or self.positions < 1:
            raise ValueError(
                "a job has at least one row of one position, "
                f"came {self.rows} rows of {self.positions}"
            )

    @property
    def cost(self) -> int:
        """Network evaluations."""
        if not self.lane.systems:
            return self.rows * self.positions
        return (self.positions - 1) * sum(self.costs) + self.rows * self.last

    @property
    def load(self) -> Load:
        """All of it, none of which is done."""
        step = max(1, self.cost // self.positions) if self.lane.systems else 0
        return Load(self.rows * self.width, self.cost, self.parallel, step)


class Entry(NamedTuple):
    """A row in a batch: `position` of row `row` of job `key`, whose state is in `slot`."""

    key: int
    row: int
    slot: int
    position: int


def by_job(entries: Iterable[Entry]) -> list[tuple[int, list[Entry]]]:
    """Each job's key and entries, of entries sorted by job."""
    return [(key, list(group)) for key, group in groupby(entries, lambda entry: entry.key)]


@dataclass(frozen=True)
class Batch:
    """The rows of one turn of the device.

    An entry with position 0 is of a row that begins; `ends` are the entries after which a row is
    finished, to be read before the next batch.

    Attributes:
        lane: whose.
        chains: rows whose positions are in sequence: chains; in a lane of particle systems, the
            systems of one job.
        terms: rows whose positions are independent, in the same network call.
        ends: those that finish.
        shares: network evaluations of each job.
        num_steps: positions that each entry advances; more than one only without terms.
        width: network rows per entry (a system's particles).
        piece: of a single system, how many more of its particles this batch advances; the
            position is over with the last of them. None where every position is made whole.
        background: whether its jobs are those that wait while there are others.
    """

    lane: Lane
    chains: list[Entry]
    terms: list[Entry] = field(default_factory=list)
    ends: list[Entry] = field(default_factory=list)
    shares: Mapping[int, int] = field(default_factory=dict)
    num_steps: int = 1
    width: int = 1
    piece: int | None = None
    background: bool = False

    def __len__(self) -> int:
        return len(self.chains) + len(self.terms)

    def only(self, wanted: Callable[[int], bool]) -> "Batch":
        """The same without the entries of jobs that are not wanted; `shares` stay as they are."""
        chains, terms, ends = (
            [entry for entry in entries if wanted(entry.key)]
            for entries in (self.chains, self.terms, self.ends)
        )
        return replace(self, chains=chains, terms=terms, ends=ends)

    @property
    def entries(self) -> list[Entry]:
        """Chains and terms."""
        return [*self.chains, *self.terms]

    @property
    def network_rows(self) -> int:
        """How many rows its network calls have in all, at each step."""
        return len(self) * self.width if self.piece is None else self.piece

    @property
    def evaluations(self) -> int:
        """Network evaluations of all jobs."""
        return sum(self.shares.values())
