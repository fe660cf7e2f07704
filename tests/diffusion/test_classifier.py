"""Classifiers: an artefact of their own kind, and what they may be joined to."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from diffusion import checkpoint
from diffusion.artefact import ArtefactError, Provenance, kind_of
from diffusion.classifier import Classifier, ClassifierMetadata, Reading, load, same_process, save
from diffusion.networks.encoder import EncoderConfig
from diffusion.process import BinomialConfig, GaussianConfig
from diffusion.schedule import LogSnrSchedule
from diffusion.space import DataSpace
from tests.diffusion.artefacts import fresh, small

PROCESS = GaussianConfig(T=12, schedule=LogSnrSchedule(first=6.0, last=-4.0))
SPACE = DataSpace(kind="image", shape=(1, 6, 10), shift=127.5, scale=128.0, levels=256)


def described(**changes: object) -> ClassifierMetadata:
    parts: dict[str, object] = {
        "name": "some-classifier",
        "process": PROCESS,
        "network": EncoderConfig(labels=3, channels=(8, 16), blocks=2, patch=2),
        "space": SPACE,
        "labels": ("cat", "dog", "crow"),
        "training": Provenance(data="animals", steps=3, config={"batch": 4}),
        "evaluation": (
            Reading(
                split="test",
                t=0,
                log_snr=None,
                count=9,
                accuracy=0.5,
                standard_error=0.1,
                cross_entropy=0.7,
                calibration_error=0.01,
            ),
        ),
    }
    return ClassifierMetadata.model_validate(parts | changes)


def made(metadata: ClassifierMetadata) -> Classifier:
    torch.manual_seed(0)
    return metadata.build().eval()


def test_a_classifier_survives_its_round_trip(tmp_path: Path) -> None:
    metadata, path = described(), tmp_path / "model.safetensors"
    classifier = made(metadata)
    save(path, classifier, metadata)
    again, document = load(path)
    assert document == metadata
    assert kind_of(path) == "classifier"
    assert again.labels == ("cat", "dog", "crow")
    x_t, t = torch.randn(4, 1, 6, 10), torch.tensor([0, 1, 7, 12])
    assert torch.equal(again.log_prob(x_t, t), classifier.log_prob(x_t, t))
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_it_gives_probabilities_that_know_the_time() -> None:
    classifier, x_t = made(described()), torch.randn(1, 1, 6, 10).expand(13, -1, -1, -1)
    log_p = classifier.log_prob(x_t, torch.arange(13))
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(13).double())
    assert len(log_p.unique(dim=0)) == 13
    one = classifier.log_prob(x_t, torch.tensor([5]))
    torch.testing.assert_close(one, log_p[5:6].expand(13, -1))


def test_a_row_is_the_same_alone_and_in_company() -> None:
    classifier, x_t, t = made(described()), torch.randn(5, 1, 6, 10), torch.tensor([0, 3, 5, 9, 12])
    together = classifier.log_prob(x_t, t)
    alone = torch.cat([classifier.log_prob(x_t[i : i + 1], t[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_a_model_is_no_classifier_nor_the_other_way_round(tmp_path: Path) -> None:
    path, other = tmp_path / "reader.safetensors", tmp_path / "model.safetensors"
    save(path, made(described()), described())
    with pytest.raises(ArtefactError, match="of kind 'classifier', wanted is one of kind 'model'"):
        checkpoint.load(path)
    checkpoint.save(other, fresh(small()), small())
    assert kind_of(other) == "model"
    with pytest.raises(ArtefactError, match="of kind 'model', wanted is one of kind 'classifier'"):
        load(other)


def test_an_artefact_from_before_kinds_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    document = json.loads(small().model_dump_json())
    del document["kind"]

    class Older(checkpoint.Metadata):
        def model_dump_json(self, **_: object) -> str:  # type: ignore[override]
            return json.dumps(document)

    checkpoint.save(path, fresh(small()), Older.model_validate(small().model_dump()))
    assert kind_of(path) == "model"
    assert checkpoint.load(path)[1] == small()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": ("cat", "dog")}, "3 labels needs as many names"),
        ({"labels": ("cat", "dog", "dog")}, "each its own"),
        ({"space": DataSpace(kind="image", shape=(3, 6, 10))}, r"takes images \[1,"),
        ({"space": DataSpace(kind="image", shape=(1, 5, 10))}, "multiples of 2"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        described(**changes)


def test_widths_fit_their_groups() -> None:
    with pytest.raises(ValidationError, match=r"channels \[12\] cannot be divided"):
        EncoderConfig(labels=3, channels=(8, 12))


def test_it_reads_under_its_own_process_only() -> None:
    classifier = made(described())
    classifier.check(PROCESS.build(), SPACE)
    other = GaussianConfig(T=12, schedule=LogSnrSchedule(first=6.0, last=-5.0)).build()
    with pytest.raises(ValueError, match=r"another process .*6, -4 at its ends.*6, -5 at its ends"):
        classifier.check(other, SPACE)
    with pytest.raises(ValueError, match="reads data of space"):
        classifier.check(PROCESS.build(), DataSpace(kind="image", shape=(1, 6, 10)))
    fair, uneven = (BinomialConfig(T=12, base_rate=rate).build() for rate in (0.5, 0.2))
    same_process(fair, fair, "it runs")
    with pytest.raises(ValueError, match=r"base rate 0\.5.*base rate 0\.2"):
        same_process(fair, uneven, "it runs")
