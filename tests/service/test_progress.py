"""Seconds left of a running job, by its own rate."""

import pytest

from service.api.streams import JobProgress


def test_nothing_is_known_before_the_first_progress() -> None:
    progress = JobProgress(100, started=5.0)
    assert progress.seconds_left is None
    progress.observe(0, 7.0)
    assert progress.seconds_left is None


def test_a_steady_job_is_told_exactly() -> None:
    progress = JobProgress(100, started=5.0)
    for second in range(1, 21):
        progress.observe(4 * second, 5.0 + second)
        assert progress.seconds_left == pytest.approx(25 - second)
    progress.observe(100, 30.0)
    assert progress.seconds_left == 0


def test_between_batches_the_estimate_stands() -> None:
    progress = JobProgress(100, started=0.0)
    progress.observe(10, 2.0)
    progress.observe(10, 3.9)
    assert progress.seconds_left == pytest.approx(18)
    progress.observe(20, 4.0)
    assert progress.seconds_left == pytest.approx(16)


def test_what_was_long_ago_is_forgotten() -> None:
    progress = JobProgress(10_000, started=0.0)
    progress.observe(1000, 1.0)
    for second in range(2, 62):  # others came, and a tenth of the pace is left
        progress.observe(1000 + 100 * (second - 1), float(second))
    assert progress.seconds_left == pytest.approx(3000 / 100, rel=0.05)
