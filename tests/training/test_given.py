"""`noneq train TABLE --given x`: what a simulator's data say of its parameters."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.checkpoint import load
from diffusion.families import Given
from diffusion.observation import Observation
from diffusion.posterior import Learned, sample_posterior
from training import user_data as own
from training.cli import main
from training.config import ConfigError
from training.fit import checkpoint as state
from training.fit.loop import Fit, RunOptions
from training.fit.parallel import Ranks

NOISE = 0.5


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """2,000 rows of theta ~ N(3, 2^2) and x = theta + 2 NOISE n, with x first."""
    monkeypatch.chdir(tmp_path)
    dice = np.random.default_rng(0)
    theta = dice.normal(3, 2, 2000)
    x = theta + 2 * NOISE * dice.normal(size=2000)
    path = Path("joint.csv")
    np.savetxt(path, np.stack([x, theta], 1), delimiter=",", header="x,theta", comments="")
    return path


def test_the_learned_posterior_is_the_conditional_of_a_joint_gaussian(table: Path) -> None:
    keys, dataset = own.configure(table, None, steps=600, given=["x"])
    keys["network"] |= {"width": 32, "depth": 2}
    keys["optimiser"] |= {"lr": 5e-3}
    written = Path("joint.toml")
    written.write_text(own.to_toml(keys))
    config = own.configs.load(str(written))
    fit = Fit(config, RunOptions(Path("joint")), Ranks(0, 1, torch.device("cpu")), dataset)
    fit.run()
    model, space = fit.averaged, dataset.space
    model.network.load_state_dict(state.averaged_tensors(state.read_tensors(Path("joint"))))
    seen = torch.tensor([[0.0, 0.0], [3.0, 0.0], [6.0, 0.0]])
    known = torch.tensor([True, False]).expand(3, 2)
    n = 400
    found = sample_posterior(
        model, Observation.of_reals(space.to_model(seen), known), n, seed=0, method=Learned()
    )
    theta = space.to_data(found.samples.flatten(0, 1)).view(3, n, 2)[..., 1]
    gain = 1 / (1 + NOISE**2)
    deviation = 2 * math.sqrt(1 - gain)
    mean = 3 + gain * (seen[:, 0] - 3)
    # Four standard errors: of the draws' mean and deviation, and of the line that 1,700 rows fix.
    allowed = 4 * deviation * math.sqrt(1 / n + 2 / 1700)
    assert theta.mean(1).tolist() == pytest.approx(mean.tolist(), abs=allowed)
    assert theta.std(1).tolist() == pytest.approx([deviation] * 3, abs=allowed)


def test_given_columns_are_what_the_artefact_is_told_of(table: Path) -> None:
    words = ["train", str(table), "--device", "cpu", "--no-evaluation"]
    assert main([*words, "--given", "x", "--steps", "3"]) == 0
    _, metadata = load(Path("models/joint/model.safetensors"))
    assert metadata.told == (Given(columns=(0,)),)
    assert main(words) == 0  # the file still says so
    assert main([*words, "--given", "theta"]) == 2
    card = Path("models/joint/README.md").read_text()
    assert "\nnoneq train joint.csv --name joint --given x\n" in card


def test_samples_stay_within_limits(table: Path) -> None:
    rows = np.loadtxt(table, delimiter=",", skiprows=1)
    rows[:, 1] = 5 * np.tanh(rows[:, 1])
    np.savetxt(table, rows, delimiter=",", header="x,theta 1", comments="")
    words = ["train", str(table), "--device", "cpu", "--no-evaluation", "--steps", "3"]
    assert main([*words, "--given", "x", "--limits", "theta 1=-5:5"]) == 0
    model, metadata = load(Path("models/joint/model.safetensors"))
    assert model.space.limits == (None, (-5.0, 5.0))
    drawn = model.space.to_data(20 * torch.randn(1000, 2))
    assert float(drawn[:, 1].abs().max()) <= 5 < float(drawn[:, 0].abs().max())
    assert main(words) == 0  # the file still says so
    card = Path("models/joint/README.md").read_text()
    assert "--limits 'theta 1=-5.0:5.0' --given x\n" in card
    assert metadata.space == model.space


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ("theta=-1:1", "element theta is from -1 to 1, came"),
        ("y=0:1", "limits of y: joint.csv has columns x, theta"),
        ("theta=1:0", "a lesser and a greater number"),
    ],
)
def test_limits_that_do_not_hold_are_told(
    limits: str, told: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(table), "--plan", "--limits", limits]) == 2
    assert told in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", str(table), "--plan", "--limits", "theta"])
    assert "not of the form COLUMN=LEAST:MOST" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["y"], "no column y; the table has x, theta"),
        (["theta", "x"], "no column is left to ask for"),
    ],
)
def test_columns_that_are_not_there_are_told(given: list[str], told: str, table: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        own.configure(table, None, given=given)


def test_columns_without_names_are_counted_and_bits_are_refused(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 3))
    path = tmp_path / "rows.npy"
    np.save(path, rows)
    keys, _ = own.configure(path, None, given=["2", "0"])
    assert keys["observations"]["families"] == [{"kind": "given", "columns": [0, 2]}]
    np.save(path, rows > 0)
    with pytest.raises(ConfigError, match="--given is of a table's columns of numbers"):
        own.configure(path, None, given=["0"])
