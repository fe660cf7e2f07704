"""The Parzen score against closed forms, and samples that are drawn once."""

import json
import math
from pathlib import Path

import pytest
import torch

from diffusion.samplers import Ancestral, DPMSolver
from diffusion.space import DataSpace
from training.cli import main
from training.evaluate import parzen
from training.evaluate.parzen import log_density, run_folder, samples, score, to_unit
from training.export import oracle


def test_one_sample_is_a_gaussian() -> None:
    x, centre = torch.rand(7, 30), torch.rand(1, 30)
    found = log_density(x, centre, torch.tensor([0.2, 0.7], dtype=torch.float64))
    for column, sigma in enumerate((0.2, 0.7)):
        law = torch.distributions.Normal(centre.double(), sigma)
        expected = law.log_prob(x.double()).sum(1)
        torch.testing.assert_close(found[:, column], expected, rtol=1e-10, atol=1e-10)


def test_it_is_a_density() -> None:
    centres = torch.tensor([[0.1, 0.4], [0.5, 0.5], [0.9, 0.2]])
    axis = torch.linspace(-1.5, 2.5, 201, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = log_density(grid, centres, torch.tensor([0.1, 0.3])).exp()
    area = float(axis[1] - axis[0]) ** 2
    assert (density.sum(0) * area).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_many_samples_of_a_gaussian_give_the_widened_gaussian() -> None:
    # E over samples of p(x) is N(x; 0, s^2 + sigma^2), whatever their number.
    s, sigma, count = 0.3, 0.2, 40_000
    stream = torch.Generator().manual_seed(1)
    centres = s * torch.randn(count, 2, generator=stream, dtype=torch.float64)
    x = torch.tensor([[0.0, 0.0], [0.3, -0.2], [0.5, 0.5]], dtype=torch.float64)
    found = log_density(x, centres, torch.tensor([sigma]))[:, 0].exp()
    wide = torch.distributions.Normal(0.0, math.hypot(s, sigma))
    expected = wide.log_prob(x).sum(1).exp()
    each = torch.distributions.Normal(centres, sigma).log_prob(x[:, None]).sum(2).exp()
    error = each.std(1) / math.sqrt(count)
    assert float(((found - expected) / error).abs().max()) < 4


def test_near_a_sample_no_digit_is_lost() -> None:
    centre = torch.rand(1, 784, dtype=torch.float64)
    x = centre + 1e-6
    exact = -784 * (1e-12 / (2 * 1e-3**2) + math.log(1e-3 * math.sqrt(2 * math.pi)))
    found = log_density(x, centre, torch.tensor([1e-3], dtype=torch.float64))
    assert float(found[0, 0]) == pytest.approx(exact, rel=1e-10)


def test_the_score_finds_the_deviation_of_the_data_about_their_centres() -> None:
    sigma, dims = 0.25, 40
    stream = torch.Generator().manual_seed(2)

    def about(rows: int) -> torch.Tensor:
        return 0.5 + sigma * torch.randn(rows, dims, generator=stream, dtype=torch.float64)

    grid = tuple(10 ** (-1 + i / 20) for i in range(21))
    valid, test = about(800), about(900)
    found = score(torch.full((1, dims), 0.5), valid, test, bandwidths=grid)
    assert abs(math.log10(found.bandwidth / sigma)) <= 0.5 / 20 + 0.005
    entropy = 0.5 * dims * math.log(2 * math.pi * math.e * sigma**2)
    assert abs(found.nats + entropy) < 4 * found.error + 0.3  # the grid's step costs less than .3
    assert found.bits == pytest.approx(found.nats / math.log(2))
    assert found.error == pytest.approx(math.sqrt(dims / 2 / 900), rel=0.1)


def test_a_grid_that_ends_too_early_is_refused() -> None:
    x = torch.rand(20, 3)
    with pytest.raises(ValueError, match="wider"):
        score(torch.rand(5, 3), x, x, bandwidths=(0.001, 0.002, 0.003))


def test_data_are_brought_to_the_unit_interval() -> None:
    image = DataSpace(kind="image", shape=(1, 1, 2), shift=127.5, scale=128.0, levels=256)
    values = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    assert to_unit(image, values).tolist() == [[0.0, 1.0]]
    bits = DataSpace(kind="bits", shape=(2,))
    assert to_unit(bits, torch.tensor([[0.0, 1.0]])).tolist() == [[0.0, 1.0]]
    with pytest.raises(ValueError, match="real vectors"):
        to_unit(DataSpace(kind="vector", shape=(2,)), torch.zeros(1, 2))


def test_samples_are_kept_and_a_run_cut_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parzen, "BLOCK", 8)
    model = oracle.build(oracle.load("bit-patterns"))

    def drawn(count: int, place: str, seed: int = 0) -> torch.Tensor:
        folder = tmp_path / place
        return samples(model, count, sampler=Ancestral(steps=3), seed=seed, folder=folder)

    whole = drawn(20, "one")
    assert whole.shape == (20, *model.event)
    assert not torch.equal(whole[:8], whole[8:16])  # blocks are their own
    drawn(9, "two")
    (tmp_path / "two" / "00001.safetensors").unlink()  # as if it had been cut off there
    before = (tmp_path / "two" / "00000.safetensors").stat().st_mtime_ns
    assert torch.equal(drawn(20, "two"), whole)
    assert (tmp_path / "two" / "00000.safetensors").stat().st_mtime_ns == before
    assert not torch.equal(drawn(20, "three", seed=1), whole)


def test_means_of_chains_that_stop_are_no_bits(tmp_path: Path) -> None:
    model = oracle.build(oracle.load("bit-patterns"))
    sampler, stop = Ancestral(), model.T // 2
    x = samples(model, 3, sampler=sampler, seed=0, folder=tmp_path, stop=stop)
    assert x.shape == (3, *model.event)
    assert ((x > 0) & (x < 1)).any()


def test_samples_of_another_model_sampler_or_seed_are_kept_apart(tmp_path: Path) -> None:
    one = oracle.build(oracle.load("bit-patterns"))
    two = oracle.build(oracle.load("bit-patterns"))
    weights = next(two.network.buffers())
    weights.copy_(weights.roll(1))
    asked = [
        (one, DPMSolver(steps=3), 0),
        (two, DPMSolver(steps=3), 0),
        (one, DPMSolver(steps=4), 0),
        (one, DPMSolver(steps=3), 1),
    ]
    folders = {run_folder(tmp_path, *each) for each in asked}
    assert len(folders | {run_folder(tmp_path, *asked[0], stop=2)}) == 5


def test_the_command_scores_training_data(
    leaves_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["parzen", str(leaves_file), "--data", "--samples", "50", "--out", "scores"]
    assert main(words) == 0
    made = json.loads(Path("scores/data.json").read_text())
    assert made["command"].endswith(" --samples 50 --data")
    found = made["found"]
    assert (found["centres"], found["data"]) == (50, 80)
    assert f"{found['bits']:.1f} ± {found['bits_error']:.1f} bits" in capsys.readouterr().out


def test_the_command_draws_once_and_refuses_what_has_no_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = Path(__file__).parents[2] / "models"
    words = ["--models", str(shipped), "--samples", "40", "--steps", "2", "--out", str(tmp_path)]
    assert main(["parzen", "gaussian-mixture", *words]) == 2
    assert "real vectors" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # before anything was drawn
    # Bits that are drawn as often as they occur: narrower is better without end.
    assert main(["parzen", "bit-patterns", "--sampler", "ancestral", *words]) == 2
    assert "wider one" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("ancestral-*/*")] == ["00000.safetensors"]
