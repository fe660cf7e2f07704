"""When a job's batches ran, for traces: at most some tens of entries, however many batches."""

from dataclasses import dataclass
from typing import Final, final

MOST: Final = 64  # entries of a job


@final
@dataclass(frozen=True)
class BatchSpan:
    """One batch, or several in turn.

    Attributes:
        begun, ended: monotonic seconds.
        batches: how many.
        evaluations: the job's own network evaluations in them.
        rows: most rows of one, with those of other jobs.
    """

    begun: float
    ended: float
    batches: int
    evaluations: int
    rows: int

    def joined(self, other: "BatchSpan") -> "BatchSpan":
        """Both as one, from the beginning of this one to the end of the other."""
        return BatchSpan(
            self.begun,
            other.ended,
            self.batches + other.batches,
            self.evaluations + other.evaluations,
            max(self.rows, other.rows),
        )


@final
class BatchLog:
    """The batches of a job, in order. When there are too many, neighbours become one.

    So the whole time of a job is covered, at a resolution that follows its length.
    """

    def __init__(self) -> None:
        self._spans: list[BatchSpan] = []
        self._each = 1  # batches of an entry
        self._open: BatchSpan | None = None

    def add(self, span: BatchSpan) -> None:
        """Take in the next batch."""
        self._open = span if self._open is None else self._open.joined(span)
        if self._open.batches < self._each:
            return
        self._spans.append(self._open)
        self._open = None
        if len(self._spans) == MOST:
            pairs = zip(self._spans[::2], self._spans[1::2], strict=True)
            self._spans = [first.joined(second) for first, second in pairs]
            self._each *= 2

    @property
    def spans(self) -> list[BatchSpan]:
        """The entries."""
        return [*self._spans, *([] if self._open is None else [self._open])]
