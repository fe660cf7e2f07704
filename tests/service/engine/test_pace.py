"""A job's pace: what is left over the rate of the last seconds."""

import pytest

from service.engine.scheduling.latency import Pace


def test_nothing_is_known_before_the_first_progress() -> None:
    pace = Pace(100, started=5.0)
    assert pace.seconds_left is None
    pace.observe(0, 7.0)
    assert pace.seconds_left is None


def test_a_steady_job_is_told_exactly() -> None:
    pace = Pace(100, started=5.0)
    for second in range(1, 21):
        pace.observe(4 * second, 5.0 + second)
        assert pace.seconds_left == pytest.approx(25 - second)
    pace.observe(100, 30.0)
    assert pace.seconds_left == 0


def test_between_ticks_the_estimate_stands() -> None:
    pace = Pace(100, started=0.0)
    pace.observe(10, 2.0)
    pace.observe(10, 3.9)
    assert pace.seconds_left == pytest.approx(18)
    pace.observe(20, 4.0)
    assert pace.seconds_left == pytest.approx(16)


def test_what_was_long_ago_is_forgotten() -> None:
    pace = Pace(10_000, started=0.0)
    pace.observe(1000, 1.0)
    for second in range(2, 62):  # others came, and a tenth of the pace is left
        pace.observe(1000 + 100 * (second - 1), float(second))
    assert pace.seconds_left == pytest.approx(3000 / 100, rel=0.05)
