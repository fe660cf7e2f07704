"""What the container allows, and what goes back to the system."""

import threading
from pathlib import Path

import pytest
import torch

from service import memory
from service.errors import NoDeviceMemory
from service.memory import (
    DeviceMemory,
    container_cpus,
    container_memory,
    fit,
    give_back_when_idle,
)
from service.settings import Settings

GIB = 2**30


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the control groups; the process's own is two levels below."""
    own = tmp_path / "own"
    own.write_text("0::/outer/inner\n")
    monkeypatch.setattr(memory, "_OWN", own)
    (tmp_path / "root" / "outer" / "inner").mkdir(parents=True)
    return tmp_path / "root"


def test_without_limits_settings_stay(group: Path) -> None:
    (group / "memory.max").write_text("max\n")
    (group / "cpu.max").write_text("max 100000\n")
    assert container_memory(group) is container_cpus(group) is None
    assert fit(Settings(), group) == Settings()


@pytest.mark.parametrize("place", ["", "outer", "outer/inner"])
def test_the_limit_of_any_group_above_holds(group: Path, place: str) -> None:
    (group / place / "memory.max").write_text(f"{2 * GIB}\n")
    (group / place / "cpu.max").write_text("50000 100000\n")
    found = fit(Settings(), group)
    assert (found.max_queue_bytes, found.threads) == (GIB // 2, 1)
    chosen = fit(Settings(max_queue_bytes=GIB, threads=7), group)
    assert (chosen.max_queue_bytes, chosen.threads) == (GIB, 7)


def test_the_older_kind_of_groups(group: Path) -> None:
    (group / "memory").mkdir()
    (group / "memory" / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    assert container_memory(group) == GIB
    (group / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert container_memory(group) is None


def test_a_body_and_what_is_made_of_it_always_fit(group: Path) -> None:
    (group / "memory.max").write_text(f"{GIB // 16}\n")
    found = fit(Settings(), group)
    assert found.max_queue_bytes == 2 * found.max_body_bytes


def test_memory_goes_back_once_after_work_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, given = threading.Event(), list[int]()
    told = iter([0, None, 3, 3, 3, 4, 5, 5, 5, 5])
    at = [-1]

    def work() -> int | None:
        at[0] += 1
        found = next(told, "over")
        if isinstance(found, str):
            ended.set()
            return None
        return found

    monkeypatch.setattr(memory, "_IDLE", 0.0)
    monkeypatch.setattr(memory, "give_back", lambda: given.append(at[0]))
    give_back_when_idle(work, ended)
    assert given == [3, 7]


def test_a_models_workspace_counts_where_the_device_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA the most that its warm-up took is held against the limit, not what is left of it."""
    peak = [0]
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 600)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: peak[0])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: peak.__setitem__(0, 600))
    device = DeviceMemory("cuda:0", 1000)
    peak[0] = 2000  # of another time
    device.begin()
    peak[0] = 1000
    device.check_peak("m")
    peak[0] = 1001
    with pytest.raises(NoDeviceMemory, match="1001 bytes of the device's memory are used of 1000"):
        device.check_peak("m")


def test_the_limit_is_what_there_is() -> None:
    device = DeviceMemory("cpu")
    assert 0 < device.used < device.limit
    assert DeviceMemory("cpu", 7).limit == 7
