"""Classifiers are fitted to p(y | x_t), measured, and described."""

import math

import pytest
import torch

from diffusion.artefact import Provenance
from diffusion.classifier import Classifier, ClassifierMetadata
from diffusion.networks.encoder import Encoder, EncoderConfig
from diffusion.process import GaussianConfig
from diffusion.schedule import LogSnrSchedule
from training.classifier import (
    ClassifierConfig,
    calibration_error,
    card,
    fit,
    measure,
)
from training.config import OptimiserConfig
from training.data.dataset import eight_bit

CONFIG = ClassifierConfig.model_validate(
    {
        "name": "greys",
        "title": "dark and bright",
        "data": {"kind": "mnist"},
        "process": GaussianConfig(T=20, schedule=LogSnrSchedule(first=8.0, last=-6.0)),
        "network": EncoderConfig(labels=2, channels=(8,), norm_groups=1, patch=2),
        "optimiser": OptimiserConfig(lr=1e-2, warmup=5),
        "average": {"decay": 0.9},
        "batch": 64,
        "steps": 150,
    }
)
#: Two pictures of 4 x 4 pixels, all of one grey each, at 1/4 below and above the middle.
GREYS = torch.tensor([95.5, 159.5]).view(2, 1, 1, 1).expand(2, 1, 4, 4)


def fresh() -> Classifier:
    torch.manual_seed(0)
    return Classifier(
        CONFIG.process.build(), Encoder(CONFIG.network), eight_bit((1, 4, 4)), ("dark", "bright")
    )


@pytest.fixture(scope="module")
def fitted() -> Classifier:
    y = torch.arange(256) % 2
    return fit(CONFIG, GREYS[y], y, fresh())


def test_a_fit_finds_the_exact_probability_at_every_t(fitted: Classifier) -> None:
    """p(bright | x_t) = sigmoid(2 sqrt(alpha_bar) / (1 - alpha_bar) sum_i x_i / 4): the mean
    difference on x_t of the process itself."""
    y, process = torch.arange(400) % 2, fitted.process
    x_0 = fitted.space.to_model(GREYS[y])
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1))
    for t in (0, 3, 8, 12, 16, 20):
        at = process.alpha_bar[t]
        x_t = (at.sqrt() * x_0 + (1 - at).sqrt() * noise).float()
        exact = (at.sqrt() / (1 - at) * x_t.double().flatten(1).sum(1) / 2).sigmoid()
        found = fitted.log_prob(x_t, torch.full_like(y, t)).exp()[:, 1]
        exact = torch.where(torch.tensor(t == 0), y.double(), exact)
        assert float((found - exact).abs().mean()) < 0.1, t


def test_a_fit_is_a_function_of_its_seed() -> None:
    y = torch.arange(64) % 2
    short = CONFIG.model_copy(update={"steps": 3})
    one, again = (fit(short, GREYS[y], y, fresh()) for _ in range(2))
    other = short.model_copy(update={"seed": 1})
    another = fit(other, GREYS[y], y, fresh())
    pairs = zip(one.parameters(), again.parameters(), another.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not torch.equal(one.network.readout.weight, another.network.readout.weight)  # type: ignore[union-attr]


def test_measurements_say_what_noise_costs(fitted: Classifier) -> None:
    y = torch.arange(300) % 2
    found = measure(fitted, GREYS[y], y, "test")
    assert [one.t for one in found] == [0, *range(2, 21, 2)]
    assert found[0].accuracy == 1
    assert found[0].log_snr is None
    assert found[0].standard_error == 0
    assert found[-1].accuracy < 0.8
    assert found[-1].standard_error == pytest.approx(
        math.sqrt(found[-1].accuracy * (1 - found[-1].accuracy) / 300)
    )
    assert found[-1].cross_entropy > found[0].cross_entropy
    metadata = ClassifierMetadata(
        name="greys",
        process=CONFIG.process,
        network=CONFIG.network,
        space=fitted.space,
        labels=fitted.labels,
        training=Provenance(data="greys", steps=150, config=CONFIG.model_dump(mode="json")),
        evaluation=found,
    )
    text = card(metadata, fitted)
    assert "python -m training classifier greys" in text
    assert "| 0 | no noise | test | 300 | 100.00% ± 0.00% |" in text


def test_calibration_errors_are_gaps_between_confidence_and_accuracy() -> None:
    right = torch.tensor([1.0, 1, 1, 0, 1, 0, 0, 1])
    sure = torch.tensor([0.75] * 4 + [0.5] * 4)
    assert calibration_error(sure, right) == pytest.approx(0)
    assert calibration_error(torch.full((8,), 0.9), right) == pytest.approx(0.9 - 5 / 8)
    assert calibration_error(torch.ones(4), torch.zeros(4)) == 1
