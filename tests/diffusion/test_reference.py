"""Where examples stand among held-out ones: uniform if they are such, far out if they are not."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion.artefact import ArtefactError
from diffusion.likelihood import reference
from diffusion.likelihood.bound import closed_last, draw_terms, prior_part
from diffusion.likelihood.estimator import Choice
from diffusion.likelihood.reference import Reference, Standing, fingerprint, measure
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.noise import counter_noise
from diffusion.space import Convention
from tests.diffusion import models
from tests.diffusion.bounds import few_bits

T, NEW = 60, 500
ONE_IN_A_THOUSAND = 1.95 * math.sqrt(1 / NEW + 1 / reference.MOST)
Known = tuple[DiffusionModel, Reference]


def vectors() -> GaussianMixture:
    means = torch.tensor([[0.8, -0.6, 0.2, 0.1], [-0.7, 0.5, 0.4, -0.9]]).double()
    cov = torch.diag(torch.tensor([0.2, 0.05, 0.1, 0.02])).double().expand(2, 4, 4)
    return GaussianMixture.from_values(torch.tensor([0.3, 0.7]), means, cov)


def drawn(network: GaussianMixture | BitPatterns, seed: int, count: int) -> Tensor:
    return network.sample(counter_noise(seed, torch.arange(count), 0)).double()


@pytest.fixture(scope="module")
def known() -> Known:
    network = vectors()
    model = models.gaussian(network, T)
    return model, measure(model, drawn(network, 1, reference.MOST), batch=2**15)


def stand(
    known: Known, x_0: Tensor, choice: Choice, convention: Convention = "density", seed: int = 3
) -> Standing:
    model, held_out = known
    steps = choice.resolve(model, torch.arange(len(x_0)), seed, convention)
    values = draw_terms(model, x_0, steps, seed=seed, convention=convention, batch=2**15)
    prior, closed = prior_part(model, x_0, convention), closed_last(model, x_0, convention)
    return held_out.stand(steps, convention, values, prior, closed)


def from_uniform(found: Tensor) -> float:
    """Kolmogorov and Smirnov's distance."""
    ordered, ranks = found.sort().values, torch.arange(len(found)) / len(found)
    return float(torch.maximum(ordered - ranks, ranks + 1 / len(found) - ordered).max())


@pytest.mark.parametrize("convention", ["density", "paper"])
@pytest.mark.parametrize("terms", [4, 5, 8, 20, 40, None])
def test_new_held_out_examples_stand_anywhere(
    known: Known, terms: int | None, convention: Convention
) -> None:
    """Uniform at any number of terms, by Kolmogorov and Smirnov at one in a thousand."""
    model, _ = known
    assert isinstance(model.network, GaussianMixture)
    found = stand(known, drawn(model.network, 2, NEW), Choice(terms=terms), convention)
    assert from_uniform(found.rarer_than) < ONE_IN_A_THOUSAND
    assert from_uniform(found.typicality) < ONE_IN_A_THOUSAND
    assert float((found.rarer_than == 1).double().mean()) < 0.02


def test_new_bits_stand_anywhere() -> None:
    network = few_bits(0.5)
    model = models.binomial(network, T)
    known = model, measure(model, drawn(network, 1, reference.MOST), batch=2**15)
    for terms in (8, 20, None):
        found = stand(known, drawn(network, 2, NEW), Choice(terms=terms), "discretised")
        assert from_uniform(found.rarer_than) < ONE_IN_A_THOUSAND
        assert from_uniform(found.typicality) < ONE_IN_A_THOUSAND


def test_likely_is_not_typical() -> None:
    """The mode of many dimensions is likelier than most, and unlike all: its bands tell, and not
    their sum, in which those of little noise outweigh what those of more noise show."""
    size = 64
    one = torch.eye(size).double()[None]
    network = GaussianMixture.from_values(torch.ones(1), torch.zeros(1, size), one)
    model = models.gaussian(network, 30)
    known = model, measure(model, drawn(network, 1, reference.MOST), batch=2**15)
    least = 1 / (1 + reference.MOST)
    odd = torch.stack((torch.zeros(size), torch.full((size,), 2.0))).double()
    for terms in (10, 20, None):
        found = stand(known, odd, Choice(terms=terms))
        assert float(found.rarer_than[0]) < 0.6
        assert float(found.rarer_than[1]) == 1
        assert [float(band.rarer_than[0]) for band in found.bands if band.final == 30] == [0, 0]
        assert found.typicality.tolist() == pytest.approx([least, least])
        assert [band.name for band in found.bands[:2]] == ["prior", "last"]
        spans = [(band.first, band.final) for band in found.bands[2:]]
        assert (spans[0][0], spans[-1][1]) == (2, 30)
        assert all(b[0] == a[1] + 1 for a, b in pairwise(spans))


def test_what_is_no_number_is_the_farthest(known: Known) -> None:
    model, held_out = known
    steps = Choice(terms=20).resolve(model, torch.arange(2), 0, "density")
    values = torch.full((2, 20), -1.0).double()
    values[0, 9], values[1, 9] = math.nan, -math.inf
    found = held_out.stand(steps, "density", values, torch.zeros(2).double(), None)
    assert bool(found.rarer_than[0].isnan())
    assert float(found.rarer_than[1]) == 1
    assert found.typicality.tolist() == pytest.approx([1 / (1 + reference.MOST)] * 2)


def test_a_reference_survives_its_file_and_knows_its_model(known: Known, tmp_path: Path) -> None:
    model, held_out = known
    assert reference.read(tmp_path, model) is None
    path = reference.write(tmp_path, model, held_out)
    found = reference.read(tmp_path, model)
    assert found is not None
    assert torch.allclose(found.values, held_out.values, rtol=1e-3, atol=1e-5)
    assert torch.equal(found.edges, held_out.edges)
    other = models.gaussian(vectors(), T)
    with torch.no_grad():
        next(iter(other.network.buffers())).mul_(1.01)
    assert fingerprint(other) != fingerprint(model)
    with pytest.raises(ArtefactError, match="another model"):
        reference.read(tmp_path, other)
    path.write_bytes(b"torn")
    with pytest.raises(ArtefactError, match="training reference"):
        reference.read(tmp_path, model)
    with pytest.raises(ValueError, match="no finite number"):
        reference.write(tmp_path, model, replace(held_out, values=held_out.values / 0))


def test_few_held_out_examples_tell_nothing(known: Known) -> None:
    _, held_out = known
    few = replace(held_out, values=held_out.values[:10])
    assert "10 held-out" in str(few.refusal("density"))
    assert "convention" in str(held_out.refusal("discretised"))
    assert held_out.refusal("paper") is None
