"""Accepted work."""

from service.engine.admission import Ledger


def test_what_is_owed_bounds_what_is_accepted() -> None:
    ledger = Ledger(limit=100)
    ledger.accept(60)
    ledger.accept(30)
    assert ledger.owed == 90
    assert ledger.excess(10) == 0
    assert ledger.excess(25) == 15
    ledger.settle(60)
    assert ledger.owed == 30


def test_what_is_held_bounds_what_is_let_in() -> None:
    ledger = Ledger(limit=1, room=100)
    ledger.hold(80)
    assert (ledger.overflow(20), ledger.overflow(30)) == (0, 10)
    ledger.release(80)
    assert ledger.held == 0
