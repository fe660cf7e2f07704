"""A network of another package goes the whole way: fitted, exported, found by the server."""

from pathlib import Path

import pytest
import torch

from diffusion.checkpoint import load
from diffusion.networks import InstalledConfig
from diffusion.observation import Observation
from diffusion.posterior import Learned, sample_posterior
from service.catalogue import load_folder
from tests.packages import TILTS, install
from training.cli import main


def test_it_is_fitted_exported_and_served(
    small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = small_file.read_text()
    start, end = text.index("[network]"), text.index("[objective]")
    network = '[network]\nkind = "lines"\nfeatures = 2\noutputs = 2\n\n'
    path = tmp_path / "lines.toml"
    path.write_text(text[:start] + network + text[end:])
    monkeypatch.chdir(tmp_path)
    words = ["--device", "cpu"]
    assert main(["fit", str(path), *words]) == 2  # the package is not there yet
    install(tmp_path / "site", monkeypatch)
    assert main(["fit", str(path), *words]) == 0
    assert main(["export", str(path), "--no-evaluation", "--models", "models", *words]) == 0
    served = load_folder(tmp_path / "models", "cpu").served["lines"]
    assert isinstance(served.metadata.network, InstalledConfig)
    assert "lines" in (served.card or "")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (refused,) = load_folder(tmp_path / "models", "cpu").refused
    assert "install the package that brings it" in refused.fix


def test_one_that_is_told_is_extended_and_answers(
    small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(
        tmp_path / "site",
        monkeypatch,
        TILTS,
        package="their_tilts",
        point="tilts = {package}:TiltsConfig",
    )
    monkeypatch.chdir(tmp_path)
    text, words = small_file.read_text(), ["--device", "cpu"]
    start, end = text.index("[network]"), text.index("[objective]")
    network = '[network]\nkind = "tilts"\nfeatures = 2\noutputs = 2\n'
    told = 'conditional = true\n[observations]\nfamilies = [{ kind = "exact" }]\n'
    path = tmp_path / "tilts.toml"
    path.write_text(text[:start] + network + text[end:])
    assert main(["fit", str(path), *words]) == 0
    assert main(["export", str(path), "--no-evaluation", *words]) == 0
    old, _ = load(tmp_path / "models" / "tilts" / "model.safetensors")
    path.write_text(text[:start] + network + told + text[end:])
    again = [str(path), "--restart", "--initial", "tilts", *words]
    assert main(["fit", *again, "--stop-at", "1"]) == 0
    assert main(["fit", str(path), "--initial", "tilts", *words]) == 0
    assert main(["export", str(path), "--no-evaluation", *words]) == 0
    model, metadata = load(tmp_path / "models" / "tilts" / "model.safetensors")
    assert (old.conditional, model.conditional) == (False, True)
    assert [family.kind for family in metadata.told] == ["exact"]
    y, known = torch.tensor([[0.5, 0.0]]), torch.tensor([[True, False]])
    seen = Observation.of_reals(y, known)
    found = sample_posterior(model, seen, 4, seed=0, method=Learned())
    assert torch.allclose(found.samples[..., 0], torch.tensor(0.5), atol=1e-6)
    with pytest.raises(ValueError, match="cannot be told"):
        sample_posterior(old, seen, 4, seed=0, method=Learned())
