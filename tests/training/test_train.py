"""`noneq train` from a file to a verdict: what is edited is used, what is worse is told."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.checkpoint import Baseline, Evaluation, read_metadata, rewrite
from training import config, data
from training import user_data as own
from training.cli import main
from training.evaluate import baselines
from training.evaluate.baselines import verdict
from training.fit import checkpoint as state

ARTEFACT = Path("models/rows/model.safetensors")


pytestmark = pytest.mark.usefixtures("_rows")


@pytest.fixture
def _rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of one column in a folder of its own, and sizes that suit a test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own, "T", dict.fromkeys(own.T, 20))
    path = Path("rows.csv")
    numbers = np.random.default_rng(0).exponential(3, size=80)
    path.write_text("x\n" + "\n".join(f"{x:.4f}" for x in numbers))


def train(*words: str) -> int:
    return main(["train", "rows.csv", "--reals", "--device", "cpu", *words])


def test_an_edited_file_is_used_and_a_fit_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--plan", "--steps", "6") == 0
    file = Path("runs/rows.toml")
    edited = file.read_text().replace("width = 64", "width = 9") + "# mine\n"
    file.write_text(edited)
    assert train("--plan") == 0
    assert "using runs/rows.toml as it stands" in capsys.readouterr().out
    assert train("--no-evaluation") == 0
    assert file.read_text() == edited
    assert read_metadata(ARTEFACT).network.correction.width == 9  # type: ignore[union-attr]
    assert state.read_state(Path("runs/rows")).step == 6
    assert train("--no-evaluation", "--steps", "11") == 0  # past its end
    assert file.read_text() == edited.replace("steps = 6", "steps = 11")
    assert read_metadata(ARTEFACT).training.steps == 11
    assert train("--no-evaluation", "--restart") == 0
    assert file.read_text() == edited.replace("steps = 6", "steps = 11")
    Path("rows.csv").rename("other.csv")
    capsys.readouterr()
    assert main(["train", "other.csv", "--name", "rows"]) == 2
    assert "is of other data" in capsys.readouterr().err
    card = ARTEFACT.with_name("README.md").read_text()
    assert "\nnoneq train rows.csv --name rows --reals\n" in card


def test_the_command_of_a_card_of_pictures_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten pictures, the documented least, go all the way."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own, "T", dict.fromkeys(own.T, 4))
    Path("my pictures").mkdir()
    for i in range(10):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(f"my pictures/{i}.png")
    words = ["train", "my pictures", "--name", "ten", "--side", "4", "--grey"]
    # Noise is no picture that three steps learn, so what is simple is better.
    assert main([*words, "--steps", "3", "--device", "cpu"]) == 1
    card = Path("models/ten/README.md").read_text()
    assert "noneq train 'my pictures' --name ten --side 4 --grey" in card
    assert "**NOT READY" in card
    metadata = read_metadata(Path("models/ten/model.safetensors"))
    assert [e.count for e in metadata.evaluation] == [2]
    assert {"a histogram" in b.name for b in metadata.baselines} == {True, False}


def evaluation(bound: float) -> Evaluation:
    keys = {"split": "test", "count": 20, "standard_error": 0.1, "null": -4.0}
    return Evaluation.model_validate(
        {**keys, "convention": "density", "bound": bound, "bits": bound, "bits_per_dim": -bound}
    )


def baseline(gain: float, error: float = 0.1) -> Baseline:
    return Baseline(
        name="one Gaussian",
        convention="density",
        count=20,
        bound=-2.0 - gain,
        gain=gain,
        standard_error=error,
    )


def test_a_model_worse_than_what_is_simple_is_not_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--steps", "3") == 0
    told = capsys.readouterr().out
    assert "one Gaussian" in (ARTEFACT.with_name("README.md").read_text())
    assert "serve it" in told
    metadata = read_metadata(ARTEFACT)
    names = [b.name.split(":")[0] for b in metadata.baselines]
    assert {"one Gaussian", "independent Gaussian columns"} <= set(names)
    assert "a kernel density, by cross-validation" in names
    # What it begins from is better than one Gaussian here, and so it is itself.
    gains = {b.name: b.gain for b in metadata.baselines}
    assert gains["one Gaussian"] > 0

    def verdict_of(bound: float, *beside: Baseline) -> str:
        changes = {"evaluation": (evaluation(bound),), "baselines": beside}
        return str(verdict(metadata.model_copy(update=changes)))

    assert verdict_of(-2.0, baseline(0.5)).startswith("ready: better than")
    assert verdict_of(-2.0, baseline(-0.15)).startswith("ready: within the error of")
    assert verdict_of(-2.0, baseline(-0.5)).startswith("NOT READY: one Gaussian, is better by 0.72")
    assert verdict_of(-2.0, baseline(-0.02, 0.0001)).startswith("ready")  # a margin nobody sees
    assert verdict_of(-5.0).startswith("NOT READY: K - L_null is -1.44")
    assert verdict(metadata.model_copy(update={"evaluation": ()})) is None
    rewrite(ARTEFACT, metadata)  # the document survives
    assert read_metadata(ARTEFACT) == metadata


def test_a_kernel_density_and_a_mixture_have_mass_one() -> None:
    rows = torch.from_numpy(np.random.default_rng(0).exponential(1, (100, 1)))
    grid = torch.linspace(-20, 40, 20_000, dtype=torch.float64)[:, None]
    for log_prob in (baselines._kernels(rows), baselines._by_bic(rows)):
        assert float(log_prob(grid).exp().sum() * 60 / 19_999) == pytest.approx(1, abs=1e-3)


def test_a_histogram_of_pixels_is_a_probability() -> None:
    x = torch.randint(0, 256, (30, 1, 2, 2), generator=torch.Generator().manual_seed(0)).byte()
    space = data.dataset.eight_bit((1, 2, 2))
    every = torch.arange(256)[:, None, None, None].expand(256, 1, 2, 2)
    dataset = data.Dataset("drawn", space, x[10:], x[:5], x[5:10], checksum="")
    found = baselines._of_images(config.load("mnist"), dataset)
    one = found["independent pixels, a histogram a channel"](space.to_model(every)) / 4
    assert float(one.exp().sum()) == pytest.approx(1, abs=1e-9)


def test_one_row_has_no_standard_error() -> None:
    assert train("--steps", "2", "--no-evaluation") == 0
    assert main(["evaluate", "rows", "--rows", "1"]) == 2


def test_small_networks_take_one_thread() -> None:
    keys, _ = own.configure(Path("rows.csv"), None, reals=True)
    assert own.one_thread(config.FitConfig.model_validate(keys))
    assert not own.one_thread(config.load("mnist"))
