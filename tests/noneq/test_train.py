"""`noneq train` on a folder of pictures ends with a model that is served."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from noneq import Client
from service.settings import Settings
from tests.noneq.conftest import listening
from training import user_data as own
from training.cli import main
from training.export import export


def test_a_folder_of_pictures_becomes_a_served_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own, "T", {"image": 60})
    monkeypatch.setattr(export, "SHEET_ROWS", {"image": 1})
    Path("photographs").mkdir()
    for i in range(30):
        slope = np.linspace(0, 8 * i, 12)
        Image.fromarray(np.uint8(np.add.outer(slope, slope) / 2)).save(f"photographs/{i}.png")
    words = ["train", "photographs", "--grey", "--side", "8", "--steps", "3", "--no-evaluation"]
    assert main([*words, "--device", "cpu"]) == 0
    settings = Settings(models=Path("models"), device="cpu", batch_size=8)
    with listening(settings) as url, Client(url) as client:
        assert client.models().default == "photographs"
        found = client.sample(2, steps=3, seed=1)
        assert found.numpy().shape == (2, 1, 8, 8)
        scored = client.loglik(found.numpy(), terms=4)
        assert np.isfinite(scored.bound).all()
