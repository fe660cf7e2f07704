"""The report holds what it says: bounds in closed form, an exact model's own between them."""

import csv
import math
from pathlib import Path

import pytest
import torch

from diffusion.checkpoint import read_metadata
from diffusion.model import DiffusionModel
from diffusion.networks import GaussianMixture
from diffusion.process import GaussianConfig
from diffusion.schedule import LogSnrSchedule
from diffusion.space import DataSpace
from training.cli import main
from training.evaluate.entropy import POINTS, files, measure


def of_one_gaussian(T: int) -> tuple[DiffusionModel, torch.Tensor]:
    """A model whose kernel is exact, in units of its own, and data of its own."""
    network = GaussianMixture.from_values(
        torch.ones(1), torch.tensor([[0.5]]).double(), torch.tensor([[[0.3]]]).double()
    )
    space = DataSpace(kind="vector", shape=(1,), shift=-3.0, scale=4.0)
    process = GaussianConfig(T=T, schedule=LogSnrSchedule(first=5.0, last=-4.0)).build()
    dice = torch.Generator().manual_seed(0)
    z = 0.5 + 0.3**0.5 * torch.randn(4000, 1, generator=dice)
    return DiffusionModel(process, network, space, "x_0", "moment").eval(), space.to_data(z)


@pytest.mark.parametrize("T", [2, 30, 300])
def test_entropies_are_exact_where_the_kernel_is(T: int) -> None:
    """1/2 log2(2 pi e V_{t-1} beta_t / V_t), V_t = alpha_bar_t V_0 + 1 - alpha_bar_t."""
    model, rows = of_one_gaussian(T)
    found = measure(model, rows)
    assert found.t.tolist() == sorted(set(found.t.tolist()))
    assert (int(found.t[0]), int(found.t[-1]), len(found.t)) == (2, T, min(POINTS, T - 1))
    at, beta = model.process.alpha_bar, model.process.beta[found.t]
    variance = 1 - 0.7 * at
    ratio = variance[found.t - 1] / variance[found.t]
    exact = 0.5 * (2 * math.pi * math.e * beta * ratio).log2()
    assert bool(((found.model - exact).abs() < 4 * found.standard_error + 1e-5).all())
    assert bool((found.lower < exact + 1e-9).all())
    assert bool((exact < found.upper + 1e-3).all())  # the upper one knows data, not the model
    assert bool((found.standard_error < 1e-5).all())


def test_one_step_has_no_report() -> None:
    model, rows = of_one_gaussian(1)
    with pytest.raises(ValueError, match="T = 1"):
        measure(model, rows)


def test_the_command_writes_table_plot_and_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = str(tmp_path)
    assert main(["export", "bit-patterns", "--models", models, "--no-evaluation"]) == 0
    path = tmp_path / "bit-patterns" / "model.safetensors"
    document, samples = read_metadata(path), path.with_name("samples.png").read_bytes()
    table, picture = files(path)
    assert not table.exists()
    assert "entropy.png" not in path.with_name("README.md").read_text()

    capsys.readouterr()
    assert main(["report", "bit-patterns", "--models", models]) == 0
    assert capsys.readouterr().out.split() == [str(table), str(picture)]
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "entropy.png" in path.with_name("README.md").read_text()
    assert read_metadata(path) == document
    assert path.with_name("samples.png").read_bytes() == samples
    with table.open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert list(rows[0]) == ["t", "lower", "model", "standard_error", "upper"]
    assert (rows[0]["t"], rows[-1]["t"]) == (2, document.process.T)
    for row in rows:  # an oracle's own: between the bounds, but for its error
        slack = 4 * row["standard_error"] + 1e-5
        assert row["lower"] - slack < row["model"] < row["upper"] + slack

    assert main(["export", "bit-patterns", "--models", models, "--no-evaluation"]) == 0
    assert not table.exists()
