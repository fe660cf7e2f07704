"""A table's mixture against enumeration and exact likelihoods: of categories, gaps and bounds."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.likelihood.bound import bound
from diffusion.model import DiffusionModel
from diffusion.networks import MLPConfig, TableMixture, TableNetwork, TableNetworkConfig
from diffusion.networks.table_mixture import FAR
from diffusion.noise import counter_noise
from diffusion.operators import Mask
from diffusion.posterior import Auto, Twisted, sample_posterior
from diffusion.process import MixedConfig
from diffusion.samplers import Ancestral
from diffusion.schedule import LogSnrSchedule
from diffusion.table import Category, Number, TableSpace

NAN = math.nan
PI = (0.3, 0.3, 0.4)
W = torch.tensor([0.35, 0.65], dtype=torch.float64)
MEANS = torch.tensor([[-1.1, 0.8], [0.7, -0.4]], dtype=torch.float64)
COVARIANCES = torch.tensor(
    [[[0.3, 0.15], [0.15, 0.4]], [[0.2, -0.1], [-0.1, 0.5]]], dtype=torch.float64
)
P = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], dtype=torch.float64)
STEP = 0.25
SPACE = TableSpace(
    columns=(
        Number(name="size", knots=(-2.0, 2.0), scores=(-1.0, 1.0)),
        Category(name="kind", labels=("a", "b", "c")),
        Number(name="count", knots=(0.0, 1.0), scores=(0.0, STEP), step=1.0),
    )
)


@pytest.fixture
def mixture() -> TableMixture:
    return TableMixture.from_values([PI], W, MEANS, COVARIANCES, P)


@pytest.fixture
def model(mixture: TableMixture) -> DiffusionModel:
    process = MixedConfig.of_table(SPACE, 120, LogSnrSchedule(first=9.0, last=-9.0), [PI])
    return DiffusionModel(process.build(), mixture, SPACE, "x_0", "moment").eval()


def drawn(mixture: TableMixture, rows: int) -> Tensor:
    """Rows in data units, the counts rounded to their lattice."""
    return SPACE.to_data(mixture.sample(counter_noise(3, torch.arange(rows), 0)))


def log_p(x: Tensor) -> Tensor:
    """The log-density of the size, in data units, times the mass of the count and of the kind."""
    size, kind, count = x.unbind(1)
    total = torch.zeros(len(x), 2, dtype=torch.float64)
    for k in range(2):
        (mu, nu), C = MEANS[k], COVARIANCES[k]
        here = torch.where(size.isnan(), mu, size / 2)
        slope = torch.where(size.isnan(), 0.0, C[0, 1] / C[0, 0])
        given = nu + slope * (here - mu)
        spread = (C[1, 1] - slope * C[0, 1]).sqrt()
        of_size = torch.distributions.Normal(mu, C[0, 0].sqrt()).log_prob(here) - math.log(2)
        normal = torch.distributions.Normal(given, spread)
        n = count.nan_to_num()
        mass = normal.cdf((n + 0.5) * STEP) - normal.cdf((n - 0.5) * STEP)
        of_kind = P[k][kind.nan_to_num().long()].log()
        parts = (of_size, size), (mass.log(), count), (of_kind, kind)
        total[:, k] = W[k].log() + sum(torch.where(at.isnan(), 0.0, part) for part, at in parts)
    return total.logsumexp(1)


@pytest.mark.parametrize("gone", [(), (0,), (1, 2)])
def test_the_bound_of_three_kinds_of_columns_is_tight(
    model: DiffusionModel, mixture: TableMixture, gone: tuple[int, ...]
) -> None:
    """The mixture of the counts' rounded values is near a mixture of Normals, h^2 / 12 wider."""
    assert mixture.gaussians is not None
    wide = COVARIANCES + torch.diag(torch.tensor([0.0, STEP**2 / 12]))
    model.network = TableMixture.from_values([PI], W, MEANS, wide, P)
    x = drawn(mixture, 160)
    x[:, list(gone)] = NAN
    found = bound(
        model, SPACE.to_model(x), seed=1, convention="density", batch=4000,
        observation=model.left_out(x),
    )  # fmt: skip
    gap = log_p(x) - found.bound
    error = float(found.standard_error.square().sum().sqrt() / len(x))
    assert abs(float(gap.mean())) < 4 * error + 0.02
    assert 4 * error < 0.4


