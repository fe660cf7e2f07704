"""Capacity: what is asked for, or found by trying."""

import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from diffusion.model import DiffusionModel
from service.engine.admission import REQUEST_OVERHEAD
from service.engine.device import warmup as room
from service.engine.device.warmup import Capacity, finish, survey
from service.settings import Settings


def slow_beyond(full: int) -> Callable[[DiffusionModel, int], float]:
    """A machine that takes as long for `full` rows as for one, and for more in proportion."""

    def seconds(_: DiffusionModel, rows: int) -> float:
        return 0.001 * max(1.0, rows / full)

    return seconds


@pytest.mark.parametrize("full", [1, 4, 32, 4096])
def test_rows_enough_that_a_calls_fixed_time_is_small(
    full: int, gaussian: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_seconds", slow_beyond(full))
    found = finish(survey(gaussian, 0, Settings()))
    assert found.batch_size == min(4096, 8 * full if full > 1 else 1)
    assert found.slots >= 2 * found.batch_size


def test_no_batch_is_tried_that_would_keep_others_waiting(
    gaussian: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(room, "_seconds", lambda _, rows: calls.append(rows) or 0.02 * rows)
    finish(survey(gaussian, 0, Settings()))
    assert calls == [1, 2, 4, 8] * room._TRIES + [1] * room._ALONE


def test_memory_that_runs_out_ends_the_search(
    gaussian: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(_: DiffusionModel, rows: int) -> float:
        if rows > 16:
            raise torch.OutOfMemoryError("no room")
        return 0.001

    monkeypatch.setattr(room, "_seconds", seconds)
    assert finish(survey(gaussian, 0, Settings())).batch_size == 16


def test_what_is_asked_for_is_not_tried(
    gaussian: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And deterministic answers do not hang on a measurement."""
    monkeypatch.setattr(room, "_seconds", lambda *_: pytest.fail("it was tried"))
    assert finish(survey(gaussian, 5, Settings(slots=9))) == Capacity(5, 9)
    assert finish(survey(gaussian, 0, Settings(deterministic=True))).batch_size == 32


def test_slots_stay_within_memory(gaussian: DiffusionModel, bits: DiffusionModel) -> None:
    for model in (gaussian, bits):
        for batch_size in (1, 32, 4096):
            found = finish(survey(model, batch_size, Settings()))
            held = found.slots * 4 * (4 * math.prod(model.event) + model.T)
            assert found.slots == 2 * batch_size or held <= 2**28


def test_there_is_a_slot_for_every_request_that_can_be_there(gaussian: DiffusionModel) -> None:
    """A job without one waits until others end, however short it is."""
    settings = Settings()
    requests = settings.max_queue_bytes // REQUEST_OVERHEAD
    assert finish(survey(gaussian, 32, settings)).slots >= requests


def test_the_search_finds_the_same_size_on_a_noisy_machine(
    gaussian: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a factor of 2 over many starts, each try up to three times as slow as it is."""
    dice = random.Random(0)

    def seconds(_: DiffusionModel, rows: int) -> float:
        slow = 1.0 + 2.0 * dice.random() ** 3
        return (0.002 + 0.0005 * rows) * slow

    monkeypatch.setattr(room, "_seconds", seconds)
    found = Counter(finish(survey(gaussian, 0, Settings())).batch_size for _ in range(50))
    assert max(found) <= 2 * min(found), found
