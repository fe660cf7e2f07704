"""A network of another package goes the whole way: fitted, exported, found by the server."""

from pathlib import Path

import pytest

from diffusion.networks import InstalledConfig
from service.catalogue import load_folder
from tests.packages import install
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
