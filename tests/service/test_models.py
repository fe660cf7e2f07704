"""The folder of models: what is served, what is kept beside it, what is set aside."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diffusion.classifier import save as save_classifier
from service.catalogue import load_folder
from tests.diffusion.artefacts import saved
from tests.diffusion.test_classifier import described, made


def test_a_classifier_is_kept_beside_the_models_and_is_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "some-model").mkdir()
    saved(tmp_path / "some-model")
    save_classifier(tmp_path / "reader" / "model.safetensors", made(described()), described())
    found = load_folder(tmp_path, "cpu")
    assert list(found.served) == ["some-model"]
    assert found.default == "some-model"
    assert found.refused == ()
    assert list(found.classifiers) == ["reader"]
    assert found.classifiers["reader"].labels == ("cat", "dog", "crow")


def test_a_spoilt_classifier_is_set_aside_with_the_reason(tmp_path: Path) -> None:
    classifier = made(described())
    with torch.no_grad():
        classifier.network.readout.weight.fill_(torch.nan)  # type: ignore[union-attr, operator]
    save_classifier(tmp_path / "reader" / "model.safetensors", classifier, described())
    found = load_folder(tmp_path, "cpu")
    assert not found.classifiers
    (refused,) = found.refused
    assert refused.file == "reader/model.safetensors"
    assert "NaN" in refused.reason


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(str(path))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (os.mkfifo, "pipe"),
        (_socket, "socket"),
        (Path.mkdir, "folder"),
        (lambda path: path.symlink_to("/dev/zero"), "device"),
        (lambda path: path.symlink_to("nothing"), "link to a file that is not there"),
        (lambda path: path.symlink_to(path.name), "cannot be read"),
        (lambda path: path.touch(0), "cannot be read"),
        (Path.touch, "not a readable"),
    ],
)
def test_what_is_no_file_is_set_aside_with_the_reason(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], object],
    why: str,
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    for name in ("good", "bad"):
        Path(name).mkdir()
    saved(Path("good"))
    make(Path("bad/model.safetensors"))
    if why == "cannot be read" and os.access("bad/model.safetensors", os.R_OK):
        pytest.skip("root may read everything")
    found = load_folder(Path(), "cpu")
    assert list(found.served) == ["good"]
    (refused,) = found.refused
    assert refused.file == "bad/model.safetensors"
    assert why in refused.reason


def test_a_folder_that_is_a_link_to_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    (refused,) = load_folder(tmp_path, "cpu").refused
    assert refused.file == "gone/model.safetensors"


@pytest.mark.parametrize("name", ["README.md", "examples.safetensors"])
def test_what_lies_beside_a_model_keeps_it_from_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "good").mkdir()
    saved(tmp_path / "good")
    os.mkfifo(tmp_path / "good" / name)
    served = load_folder(tmp_path, "cpu").served["good"]
    assert served.card is None
    assert len(served.examples) == 0
