"""Figures of images: what was seen stays as it was, at any size the network takes."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.networks import UNet, UNetConfig
from diffusion.process import GaussianProcess
from diffusion.profile import Profile
from diffusion.schedule import LogSnrSchedule
from diffusion.space import DataSpace
from training.study import galleries


@pytest.fixture
def model() -> DiffusionModel:
    """A small network of grey images, 8 x 8, as it begins."""
    config = UNetConfig(channels=(8,), blocks=1, zero_out=False, clock="log_snr")
    space = DataSpace(kind="image", shape=(1, 8, 8), shift=127.5, scale=128.0, levels=256)
    process = GaussianProcess(LogSnrSchedule().beta(6))
    return DiffusionModel(process, UNet(config), space, "v", "lower").eval()


def test_a_larger_model_has_the_variance_that_was_profiled(model: DiffusionModel) -> None:
    kinds = model.space, model.prediction, "optimal", Profile(model.T, model.T)
    profiled = DiffusionModel(model.process, model.network, *kinds)
    larger = galleries.enlarged(profiled, 16, 12)
    assert larger.event == (1, 16, 12)
    assert larger.variance == "optimal"
    assert larger.profile is profiled.profile


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[galleries.Panel]:
    """The panels that were drawn, beside the picture."""
    seen: list[galleries.Panel] = []
    draw = galleries.draw

    def keep(
        model: DiffusionModel, panels: list[galleries.Panel], path: Path, columns: int
    ) -> None:
        seen.extend(panels)
        draw(model, panels, path, columns)

    monkeypatch.setattr(galleries, "draw", keep)
    return seen


def grey(rows: int, side: int) -> Tensor:
    """Images of levels."""
    return torch.randint(0, 256, (rows, 1, side, side)).float()


def test_what_was_seen_of_a_larger_texture_stays(
    model: DiffusionModel, drawn: list[galleries.Panel], tmp_path: Path
) -> None:
    rows = grey(2, 16)
    galleries.inpainting(model, rows, tmp_path / "a.png", hidden=6)
    (_, data), (_, unseen), (_, filled) = drawn
    same = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    same[..., 5:11, 5:11] = False
    assert torch.equal(data, rows)
    for shown in (unseen, filled):
        assert torch.equal(shown[same], rows[same])
        assert not torch.equal(shown[~same], rows[~same])
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 300


def test_noise_has_the_deviation_that_the_title_says(
    model: DiffusionModel, drawn: list[galleries.Panel], tmp_path: Path
) -> None:
    rows = torch.full((64, 1, 8, 8), 128.0)  # far from where levels end
    steps: list[int] = []
    galleries.denoising(
        model, rows, tmp_path / "a.png", noise=20.0, progress=lambda done, _: steps.append(done)
    )
    titles = [title for title, _ in drawn]
    assert titles[1] == "with noise of 20 grey levels"
    off = drawn[1][1] - rows
    count = off.numel()
    assert abs(float(off.std()) - 20.0) < 4 * 20.0 / (2 * count) ** 0.5
    assert all(panel.shape == rows.shape for _, panel in drawn)
    assert steps[-1] == model.T  # the last chain is the model's own, whole


def test_draws_stand_beside_as_many_data(
    model: DiffusionModel, drawn: list[galleries.Panel], tmp_path: Path
) -> None:
    rows = grey(9, 8)
    galleries.beside_data(model, rows, tmp_path / "a.png", others=[("a peer's", rows)])
    assert [title for title, _ in drawn] == ["held-out data", "drawn from the model", "a peer's"]
    assert {panel.shape for _, panel in drawn} == {rows.shape}


def test_a_picture_without_its_model_is_left_out(tmp_path: Path) -> None:
    assert galleries.make(tmp_path, tmp_path / "figures") == []
