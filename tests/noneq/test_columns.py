"""A model that was fitted to named columns takes data by these names, and gives them back."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from diffusion.checkpoint import save
from noneq import Client
from noneq.cli.main import main
from service.settings import Settings
from tests.noneq.conftest import listening
from tests.noneq.test_scores import table
from tests.service.http.conftest import gaussian_mixture

Capture = pytest.CaptureFixture[str]
Serve = Callable[..., AbstractContextManager[str]]


def test_a_table_is_scored_by_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    model, metadata = gaussian_mixture()
    named = metadata.space.model_copy(update={"columns": ("width", "height")})
    metadata = metadata.model_copy(update={"space": named})
    save(Path("models/named/model.safetensors"), model, metadata)
    with listening(Settings(models=Path("models"), device="cpu", batch_size=64)) as url:
        monkeypatch.setenv("NONEQ_URL", url)
        with Client(url) as client:
            assert client.models().models[0].columns == ("width", "height")
            assert client.model("named").columns == ("width", "height")
            assert client.sample(2, seed=1).rows()[0] == ["width", "height"]
        assert main(["sample", "-n", "5", "--seed", "1", "-o", "drawn.csv"]) == 0
        text = Path("drawn.csv").read_text()
        assert text.startswith("width,height\n")
        rows = [line.split(",") for line in text.split()]
        Path("turned.csv").write_text("".join(f"{h},{w}\n" for w, h in rows))
        capsys.readouterr()
        bounds = []
        for name in ("drawn.csv", "turned.csv"):
            assert main(["loglik", name, "--terms", "5"]) == 0
            bounds.append([float(line["bound"]) for line in table(capsys.readouterr().out)])
        assert np.allclose(*bounds, rtol=1e-6)
        Path("other.csv").write_text("width,weight\n1,2\n")
        assert main(["loglik", "other.csv", "--terms", "5"]) == 1
        assert "other.csv lacks height and has weight" in capsys.readouterr().err
        Path("gaps.csv").write_text("height,width\n0.5,\n")
        ask = ["inpaint", "gaps.csv", "--steps", "5", "-n", "2", "-o", "filled.csv"]
        assert main(ask) == 0
        filled = table(Path("filled.csv").read_text())
        assert [list(line)[-2:] for line in filled] == [["width", "height"]] * 2
        assert [float(line["height"]) for line in filled] == [0.5, 0.5]
