"""The figures are drawn from what the model says, and from nothing else."""

import math
from pathlib import Path

import torch
from PIL import Image

from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.process import BinomialProcess, GaussianProcess
from diffusion.schedule import GeometricSchedule, InverseTimeSchedule
from diffusion.space import DataSpace
from training.data.heartbeat import patterns
from training.study import figures


def gaussian() -> DiffusionModel:
    """N(0, 1) in the plane, which the process leaves as it is."""
    one = torch.eye(2, dtype=torch.float64)[None]
    mean = torch.zeros(1, 2, dtype=torch.float64)
    network = GaussianMixture.from_values(torch.ones(1), mean, one)
    process = GaussianProcess(GeometricSchedule(first=1e-2, last=0.5).beta(8))
    return DiffusionModel(process, network, DataSpace(kind="vector", shape=(2,)), "x_0", "moment")


def bits() -> DiffusionModel:
    table = patterns(6, 3).double()
    network = BitPatterns.from_values(torch.full((3,), 1 / 3), table, 1 / 3)
    process = BinomialProcess(InverseTimeSchedule().beta(30), 1 / 3)
    return DiffusionModel(process, network, DataSpace(kind="bits", shape=(6,)), "x_0", None)


def test_the_drift_of_a_normal_points_home() -> None:
    """E[x_{t-1} | x_t] = sqrt(1 - beta_t) x_t where x_0 is N(0, 1)."""
    model = gaussian()
    where, arrow = figures.drift(model, 5)
    wanted = (math.sqrt(1 - float(model.process.beta[5])) - 1) * where
    torch.testing.assert_close(arrow, wanted, rtol=1e-4, atol=1e-5)


def test_chains_of_the_oracle_end_in_its_patterns() -> None:
    chains = figures.trajectory(bits(), 20, 0, {30, 0})
    assert set(chains) == {30, 0}
    same = (chains[0][:, None] == patterns(6, 3)).all(-1)
    assert same.any(1).all()


def test_pictures_have_no_ground(tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    figures.figure1(gaussian(), torch.randn(50, 2), one)
    figures.figure2(bits(), two, rows=5)
    for path in (one, two):
        picture = Image.open(path)
        assert picture.mode == "RGBA"
        low, high = picture.getchannel("A").getextrema()
        assert (low, high) == (0, 255)
