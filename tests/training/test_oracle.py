"""The oracles are exact: their bound stays under their own density, and close to it."""

import math
from pathlib import Path

import pytest
import torch

from diffusion.checkpoint import load
from diffusion.likelihood.bound import bound
from training.export import oracle
from training.export.export import export

NAMES = ("gaussian-mixture", "bit-patterns")


@pytest.mark.parametrize("name", NAMES)
def test_the_bound_is_under_the_exact_density_and_near(name: str) -> None:
    config = oracle.load(name)
    model = oracle.build(config)
    dataset = oracle.dataset(config, model)
    rows = dataset.test[:60]
    found = bound(
        model,
        model.space.to_model(rows),
        seed=0,
        convention=model.space.default_convention,
        terms=120,
        batch=1024,
    )
    assert dataset.log_density is not None
    gap = dataset.log_density(rows) - found.bound
    error = float(gap.std()) / math.sqrt(len(rows))
    assert -4 * error < float(gap.mean()) < 0.1 + 4 * error


@pytest.mark.parametrize("name", NAMES)
def test_entropy_and_draws_agree(name: str) -> None:
    config = oracle.load(name)
    dataset = oracle.dataset(config, oracle.build(config))
    assert dataset.log_density is not None
    assert dataset.entropy is not None
    nats = -dataset.log_density(dataset.test)
    error = float(nats.std()) / math.sqrt(len(nats))
    assert abs(float(nats.mean()) - dataset.entropy[0]) < 4 * math.hypot(error, dataset.entropy[1])


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_oracle_says_the_same_as_its_configuration(name: str, tmp_path: Path) -> None:
    path = export(name, out=None, models=tmp_path, device=torch.device("cpu"), measure=False)
    model, metadata = load(path)
    config = oracle.load(name)
    exact = oracle.dataset(config, oracle.build(config))
    assert exact.log_density is not None
    again = oracle.dataset(config, model)
    assert again.log_density is not None
    rows = exact.test[:50]
    assert torch.equal(exact.log_density(rows), again.log_density(rows))
    assert metadata.training.steps == 0
    assert "closed form" in path.with_name("README.md").read_text()
