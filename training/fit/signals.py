"""SIGINT and SIGTERM, heeded after the step in hand."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

INTERRUPTED = 130


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list instead of dying; a second one gets its usual way."""
    caught: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def catch(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        restore()

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, catch)
    except ValueError:  # not the main thread, which owns the signals
        before.clear()
    try:
        yield caught
    finally:
        restore()


def interrupted() -> int:
    """Say that the work is saved; the exit status of a command that a signal ended."""
    print("interrupted and saved; the same command goes on", file=sys.stderr)
    return INTERRUPTED
