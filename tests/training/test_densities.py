"""Simple densities are densities, and cross-validation finds the one that drew the rows."""

import math

import numpy as np
import pytest
import torch

from training import densities
from training.densities import Choice


def classes(count: int) -> torch.Tensor:
    dice = np.random.default_rng(0)
    p = np.where(dice.random((3, 30)) < 0.5, 0.9, 0.1)
    return torch.from_numpy((dice.random((count, 30)) < p[dice.integers(0, 3, count)]) * 1.0)


def two(count: int) -> torch.Tensor:
    dice = np.random.default_rng(1)
    rows = dice.normal(size=(count, 2)) @ np.array([[1.0, 0.0], [0.9, 0.2]])
    rows[: count // 2] += [4.0, -4.0]
    return torch.from_numpy(dice.permutation(rows))


def test_classes_of_bits_are_found() -> None:
    rows = classes(500)
    assert densities.choose(rows[:300], bits=True) == Choice(3)
    found = densities.fit(rows[:300], Choice(3), 0.5).log_prob(rows[300:]).mean()
    alone = densities.fit(rows[:300], Choice(1), 0.5).log_prob(rows[300:]).mean()
    assert float(found - alone) > 3.0


def test_two_groups_are_found_and_one_is_left_whole() -> None:
    rows = two(300)
    choice = densities.choose(rows, bits=False)
    assert choice.components >= 2
    gain = densities.fit(rows, choice).log_prob(two(300)) - densities.gaussian(
        rows, shrunk=False
    ).log_prob(two(300))
    assert float(gain.mean()) > 0.3
    plain = torch.from_numpy(np.random.default_rng(2).normal(size=(200, 3)))
    assert densities.choose(plain, bits=False).components == 1


@pytest.mark.parametrize(
    "choice", [Choice(1), Choice(1, shrunk=True), Choice(2), Choice(2, starts=2)]
)
def test_a_density_has_mass_one(choice: Choice) -> None:
    model = densities.fit(two(200), choice)
    assert len(model.weights) == choice.components * choice.starts
    line = torch.linspace(-12, 12, 600, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    mass = model.log_prob(grid).exp().sum() * (24 / 599) ** 2
    assert float(mass) == pytest.approx(1, abs=0.01)


def test_maximum_likelihood_is_the_sample_covariance() -> None:
    rows = two(100)
    found = densities.gaussian(rows, shrunk=False)
    assert torch.allclose(found.covariance(), rows.mT.cov(correction=0), atol=1e-5)
    shrunk = densities.gaussian(rows, shrunk=True).covariance()
    assert float(shrunk[0, 1] / found.covariance()[0, 1]) < 1
    assert float(shrunk.trace()) == pytest.approx(float(found.covariance().trace()), rel=1e-4)
    alone = densities.independent(rows).log_prob(rows).mean()
    each = -0.5 * (rows.var(0, correction=0).log() + 1 + math.log(2 * math.pi)).sum()
    assert float(alone) == pytest.approx(float(each), abs=1e-4)


@pytest.mark.parametrize("rows", [50, 300])
def test_columns_that_say_the_same_have_a_density_still(rows: int) -> None:
    x = two(rows)
    x = torch.cat((x, x[:, :1] + x[:, 1:]), 1)  # no density, were it not for a floor
    x[: rows // 2] = x[0]  # half of them the same row
    choice = densities.choose(x, bits=False)
    assert bool(densities.fit(x, choice).log_prob(x).isfinite().all())
