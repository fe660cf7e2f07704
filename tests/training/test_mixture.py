"""Mixtures of tables with gaps: what they recover, and how they are chosen."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.networks import TableMixture
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


def test_the_spread_makes_up_for_few_rows() -> None:
    """60 rows of 12 columns make conditional deviations too small; a mixture of many is right."""
    columns = tuple(Number(name=f"c{i}", knots=(-1.0, 1.0), scores=(-1.0, 1.0)) for i in range(12))
    space = TableSpace(columns=columns)
    dice = torch.Generator().manual_seed(3)
    turn = torch.randn(12, 12, generator=dice).double() / 2
    x = torch.randn(4000, 12, generator=dice).double() @ turn
    few, many = (mixture.Cells.of(space, part, []) for part in (x[:60], x[60:]))
    shares, _ = mixture.covered(few, mixture.Choice())
    assert shares[1.0] < 0.83
    assert sorted(shares.values()) == list(shares.values())
    spread = min(shares, key=lambda each: abs(shares[each] - mixture.LEVEL))
    assert spread > 1.1
    cover = _cover(mixture.fit(few, mixture.Choice(spread=spread)), many)
    assert cover == pytest.approx(0.9, abs=0.05)  # it was chosen by mixtures of 48 rows
    assert _cover(mixture.fit(few, mixture.Choice()), many) < 0.87
    assert mixture.covered(many, mixture.Choice())[0][1.0] == pytest.approx(0.9, abs=0.015)


def _cover(found: TableMixture, cells: mixture.Cells) -> float:
    """The share of a third of the numbers within 90% intervals given the others."""
    seen = cells.known.clone()
    seen[:, :4] = False
    place = found.places(cells.z, seen, cells.ends)[0][:, :4]
    return float(((place - 0.5).abs() < 0.45).double().mean())


def test_a_place_of_a_number_on_a_lattice_is_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coins: F is known at the ends of the two cells, and half an interval covers half of one."""
    column = Number(name="n", knots=(0.0, 1.0), scores=(-1.0, 1.0), step=1.0, low=0.0, high=1.0)
    space = TableSpace(columns=(column,))
    x = torch.tensor([[0.0], [1.0]] * 200).double()
    cells = mixture.Cells.of(space, x, [])
    assert cells.ends[0, 0] == -torch.inf
    assert cells.ends[1, 1] == torch.inf
    seen = torch.zeros_like(cells.known)
    low, high = mixture.fit(cells, mixture.Choice()).places(cells.z, seen, cells.ends)
    assert_close(low[:2, 0], torch.tensor([0.0, 0.5]).double(), atol=0.01, rtol=0)
    assert_close(high[:2, 0], torch.tensor([0.5, 1.0]).double(), atol=0.01, rtol=0)
    monkeypatch.setattr(mixture, "HIDDEN", 1.0)
    shares, _ = mixture.covered(cells, mixture.Choice())
    assert shares[1.0] == pytest.approx(0.9, abs=0.01)


def test_rows_of_a_group_are_in_one_fold() -> None:
    cells = mixture.Cells.of(SPACE, rows(100, 0.0), BASE, torch.arange(100) // 4)
    for out, rest in cells.folds():
        assert not set(out.group.tolist()) & set(rest.group.tolist())
        assert len(out.z) == 20
