"""The folder watch: what is new is loaded, what changes reloaded, what is gone unloaded."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffusion.checkpoint import save
from service.metrics import Metrics
from service.repository import Repository
from service.settings import Settings
from service.watch import Watcher
from tests.service.http.conftest import bit_patterns, gaussian_mixture

NAME = "gaussian-mixture"


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """Of a folder that is empty at first."""
    settings = Settings(models=tmp_path, device="cpu", batch_size=4, slots=8, watch=1.0)
    found = Repository(settings, Metrics())
    found.open()
    yield found
    assert found.engine is not None
    found.engine.stop()


def test_a_model_that_is_written_appears_changes_and_goes(
    repository: Repository, tmp_path: Path
) -> None:
    watcher = Watcher(repository)
    save(tmp_path / NAME / "model.safetensors", *gaussian_mixture())
    watcher.look()
    assert not repository.catalogue.served  # it may still be written
    watcher.look()
    assert list(repository.catalogue.served) == [NAME]
    assert repository.catalogue.default == NAME
    first = repository.catalogue.served[NAME]
    (tmp_path / NAME / "README.md").write_text("# New\n", encoding="utf-8")
    watcher.look()
    watcher.look()
    second = repository.catalogue.served[NAME]
    assert second.card == "# New\n"
    assert second.model is first.model
    save(tmp_path / "new", *bit_patterns())
    (tmp_path / "new").replace(tmp_path / NAME / "model.safetensors")
    watcher.look()
    watcher.look()
    third = repository.catalogue.served[NAME]
    assert third.checksum != first.checksum
    assert third.version == 1
    shutil.rmtree(tmp_path / NAME)
    watcher.look()
    assert list(repository.catalogue.served) == [NAME]  # it may come back, as when it is replaced
    watcher.look()
    assert not repository.catalogue.served


def test_a_file_is_left_alone_while_it_grows(repository: Repository, tmp_path: Path) -> None:
    save(tmp_path / "whole", *gaussian_mixture())
    whole = (tmp_path / "whole").read_bytes()
    watcher = Watcher(repository)
    (tmp_path / NAME).mkdir()
    for i in range(1, 6):
        (tmp_path / NAME / "model.safetensors").write_bytes(whole[: i * len(whole) // 5])
        watcher.look()
        assert not repository.catalogue.refused
    watcher.look()
    assert list(repository.catalogue.served) == [NAME]


def test_one_that_cannot_be_served_is_tried_once_until_it_changes(
    repository: Repository, tmp_path: Path
) -> None:
    watcher = Watcher(repository)
    path = tmp_path / NAME / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"nothing")
    for _ in range(4):
        watcher.look()
    (refused,) = repository.catalogue.refused
    assert refused.name == NAME
    failed = repository._metrics.loads.labels("failed")
    assert failed._value.get() == 1
    save(path, *gaussian_mixture())
    watcher.look()
    watcher.look()
    assert not repository.catalogue.refused
    assert list(repository.catalogue.served) == [NAME]
    path.write_bytes(b"nothing")
    watcher.look()
    watcher.look()
    assert list(repository.catalogue.served) == [NAME]
    assert len(repository.catalogue.refused) == 1


def test_a_folder_that_is_away_unloads_nothing(repository: Repository, tmp_path: Path) -> None:
    watcher = Watcher(repository)
    save(tmp_path / NAME / "model.safetensors", *gaussian_mixture())
    watcher.look()
    watcher.look()
    away = tmp_path.with_name("away")
    tmp_path.rename(away)
    for _ in range(3):
        watcher.look()
    assert list(repository.catalogue.served) == [NAME]
    away.rename(tmp_path)
    watcher.look()
    assert list(repository.catalogue.served) == [NAME]


def test_a_look_that_fails_is_not_the_last(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher, ended = Watcher(repository), threading.Event()
    looks: list[int] = []

    def look() -> None:
        looks.append(1)
        if len(looks) == 3:
            ended.set()
        raise OSError("no such disk")

    monkeypatch.setattr(watcher, "look", look)
    watcher.watch(0.001, ended)
    assert len(looks) == 3
