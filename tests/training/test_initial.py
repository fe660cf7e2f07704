"""A fit begins where an artefact ended, or says why its weights have no meaning there."""

from pathlib import Path

import pytest
import torch

from diffusion.checkpoint import load as load_artefact
from diffusion.checkpoint import save
from training.config import ConfigError, FitConfig, load
from training.export.export import from_checkpoint
from training.fit.loop import Fit, RunOptions
from training.fit.parallel import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


def fitted(config: FitConfig, folder: Path) -> Path:
    """An artefact of its own fit."""
    assert Fit(config, RunOptions(out=folder), ALONE).run()
    model, metadata, _ = from_checkpoint(folder, ALONE.device)
    path = folder / "model.safetensors"
    save(path, model, metadata)
    return path


@pytest.fixture
def artefact(small: FitConfig, tmp_path: Path) -> Path:
    return fitted(small, tmp_path / "first")


def fit_on(small: FitConfig, artefact: Path | str, tmp_path: Path, **other: object) -> Fit:
    keys = {**small.model_dump(), "initial": str(artefact), **other}
    return Fit(FitConfig.model_validate(keys), RunOptions(out=tmp_path / "second"), ALONE)


def test_it_starts_from_the_weights_and_moves(
    small: FitConfig, artefact: Path, tmp_path: Path
) -> None:
    first = load_artefact(artefact)[0].network.state_dict()
    fit = fit_on(small, artefact, tmp_path, objective={"bound": 0.0, "simple": 1.0}, steps=3)
    for network in (fit.network, fit.averaged.network):
        assert all(torch.equal(first[key], x) for key, x in network.state_dict().items())
    assert fit.run()
    assert not all(torch.equal(first[key], x) for key, x in fit.network.state_dict().items())


def test_what_does_not_fit_is_refused(small: FitConfig, artefact: Path, tmp_path: Path) -> None:
    wider = {**small.network.model_dump(), "width": 24}
    with pytest.raises(ConfigError, match="weights fit only where they are the same"):
        fit_on(small, artefact, tmp_path, network=wider)
    with pytest.raises(ConfigError, match="has prediction v, this configuration eps"):
        fit_on(small, artefact, tmp_path, prediction="eps")
    longer = {**small.process.model_dump(), "T": 20}
    with pytest.raises(ConfigError, match="keep the process"):
        fit_on(small, artefact, tmp_path, process=longer)
    with pytest.raises(ConfigError, match="there is no models/nothing"):
        fit_on(small, "nothing", tmp_path)


def test_a_clock_of_log_snr_takes_another_schedule(small_file: Path, tmp_path: Path) -> None:
    text = small_file.read_text().replace("embedding = 8", 'embedding = 8\nclock = "log_snr"')
    small_file.write_text(text)
    clocked = load(str(small_file))
    path = fitted(clocked, tmp_path / "first")
    # Equal steps of log SNR between the same ends: step t of 10 has the noise of 2 t - 1 of 19.
    finer = {**clocked.process.model_dump(), "T": 19}
    fit = fit_on(clocked, path, tmp_path, process=finer)
    model = load_artefact(path)[0]
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    t = torch.arange(1, 11)
    one, two = model.predict(x, t), fit.averaged.predict(x, 2 * t - 1)
    torch.testing.assert_close(one.x_0, two.x_0, rtol=1e-4, atol=1e-5)
