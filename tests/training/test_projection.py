"""Projected readouts: the normal equations hold, and the fit begins where they are."""

import math

import torch

from diffusion.bound import bound
from diffusion.model import DiffusionModel
from diffusion.networks import RBF, RBFConfig, build
from diffusion.noise import Stream, counter_noise
from diffusion.process import GaussianProcess
from diffusion.schedule import GeometricSchedule
from diffusion.space import DataSpace
from training.projection import project

T = 8


def ring(rows: int) -> torch.Tensor:
    angle = 2 * math.pi * torch.arange(rows) / rows
    return torch.stack((angle.cos(), angle.sin()), 1)


def model() -> DiffusionModel:
    network = build(RBFConfig(features=2, outputs=2, units=8, T=T))
    assert isinstance(network, RBF)
    network.place(ring(64))
    process = GaussianProcess(GeometricSchedule(first=1e-2, last=0.6).beta(T))
    return DiffusionModel(process, network, DataSpace(kind="vector", shape=(2,)), "x_0", "moment")


def test_what_is_left_is_orthogonal_to_the_basis() -> None:
    """E phi (W phi - x_0) = 0, and E of the variance is E of the square of what is left."""
    made, x_0 = model(), ring(500)
    project(made, x_0, seed=3)
    rows, network = torch.arange(500), made.network
    assert isinstance(network, RBF)
    for t in (1, 4, T):
        at = torch.full_like(rows, t)
        x_t = made.process.marginal(x_0, at).sample(counter_noise(3, rows, t, Stream.DATA))
        found, phi = made.predict(x_t, at), network.basis(x_t).detach()
        left = (found.x_0 - x_0).detach()
        torch.testing.assert_close(phi.mT @ left / 500, torch.zeros(8, 2), rtol=0, atol=2e-4)
        z = network.readout.weight[t - 1, 2:].detach()
        local = (z.exp() * (1 - made.process.alpha_bar[t])).mT * phi.sum(0)[:, None]
        torch.testing.assert_close(local.float().sum(0), left.square().sum(0), rtol=1e-2, atol=0)


def test_the_bound_is_far_above_that_of_an_empty_readout() -> None:
    made, x_0 = model(), ring(300)
    before = float(bound(made, x_0[::3], seed=0, convention="density").bound.mean())
    project(made, x_0, seed=3)
    after = bound(made, x_0[::3], seed=0, convention="density").bound
    assert float(after.mean()) > before + 1.0
    assert bool(after.isfinite().all())