def test_predictions_are_those_of_enumeration(mixture: TableMixture) -> None:
    """P(kind | x_t, count, gap in size), with the count seen and the size not there."""
    noise = counter_noise(0, torch.arange(6), 0)
    x_t = noise.normal((5,))
    x_t[:, 2:] = torch.eye(3).repeat(2, 1)
    snr = torch.linspace(-2, 2, 6)
    y = torch.linspace(-1, 1, 6)
    told = torch.zeros(6, 15)
    told[:, 1], told[:, 6], told[:, 11], told[:, 10] = y, 1.0, 1.0, -1.0
    found = mixture.given(torch.cat((x_t, told), 1), snr)
    signal = snr.double().sigmoid()[:, None]
    reached = signal[:, None] * torch.eye(3) + (1 - signal[:, None]) * torch.tensor(PI)
    likelihood = torch.einsum("bij,bj->bi", reached, x_t[:, 2:].double())
    spread = COVARIANCES[:, 1, 1].sqrt()
    of_y = torch.distributions.Normal(MEANS[:, 1], spread).log_prob(y.double()[:, None])
    r = (W.log() + of_y + (likelihood @ P.T).log()).softmax(1)
    parts = P * likelihood[:, None]
    p = (r[:, :, None] * parts / parts.sum(2, keepdim=True)).sum(1)
    assert_close(found[:, 2:5].exp(), p.float(), rtol=1e-4, atol=1e-5)
    assert_close(found[:, 1], y, rtol=1e-4, atol=1e-4)
    # The size is not there: its x_t says nothing.
    x_t[:, 0] = 100.0
    assert_close(mixture.given(torch.cat((x_t, told), 1), snr), found)


def test_rows_that_are_told_alike_are_as_rows_that_are_not(mixture: TableMixture) -> None:
    n = 12
    x_t = mixture.sample(counter_noise(1, torch.arange(n), 0))
    told = torch.zeros(n, 15)
    told[:, 0], told[:, 5], told[:, 10] = 0.4, 1.0, 1.0
    together = mixture.given(torch.cat((x_t, told), 1), torch.zeros(n))
    alone = [mixture.given(torch.cat((x_t[i], told[i]))[None], torch.zeros(1)) for i in range(n)]
    assert_close(together, torch.cat(alone))


def test_what_is_known_of_some_cells_is_exact(mixture: TableMixture) -> None:
    x = drawn(mixture, 50)
    x[::2, 0], x[::3, 1], x[1::2, 2] = NAN, NAN, NAN
    z, known = SPACE.to_model(x), ~SPACE.gaps(x)  # type: ignore[operator]
    total = torch.zeros(50, 2, dtype=torch.float64)
    for k in range(2):
        for i in range(50):
            seen = known[i, :2]
            if bool(seen.any()):
                mean, covariance = MEANS[k][seen], COVARIANCES[k][seen][:, seen]
                normal = torch.distributions.MultivariateNormal(mean, covariance)
                total[i, k] = normal.log_prob(z[i, :2][seen].double())
        total[:, k] += W[k].log() + (z[:, 2:] @ P[k].float() + ~known[:, 2]).log()
    assert_close(mixture.log_prob(z, known), total.logsumexp(1), rtol=1e-5, atol=1e-5)


def test_posteriors_of_a_table_are_drawn_by_the_network(model: DiffusionModel) -> None:
    """P(kind | size) of draws against the exact one, of the network and of particles."""
    x = torch.tensor([[-2.0, NAN, NAN], [1.5, NAN, NAN]], dtype=torch.float64)
    y, _ = model.process.observe(SPACE, Mask(), x, ~x.isnan(), torch.zeros(1))
    learned = Auto().resolve(model, y)
    assert learned.name == "learned"
    size = torch.distributions.Normal(MEANS[:, 0], COVARIANCES[:, 0, 0].sqrt())
    r = (W.log() + size.log_prob(x[:, :1] / 2)).softmax(1)
    for method, n in ((learned, 500), (Twisted(particles=16), 200)):
        found = sample_posterior(model, y, n, seed=5, method=method, sampler=Ancestral(steps=30))
        kinds = SPACE.to_data(found.samples.flatten(0, 1))[:, 1].view(2, -1).long()
        share = torch.stack([row.bincount(minlength=3) / n for row in kinds])
        assert bool(((share - r @ P).abs() < 4 * (0.25 / n) ** 0.5 + 0.02).all())


def test_a_correction_starts_from_the_mixture(mixture: TableMixture) -> None:
    correction = MLPConfig(features=5, width=8, depth=2, conditional=True, clock="log_snr")
    network = TableNetwork(TableNetworkConfig(base=mixture.config, correction=correction))
    network.place(mixture)
    x_t = mixture.sample(counter_noise(1, torch.arange(7), 0))
    snr = torch.linspace(-3, 3, 7)
    assert_close(network(x_t, snr), mixture(x_t, snr))
    torch.nn.init.ones_(network.correction.readout.bias)  # type: ignore[arg-type]
    moved = network(x_t, snr) - mixture(x_t, snr)
    log_sd = (mixture(x_t, snr)[:, 5:7] + (-snr[:, None]).sigmoid().log()) / 2
    assert_close(moved[:, :2], log_sd.exp())
    assert_close(moved[:, 2:5], torch.ones(7, 3))


