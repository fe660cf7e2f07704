"""The artefact: what was saved is what is served."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion.checkpoint import (
    KEY,
    Evaluation,
    Metadata,
    load,
    read_metadata,
    rewrite,
    save,
)
from diffusion.distributions import Bernoulli, Normal
from diffusion.model import DiffusionModel
from diffusion.process import GaussianConfig
from diffusion.schedule import TableSchedule
from tests.diffusion.artefacts import KINDS, T, fresh, saved, small


@torch.no_grad()
def answers(model: DiffusionModel) -> list[Tensor]:
    """What it says at several steps and strides."""
    t, s = torch.tensor([1, 3, 7, T]), torch.tensor([0, 2, 1, 5])
    x_t = torch.randn(4, *model.event, generator=torch.Generator().manual_seed(2))
    if model.space.kind == "bits":
        x_t = (x_t > 0).float()
    found = model.predict(x_t, t)
    kernel = found.kernel(s)
    if isinstance(kernel, Normal):
        return [found.x_0, kernel.mean, kernel.var]
    assert isinstance(kernel, Bernoulli)
    return [found.x_0, kernel.logits]


@pytest.mark.parametrize(
    "metadata", KINDS, ids=lambda m: f"{m.network.kind}-{m.process.kind}-{m.variance}"
)
def test_an_artefact_survives_its_round_trip(metadata: Metadata, tmp_path: Path) -> None:
    model, path = fresh(metadata), tmp_path / "some-model" / "model.safetensors"
    save(path, model, metadata)
    again, document = load(path)
    assert document == metadata == read_metadata(path)
    for found, wanted in zip(answers(again), answers(model), strict=True):
        assert torch.equal(found, wanted)
        assert bool(wanted.any())
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    assert path.stat().st_mode & 0o777 == 0o644
    first = path.read_bytes()
    save(path, again, document)
    assert path.read_bytes() == first


def test_a_learned_table_is_a_tensor_of_the_artefact(tmp_path: Path) -> None:
    metadata = small(process=GaussianConfig(T=T, schedule=TableSchedule()))
    model, path = fresh(metadata), tmp_path / "model.safetensors"
    model.process.beta[1:] = torch.linspace(0.01, 0.6, T)
    model.process.refresh()
    save(path, model, metadata)
    again, _ = load(path)
    assert torch.equal(again.process.beta, model.process.beta)
    assert torch.equal(again.process.alpha_bar, model.process.alpha_bar)
    assert again.process.beta.dtype == torch.float64


def test_weights_in_half_precision_are_served_in_single(tmp_path: Path) -> None:
    path = saved(tmp_path)
    tensors = load_file(path)
    halves = {n: t if n == "process.beta" else t.bfloat16() for n, t in tensors.items()}
    save_file(halves, path, {KEY: small().model_dump_json()})
    model, _ = load(path)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, halves[name].float())


def test_a_new_document_keeps_the_tensors(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = load_file(path)
    measured = Evaluation(
        convention="density", split="test", count=100, bound=-1.5, standard_error=0.1,
        bits=-2.2, bits_per_dim=1.1, null=-3.0,
    )  # fmt: skip
    rewrite(path, small().model_copy(update={"evaluation": (measured,)}))
    assert read_metadata(path).evaluation == (measured,)
    after = load_file(path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def evaluation_of(quantiles: Sequence[float] | None) -> Evaluation:
    return Evaluation(
        convention="density", split="test", count=5000, bound=0.0, standard_error=0.1, bits=0.0,
        bits_per_dim=0.0, null=-3.0, quantiles=None if quantiles is None else tuple(quantiles),
    )  # fmt: skip


def test_how_rare_an_example_is_is_the_share_of_data_with_a_larger_bound() -> None:
    """To a percentile, which is as far as the quantiles know it."""
    dice = torch.Generator().manual_seed(0)
    bounds = torch.randn(5000, generator=dice, dtype=torch.float64)
    found = evaluation_of(bounds.quantile(torch.linspace(0, 1, 101).double()).tolist())
    assert found.quantiles is not None
    assert found.rarer_than(found.quantiles[50]) == pytest.approx(0.5)
    for x in torch.linspace(-4, 4, 161).tolist():
        rare = found.rarer_than(x)
        assert rare is not None
        assert abs(rare - float((bounds > x).double().mean())) <= 0.01
    between = found.rarer_than((found.quantiles[30] + found.quantiles[31]) / 2)
    assert between == pytest.approx(1 - 0.305)
    assert found.rarer_than(-math.inf) == found.rarer_than(float(bounds.min()) - 1) == 1
    assert found.rarer_than(float(bounds.max())) == found.rarer_than(math.inf) == 0
    assert evaluation_of(None).rarer_than(0.0) is None


def test_of_equal_bounds_none_is_larger() -> None:
    """Half of the data at 1, half at 2: none is above 2, half are above 1."""
    found = evaluation_of([1.0] * 50 + [2.0] * 51)
    assert found.rarer_than(2.0) == 0
    assert found.rarer_than(1.0) == pytest.approx(0.5, abs=0.011)
    assert found.rarer_than(0.5) == 1


@pytest.mark.parametrize("quantiles", [[0.0] * 100, [1.0] + [0.0] * 100])
def test_quantiles_are_percentiles_in_order(quantiles: list[float]) -> None:
    with pytest.raises(ValidationError, match="quantiles"):
        evaluation_of(quantiles)


def test_a_failed_save_leaves_the_artefact_as_it_was(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()
    model = fresh(small())
    model.register_buffer("shared", model.process.beta)  # safetensors refuses shared memory
    with pytest.raises(RuntimeError):
        save(path, model, small())
    assert path.read_bytes() == before
