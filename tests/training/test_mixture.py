"""Mixtures of tables with gaps: what they recover, and how they are chosen."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.table import Category, Number, TableSpace
from training import mixture

BASE = [[0.5, 0.5]]
SPACE = TableSpace(
    columns=(
        *(Number(name=name, knots=(-1.0, 1.0), scores=(-1.0, 1.0)) for name in "abc"),
        Category(name="kind", labels=("x", "y")),
    )
)


def rows(count: int, gaps: float) -> Tensor:
    """Correlated numbers whose means go with the kind; cells are gaps at random."""
    dice = torch.Generator().manual_seed(0)
    kind = (torch.rand(count, 1, generator=dice) < 0.3).double()
    turn = torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.5, -0.4], [0.0, 0.0, 0.7]]).double()
    x = torch.randn(count, 3, generator=dice).double() @ turn + 3 * kind * torch.tensor([1, 0, -1])
    found = torch.cat((x, kind), 1)
    return found.masked_fill(torch.rand(found.shape, generator=dice) < gaps, torch.nan)


def test_gaps_cost_little_of_what_a_mixture_recovers() -> None:
    """Components by kind: means, covariances and probabilities with a fifth of the cells gone."""
    full = mixture.fit(mixture.Cells.of(SPACE, rows(2000, 0.0), BASE), mixture.Choice(2))
    some = mixture.fit(mixture.Cells.of(SPACE, rows(2000, 0.2), BASE), mixture.Choice(2))
    for found in (full, some):
        assert found.gaussians is not None
        order = found.p[:, 1].argsort()
        assert_close(found.weights[order], torch.tensor([0.7, 0.3]).double(), rtol=0, atol=0.03)
        assert_close(found.p[order, 1], torch.tensor([0.0, 1.0]).double(), rtol=0, atol=0.02)
        means = torch.tensor([[0.0, 0, 0], [3, 0, -3]]).double()
        assert_close(found.gaussians.means[order], means, rtol=0, atol=0.12)
        turn = torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.5, -0.4], [0.0, 0.0, 0.7]]).double()
        covariances = (turn.T @ turn).expand(2, 3, 3)
        assert_close(found.gaussians.covariances[order], covariances, rtol=0, atol=0.12)


def test_as_many_components_are_chosen_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "COMPONENTS", (2, 3, 5))
    monkeypatch.setattr(mixture, "SHRINKAGE", (0.0, 0.3))
    cells = mixture.Cells.of(SPACE, rows(300, 0.1), BASE)
    chosen = mixture.choose(cells)
    assert chosen.components in (2, 3)
    assert mixture.score(cells, chosen) > mixture.score(cells, mixture.Choice()) + 0.2


def test_numbers_on_a_lattice_have_no_spikes() -> None:
    """Ten thousand equal values are not a component as narrow as can be: the mass is at most 1."""
    column = Number(name="n", knots=(0.0, 2.0), scores=(-1.0, 1.0), step=1.0, low=0.0)
    space = TableSpace(columns=(column,))
    x = torch.tensor([[0.0]] * 700 + [[1.0]] * 200 + [[4.0]] * 100)
    cells = mixture.Cells.of(space, x.double(), [])
    found = mixture.fit(cells, mixture.Choice(3))
    mass = found.log_prob(cells.z, cells.known) + mixture.in_data_units(space, x.double())
    assert float(mass.max()) < 0.35
    assert float(mass.mean()) > -1.3  # the entropy is .80 nats
