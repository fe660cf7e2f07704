"""Variable projection: its slopes are those of J, and its readouts are where nothing gains."""

import copy
import math
from pathlib import Path

import pytest
import torch

from diffusion.likelihood.bound import bound
from diffusion.model import DiffusionModel
from diffusion.networks import RBF, RBFConfig, build
from diffusion.process import GaussianProcess
from diffusion.schedule import GeometricSchedule
from diffusion.space import DataSpace
from training.config import FitConfig
from training.fit import loop as fit_module
from training.fit.loop import Fit, RunOptions
from training.fit.parallel import Ranks
from training.fit.projection import draw, projected, readout, search, slopes, start

T, UNITS = 8, 8


def ring(rows: int) -> torch.Tensor:
    angle = 2 * math.pi * torch.arange(rows) / rows
    return torch.stack((angle.cos(), angle.sin()), 1)


def model() -> DiffusionModel:
    network = build(RBFConfig(features=2, outputs=2, units=UNITS, T=T))
    process = GaussianProcess(GeometricSchedule(first=1e-3, last=0.6).beta(T))
    return DiffusionModel(process, network, DataSpace(kind="vector", shape=(2,)), "x_0", "moment")


def begin(made: DiffusionModel, seed: int = 1) -> RBF:
    assert isinstance(made.network, RBF)
    with torch.no_grad():
        return start(made.network, seed)


@torch.no_grad()
def test_slopes_are_those_of_what_is_descended() -> None:
    """Minus N times central differences of J, by each centre and log width."""
    made, rows, by = model(), 200, 1e-5
    network, draws = begin(made), draw(made, ring(rows), seed=3)
    gradient, curvature = slopes(projected(network, draws), draws)
    found = gradient.view(UNITS, 3)
    for unit in range(UNITS):
        for place in range(3):
            cost = []
            for sign in (1, -1):
                moved = copy.deepcopy(network)
                at = moved.log_widths[unit] if place == 2 else moved.centres[unit, place]
                at += sign * by
                cost.append(projected(moved, draws).cost)
            slope = -rows * (cost[0] - cost[1]) / (2 * by)
            assert float(found[unit, place]) == pytest.approx(slope, rel=1e-3, abs=1e-2)
    assert float(torch.linalg.eigvalsh(curvature).min()) > -1e-6 * float(curvature.trace())


@torch.no_grad()
def test_a_search_descends() -> None:
    """More steps, never a larger J; many, far below where it began."""
    made = model()
    draws = draw(made, ring(200), seed=3)
    costs = [search(begin(made), draws, steps).cost for steps in (1, 3, 40)]
    assert projected(begin(made), draws).cost > costs[0] > costs[1] > costs[2] + 0.2


def test_readouts_of_groups_are_their_means_and_variances() -> None:
    """Where each function is one on its own group alone, the least of E KL is known."""
    noise = torch.Generator().manual_seed(0)
    group = torch.arange(600) % 3
    phi = torch.nn.functional.one_hot(group).double()
    scale = torch.tensor([0.1, 1.0, 3.0])[group, None]
    x_0 = (scale * torch.randn(600, 2, generator=noise)).double() + group[:, None]
    for tau in (0.0, 0.05):
        weight, spread = readout(phi, x_0, tau)
        for i in range(3):
            mine = x_0[group == i]
            torch.testing.assert_close(weight[i], mine.mean(0), rtol=1e-6, atol=1e-8)
            var = mine.var(0, correction=0)
            torch.testing.assert_close(spread[i].exp(), var, rtol=1e-3, atol=1e-6)


def test_readouts_are_stationary() -> None:
    """The gradient of E KL by W and z is zero there, and it was not where least squares ends."""
    made, tau = model(), 0.01
    draws = draw(made, ring(400), seed=3)
    phi = begin(made).basis(draws.x_t[3]).detach()
    weight, spread = (part.requires_grad_() for part in readout(phi, draws.x_0, tau))

    def cost(weight: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        var, square = tau + (phi @ spread).exp(), (draws.x_0 - phi @ weight).square()
        return 0.5 * ((tau + square) / var + var.log()).sum(1).mean()

    least = cost(weight, spread)
    for slope in torch.autograd.grad(least, (weight, spread)):
        assert float(slope.abs().max()) < 2e-3
    plain = torch.linalg.lstsq(phi, draws.x_0).solution
    flat = (draws.x_0 - phi @ plain).square().mean(0).log().expand(UNITS, 2)
    assert float(cost(plain, flat)) > float(least.detach()) + 1e-3


@pytest.fixture
def config(small: FitConfig) -> FitConfig:
    """A fit by projection, in a second or two."""
    network = RBFConfig(features=2, outputs=2, units=UNITS, T=small.process.T)
    keys = {"prediction": "x_0", "network": network.model_dump(), "projection": {}, "steps": 10}
    return FitConfig.model_validate(small.model_dump() | keys | {"batch": 150})


def test_a_fit_raises_the_bound_and_is_made_once(
    config: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New data are likelier by far than of readouts that are empty; a second run only reads."""
    options, place = RunOptions(out=tmp_path), Ranks(0, 1, torch.device("cpu"))
    fit = Fit(config, options, place)
    x_0 = fit.space.to_model(fit.dataset.valid)
    before = bound(fit.averaged, x_0, seed=0, convention="paper").bound.mean()
    assert fit.run()
    after = bound(fit.averaged, x_0, seed=0, convention="paper").bound
    assert bool(after.isfinite().all())
    assert float(after.mean()) > float(before) + 1.0
    monkeypatch.delattr(fit_module, "project")
    again = Fit(config, options, place)
    assert again.run()
    for name, tensor in again.averaged.network.state_dict().items():
        assert torch.equal(tensor, fit.averaged.network.state_dict()[name])


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"prediction": "v"}, r"leave out \[projection\]"),
        ({"schedule": {"learn": "beta"}}, "keeps the schedule"),
    ],
)
def test_a_projection_of_what_it_does_not_know_teaches(
    config: FitConfig, keys: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        FitConfig.model_validate(config.model_dump() | keys)
