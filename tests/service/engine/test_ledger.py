"""Accepted work and the time it takes."""

import pytest

from service.engine.ledger import Ledger
from service.engine.ticks import Queue

A, B = Queue("a"), Queue("b")


def test_what_is_owed_bounds_what_is_accepted() -> None:
    ledger = Ledger((A, B), limit=100)
    ledger.accept(A, 60)
    ledger.accept(B, 30)
    assert ledger.owed == 90
    assert ledger.excess(10) == 0
    assert ledger.excess(25) == 15
    ledger.settle(A, 60)
    assert ledger.owed == 30


def test_waiting_time_follows_the_measured_rates() -> None:
    ledger = Ledger((A, B), limit=1000)
    for _ in range(500):
        ledger.measure(A, 10, 0.1)  # 100 a second
        ledger.measure(B, 10, 1.0)  # 10 a second
    assert ledger.seconds_until(10) == 0
    ledger.accept(A, 100)
    assert ledger.seconds_until(100) == pytest.approx(1.0)
    assert ledger.seconds_until(50) == pytest.approx(0.5)
    ledger.accept(B, 100)
    assert ledger.seconds_until(200) == pytest.approx(11.0)


def test_the_rate_follows_what_changes() -> None:
    ledger = Ledger([A], limit=1000)
    ledger.accept(A, 100)
    for seconds in (1.0, 0.1):
        for _ in range(400):
            ledger.measure(A, 10, seconds)
    assert ledger.seconds_until(100) == pytest.approx(1.0, rel=0.01)
