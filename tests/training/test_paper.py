"""`make paper` as one command: from nothing to the page, once, and on from where it was ended."""

import functools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffusion.checkpoint import read_metadata
from training import config, data, provenance
from training.config import artefact_path
from training.data import files
from training.evaluate import parzen
from training.evaluate import patches as peer
from training.export import export
from training.fit.loop import Fit
from training.study import figures, galleries, page, paper
from training.study import schedules as compare

STEPS = 4
VALID = {"valid": 40, "test": 70}
LEAVES = {"kind": "deadleaves", "side": 8, "train": 300, **VALID}
#: Made in the test, by the kind that they stand for.
DATA = {
    "swissroll": {"kind": "swissroll", "noise": 0.1, "train": 300, **VALID},
    "heartbeat": {"kind": "heartbeat", "train": 300, **VALID},
    "binarized-mnist": {"kind": "heartbeat", "train": 300, **VALID},
    "textures": {"kind": "textures", "side": 8, "train": 300, **VALID},
    "deadleaves": LEAVES,
    "mnist": LEAVES,
    "cifar10": LEAVES,
}
FEATURES = {"swissroll": 2, "heartbeat": 20, "binarized-mnist": 20}


def toml(value: object) -> str:
    """A value of a configuration, as TOML writes it."""
    if isinstance(value, dict):
        found = (f"{key} = {toml(x)}" for key, x in value.items() if x is not None)
        return f"{{ {', '.join(found)} }}"
    return json.dumps(value)


def tiny(name: str, T: int) -> str:
    """The shipped configuration with little data, few steps and a small network."""
    keys = config.load(name).model_dump(mode="json")
    kind, shipped = keys["data"]["kind"], keys["network"]
    network: dict[str, Any] = {"kind": "unet", "in_channels": 1, "channels": [8], "blocks": 1}
    if kind in FEATURES:
        network = {"kind": "mlp", "features": FEATURES[kind], "width": 16, "depth": 2}
    process = keys["process"] | {"T": T}
    watch = {"data": 8, "terms": 4 + T // 8, "samples": 4, "sampler_steps": 2}
    keys |= {
        "data": DATA[kind],
        "network": network | {"outputs": shipped["outputs"]},
        "process": process,
    }
    keys |= {"steps": STEPS, "batch": 8, "watch": watch, "profile": {"points": 4, "rows": 16}}
    keys |= {"initial": None, "observations": None}  # the tiny network is told nothing
    keys["evaluation"] |= {"data": 20, "terms": None}
    keys["optimiser"] |= {"restarts": [], "warmup": 1}
    if keys["projection"] is not None:
        keys |= {"network": shipped | {"units": 4, "T": T}, "projection": {"rows": 200}}
    del keys["name"]
    return "\n".join(f"{key} = {toml(x)}" for key, x in keys.items() if x is not None)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> paper.Places:
    """Empty folders, and everything small."""
    folder = tmp_path / "configs"
    (folder / "gpu").mkdir(parents=True)
    for name in paper.EXPERIMENTS:
        (folder / f"{name}.toml").write_text(tiny(name, 32))
    (folder / "gpu" / "heartbeat.toml").write_text(tiny("heartbeat", 40))
    (folder / "schedules.toml").write_text(tiny("schedules", 4))
    (tmp_path / "data" / "textures").mkdir(parents=True)
    grey = torch.randint(0, 256, (80, 40), dtype=torch.uint8)
    Image.fromarray(grey.numpy()).save(tmp_path / "data" / "textures" / "a.png")
    monkeypatch.setenv(files.VARIABLE, str(tmp_path / "data"))
    monkeypatch.setattr(config, "FOLDER", folder)
    monkeypatch.setattr(data, "load", functools.cache(data.load))
    monkeypatch.setattr(paper, "SAMPLES", 100)
    small = peer.PeerConfig(components=2, tile=2, above=1, beside=1, patches=500, iterations=10)
    monkeypatch.setattr(paper, "PEER", small)
    monkeypatch.setattr(parzen, "BLOCK", 50)
    monkeypatch.setattr(export, "SHEET_ROWS", {"image": 4, "vector": 9, "bits": 4})
    monkeypatch.setattr(compare, "ROWS", 20)
    monkeypatch.setattr(compare, "GRID", {"levels": 12, "rows": 20})
    monkeypatch.setattr(figures, "POINTS", 50)
    monkeypatch.setattr(galleries, "STEPS", 4)
    monkeypatch.setattr(galleries, "TEXTURE", 12)
    monkeypatch.setattr(galleries, "HIDDEN", 4)
    return paper.Places(tmp_path / "models", tmp_path / "runs", tmp_path / "docs")


@pytest.fixture
def steps_made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The configuration of each optimiser step; a signal comes in the middle of the 6th."""
    made: list[str] = []
    advance = Fit._advance

    def counted(fit: Fit) -> Any:  # noqa: ANN401
        made.append(fit.config.name)
        if len(made) == STEPS + 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(fit)

    monkeypatch.setattr(Fit, "_advance", counted)
    return made


def written(places: paper.Places) -> dict[Path, int]:
    """When each file was last written; the page is written each time, of what is there."""
    folders = (places.models, places.runs, places.docs)
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in found if path.name != "results.md"}


def test_one_command_makes_everything_once_and_goes_on(
    places: paper.Places, steps_made: list[str]
) -> None:
    pytest.importorskip("sklearn")
    by_gradient = [name for name in paper.EXPERIMENTS if config.load(name).projection is None]
    first, second, *_ = by_gradient
    assert paper.run(paper.EXPERIMENTS, places, "cpu", large=True) is None
    assert steps_made == [first] * STEPS + [second] * 2
    assert places.has(first)
    assert not places.has(second)

    made = paper.run(paper.EXPERIMENTS, places, "cpu", large=True)
    fits = len(by_gradient) + len(compare.FIXED) + len(compare.LEARNED)
    assert len(steps_made) == STEPS * fits  # no step was made twice
    assert made is not None
    for name in paper.EXPERIMENTS:
        path = artefact_path(places.models, name)
        assert read_metadata(path).training.steps == STEPS
        assert read_metadata(path).evaluation
        assert path.with_name("samples.png").exists()
        for picture in figures.of_model(name, places.figures):
            assert picture in made
    assert read_metadata(artefact_path(places.models, "heartbeat")).process.T == 40
    assert "fit gpu/heartbeat\n" in (places.models / "heartbeat" / "README.md").read_text()
    for name in paper.MEASUREMENTS:
        found = provenance.read(places.measured(name))
        assert found is not None
        assert found.command == paper.COMMAND
        assert found.seconds is not None
        assert "torch" in found.versions
    text = (places.docs / "results.md").read_text()
    sections = ("The table", "MNIST by Parzen", "Dead leaves and", "Schedules", "Figures")
    assert all(f"\n## {title}" in text for title in sections)
    assert text.count("![") == len(page.FIGURES)

    before = written(places)
    assert paper.run(paper.EXPERIMENTS, places, "cpu", large=True) == [places.docs / "results.md"]
    assert written(places) == before
    assert (places.docs / "results.md").read_text() == text
    assert len(steps_made) == STEPS * fits

    card = places.models / "mnist" / "README.md"
    card.unlink()  # as an export that was cut off leaves it
    again = paper.run(["mnist"], places, "cpu")
    remade = {path for path, when in written(places).items() if before.get(path) != when}
    assert again == [places.figures / "digits.png", places.docs / "results.md"]
    assert {card, places.figures / "digits.png", places.measured("parzen-mnist")} <= remade
    assert places.measured("parzen-data") not in remade
