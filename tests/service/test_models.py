"""The folder of models: what is served, what is kept beside it, what is set aside."""

from pathlib import Path

import torch

from diffusion.classifier import save as save_classifier
from service.models import load_folder
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
