"""The page of results: units that are what they are said to be, and lines of what is there."""

import math
from pathlib import Path

import pytest
import torch

from diffusion.checkpoint import Evaluation, Metadata, read_metadata
from diffusion.distributions import Normal
from diffusion.space import DataSpace
from training import provenance
from training.study import page, paper

MODELS = Path(__file__).parents[2] / "models"


def evaluation(metadata: Metadata, bits_per_dim: float) -> Evaluation:
    """A discretised bound of so many bits an element."""
    nats = -bits_per_dim * math.log(2) * metadata.space.dims
    return metadata.evaluation[0].model_copy(
        update={"bound": nats, "bits_per_dim": bits_per_dim, "bits": nats / math.log(2)}
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gaussian_of_levels_has_no_gain_over_the_null_model(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Levels of N(127.5, s^2): K is -1/2 log2(2 pi e) a channel, and K - L_null is 0."""
    deviation = 20.0
    monkeypatch.setattr(page, "deviation_of", lambda _: deviation)
    space = DataSpace(
        kind="image", shape=(channels, 100, 100), shift=127.5, scale=128.0, levels=256
    )
    generator = torch.Generator().manual_seed(0)
    rows = (127.5 + deviation * torch.randn(16, *space.shape, generator=generator)).round()
    kernel = Normal(torch.zeros(1, 1, 1, 1), torch.tensor((deviation / 128.0) ** 2))
    nats = kernel.log_mass(space.to_model(rows), space)
    each = -nats / math.log(2) / space.dims
    metadata = read_metadata(MODELS / "mnist" / "model.safetensors")
    metadata = metadata.model_copy(update={"space": space})
    e = evaluation(metadata, float(each.mean()))
    error = channels * float(each.std()) / math.sqrt(len(each))
    K, _ = page.unit_variance(metadata, e)
    gain, _ = page.unit_variance_over_null(metadata, e)
    assert pytest.approx(-channels * page.NULL_BITS, abs=4 * error) == K
    assert gain == pytest.approx(0.0, abs=4 * error)


def test_the_page_has_a_line_for_each_artefact_and_none_for_what_is_missing(
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "heartbeat").symlink_to(MODELS / "heartbeat")
    text = page.write(models, tmp_path / "docs").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| Heartbeat")]
    assert len(lines) == 2
    evaluations = read_metadata(MODELS / "heartbeat" / "model.safetensors").evaluation
    found = {e.convention: e for e in evaluations if e.whole}
    assert f"**{found['paper'].bits:.3f}**" in lines[0]
    assert f"**{found['discretised'].bits:.3f}**" in lines[1]
    assert "MNIST" not in text


def test_a_measurement_is_made_once_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = paper.Places(docs=tmp_path)
    sampler = {"name": "ancestral", "steps": 30}
    score = {"bits": 300.0, "bits_error": 2.5, "sampler": sampler, "stop": 80}
    made: list[str] = []

    def make(_: paper.Places, __: torch.device) -> dict[str, object]:
        made.append("made")
        return score

    measurement = paper.Measurement("mnist", make)
    monkeypatch.setattr(paper, "MEASUREMENTS", dict.fromkeys(paper.MEASUREMENTS, measurement))
    for _ in range(2):
        for name in ("parzen-mnist", "parzen-means", "parzen-data"):
            assert paper.measure(name, places, torch.device("cpu"))
    assert made == ["made", "made", "made"]
    found = provenance.read(places.measured("parzen-mnist"))
    assert found is not None
    assert found.found == score
    text = page.write(tmp_path / "no models", tmp_path).read_text()
    assert "| `mnist` here, samples of 30 steps | | **300** ± 2.5 |" in text
    assert "at t = 80 of 30 steps | | **300** ± 2.5 |" in text


def test_an_artefact_that_is_there_is_not_fitted_again() -> None:
    places = paper.Places(models=MODELS, runs=Path("nowhere"))
    assert paper.make_model("mnist", places, "cpu", large=False, compiled=False)


def test_an_unknown_experiment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no experiment cifar; there are swissroll, .*cifar10"):
        paper.run(["cifar"], paper.Places(docs=tmp_path), "cpu")