def test_numbers_settle_on_their_lattice() -> None:
    """A Normal restricted to a lattice by enumeration of 200 of its values."""
    column = Number(name="n", knots=(0.0, 4.0, 9.0), scores=(-1.0, 0.5, 1.2), step=1.0, low=0.0)
    mean = torch.tensor([-1.1, -0.42, 0.48, 0.6, 1.0], dtype=torch.float64)
    var = torch.tensor([0.05, 0.01, 0.02, 1e-4, 4.0], dtype=torch.float64)
    found, spread = (
        moment[:, 0] for moment in TableSpace(columns=(column,)).settle(mean[:, None], var[:, None])
    )
    z = column.to_model(torch.arange(200.0))
    p = (-0.5 * (z - mean[:, None]).square() / var[:, None]).softmax(1)
    exact = (p * z).sum(1)
    variance = (p * (z - exact[:, None]).square()).sum(1)
    assert_close(found[:4], exact[:4], rtol=1e-4, atol=1e-6)
    assert_close(spread[:4], variance[:4], rtol=1e-3, atol=1e-6)
    assert (found[4], spread[4]) == (mean[4], var[4])  # wider than a cell


def test_a_table_of_categories_alone_and_of_numbers_alone() -> None:
    codes = TableMixture.from_values([PI], W, MEANS[:, :0], COVARIANCES[:, :0, :0], P)
    x_t = torch.eye(3)
    assert_close(codes.given(x_t, torch.full((3,), -40.0)).exp(), (W @ P).float().expand(3, -1))
    assert codes.sample(counter_noise(0, torch.arange(4), 0)).sum(1).tolist() == [1] * 4
    numbers = TableMixture.from_values([], W, MEANS, COVARIANCES, P[:, :0])
    x = torch.tensor([[0.3, -0.2]])
    assert numbers.gaussians is not None
    assert_close(numbers.log_prob(x), numbers.gaussians.log_prob(x), rtol=1e-6, atol=1e-6)
    told = torch.cat((x, torch.zeros(1, 6)), 1)
    assert_close(numbers(told, torch.zeros(1)), numbers.gaussians(x, torch.zeros(1)))


def test_a_wrong_number_that_was_seen_is_kept_and_moves_others_no_further(
    model: DiffusionModel,
) -> None:
    """A size of 5 deviations and one of a thousand leave the count with the same posterior."""
    x = torch.tensor([[2 * FAR, NAN, NAN], [2000.0, NAN, NAN]], dtype=torch.float64)
    known = ~x.isnan()
    seen, _ = model.process.observe(SPACE, Mask(), x.nan_to_num(), known, torch.zeros_like(x))
    same = [
        sample_posterior(
            model, seen.rows(torch.tensor([i])), 50, seed=1, sampler=Ancestral(steps=20)
        )
        for i in (0, 1)
    ]
    low, high = (SPACE.to_data(each.samples.flatten(0, 1)) for each in same)
    assert_close(low[:, 1:], high[:, 1:])
    assert_close(high[:, 0], torch.full((50,), 2000.0).double())
    assert len(low[:, 2].unique()) > 5


@pytest.mark.parametrize("log_snr", [-3.0, 2.0, 11.0])
def test_a_wrong_number_moves_no_other(mixture: TableMixture, log_snr: float) -> None:
    """At x_t of 50 deviations and of 5,000 only its own prediction differs, and is near."""
    snr = torch.full((2,), log_snr)
    signal, noise = snr.double().sigmoid(), (-snr.double()).sigmoid()
    off = torch.tensor([50.0, 5000.0]).double()
    x_t = torch.tensor([[0.0, -0.3, 0, 1, 0]] * 2)
    x_t[:, 0] = (signal.sqrt() * off).float()
    found = mixture.given(x_t, snr)
    assert_close(found[0, 1:5], found[1, 1:5])
    precision = signal / noise
    assert_close(found[:, 0].double(), off * precision / (1 + precision), rtol=1e-4, atol=0)
    assert_close(found[:, 5].double().exp() * noise, 1 / (1 + precision), rtol=1e-4, atol=0)


def test_even_precisions_need_no_matrix(mixture: TableMixture) -> None:
    assert mixture.gaussians is not None
    P = torch.tensor([[1e-9], [0.3], [40.0], [1e9]]).double()
    pulled = P * torch.linspace(-2, 2, 8).double().view(4, 2)
    quick = mixture.gaussians.conditioned_evenly(P, pulled)
    slow = mixture.gaussians.conditioned(P.expand(4, 2), pulled)
    for a, b in zip(quick, slow, strict=True):
        assert_close(a, b, rtol=1e-6, atol=1e-9)
