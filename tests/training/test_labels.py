"""The figure of labels: each label its own posterior, and what they say together."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion.classifier import Classifier
from diffusion.model import DiffusionModel
from diffusion.networks import GaussianMixture, UNetConfig, build
from diffusion.networks.encoder import Encoder, EncoderConfig
from diffusion.observation import Observation
from diffusion.process import GaussianConfig
from diffusion.schedule import LogSnrSchedule
from tests.diffusion.models import gaussian
from tests.diffusion.posterior.test_factors import Components
from training.data.dataset import eight_bit
from training.study.labels import by_label, figure, make, read_off


def test_labels_share_out_what_was_seen() -> None:
    """Components whose classifier is exact: p(k | y) as the mixture's own posterior has it, within
    a tenth by one system of 64 particles, and samples that are read as what was asked."""
    means = torch.tensor([[1.1, -0.6], [-0.9, 0.7], [0.5, 1.2]]).double()
    covariances = (torch.eye(2) * 0.1).double().expand(3, 2, 2)
    mixture = GaussianMixture.from_values(torch.tensor([0.3, 0.5, 0.2]), means, covariances)
    model = gaussian(mixture, 40)
    reader = Classifier(model.process, Components(mixture), model.space, ("a", "b", "c"))
    seen = Observation.of_reals(torch.tensor([[0.6, 0.0]]), torch.tensor([[True, False]]), 0.5)
    found = by_label(model, reader, seen, 32, particles=64, steps=40)
    exact, _ = mixture.posterior(torch.eye(2)[:1], torch.tensor([0.6]), torch.tensor([0.25]))
    assert found.samples.shape == (3, 32, 2)
    assert float((found.probabilities - exact.weights).abs().max()) < 0.1
    assert bool((found.read > 0.8).all())
    off = read_off(model, reader, seen, 200, particles=4, steps=40)
    assert float((off - exact.weights).abs().max()) < 0.15


def test_the_picture_is_drawn_and_what_was_seen_stays(tmp_path: Path) -> None:
    """By networks that know nothing."""
    process = GaussianConfig(T=6, schedule=LogSnrSchedule(first=6.0, last=-4.0))
    network = build(UNetConfig(channels=(8,), blocks=1))
    space = eight_bit((1, 4, 4))
    model = DiffusionModel(process.build(), network, space, "v", "lower").eval()
    encoder = Encoder(EncoderConfig(labels=3, channels=(8,)))
    reader = Classifier(process.build(), encoder, space, ("x", "y", "z")).eval()
    reader.requires_grad_(False)
    digit, path = torch.arange(16.0).view(1, 1, 4, 4), tmp_path / "labels.png"
    few = {"samples": 2, "particles": 2, "steps": 3}
    free, half, off = figure(model, reader, digit, path, noise=0.0, **few)
    assert free.samples.shape == half.samples.shape == (3, 2, 1, 4, 4)
    assert bool((half.samples[..., :2, :] == digit[:, :, :2]).all())
    assert float(off.sum()) == pytest.approx(1)
    with Image.open(path) as picture:
        assert picture.size[0] > 500


def test_without_its_models_there_is_no_figure(tmp_path: Path) -> None:
    assert make(tmp_path, tmp_path / "figures") == []
