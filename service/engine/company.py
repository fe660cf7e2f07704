"""What is left of the jobs that are there: of those that wait by kinds, of those that run singly.

Jobs that wait have all of it left, so that equal requests are one kind with a number: thirty
thousand of them cost a forecast as much as one. Those that run differ, and are no more than there
are slots. Not thread-safe: the intake holds its lock.
"""

from collections import Counter
from collections.abc import Iterable
from typing import final

from service.engine.forecast import Load, Loads
from service.engine.record import Record, whole_of
from service.engine.scheduling.batch import Queue


@final
class Company:
    """The jobs that have been accepted and have not ended.

    Args:
        queues: whose they are.
    """

    def __init__(self, queues: Iterable[Queue]) -> None:
        self._waiting: dict[Queue, Counter[Load]] = {name: Counter() for name in queues}
        self._running: dict[Queue, dict[int, Record]] = {name: {} for name in self._waiting}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, record: Record) -> None:
        """A job waits."""
        self._waiting[record.job.queue][whole_of(record.job)] += 1
        self._size += 1

    def start(self, record: Record) -> None:
        """It runs."""
        self._forget(record)
        self._running[record.job.queue][record.key] = record

    def remove(self, record: Record) -> None:
        """It has ended, whether it ran or not."""
        if self._running[record.job.queue].pop(record.key, None) is None:
            self._forget(record)
        self._size -= 1

    def loads(self) -> dict[Queue, Loads]:
        """What is left of all, by queue; only of queues that have some."""
        found: dict[Queue, Loads] = {}
        for name, waiting in self._waiting.items():
            running = [(record.left, 1) for record in self._running[name].values()]
            if waiting or running:
                found[name] = [*waiting.items(), *running]
        return found

    def _forget(self, record: Record) -> None:
        waiting, load = self._waiting[record.job.queue], whole_of(record.job)
        waiting[load] -= 1
        if not waiting[load]:
            del waiting[load]
