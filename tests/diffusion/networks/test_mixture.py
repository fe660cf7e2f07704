"""The oracles, held against formulas they do not use: Tweedie's, quadrature, enumeration."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from diffusion.networks import (
    BitPatterns,
    BitPatternsConfig,
    GaussianMixture,
    GaussianMixtureConfig,
    build,
)
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from tests.diffusion.models import given_noisy

LOG_SNRS = [30.0, 13.3, 4.0, 0.3, 0.0, -0.3, -3.0, -12.0]


def gaussian_mixture(
    components: int = 3, features: int = 2, spread: float = 2.0
) -> GaussianMixture:
    generator = torch.Generator().manual_seed(components + 10 * features)
    a = torch.randn(components, features, features, generator=generator, dtype=torch.float64)
    weights = torch.rand(components, generator=generator, dtype=torch.float64) + 0.2
    means = spread * torch.randn(components, features, generator=generator, dtype=torch.float64)
    covariances = 0.3 * a @ a.mT + 0.05 * torch.eye(features, dtype=torch.float64)
    return GaussianMixture.from_values(weights / weights.sum(), means, covariances)


def bit_patterns(base_rate: float = 0.3) -> BitPatterns:
    patterns = torch.tensor([[0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]])
    return BitPatterns.from_values(torch.tensor([0.5, 0.3, 0.2]), patterns, base_rate)


def all_bits(features: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=features)))


def noisy(mixture: GaussianMixture, log_snr: Tensor) -> Tensor:
    """x_t for each log-SNR, float64."""
    rows = torch.arange(len(log_snr))
    x_0 = mixture.sample(counter_noise(3, rows, 0)).double()
    noise = counter_noise(4, rows, 0).normal(x_0.shape[1:]).double()
    log_snr = log_snr.double()[:, None]
    return log_snr.sigmoid().sqrt() * x_0 + (-log_snr).sigmoid().sqrt() * noise


# ---- Gaussian mixture ----


@pytest.mark.parametrize("log_snr", LOG_SNRS)
def test_mean_is_tweedies(log_snr: float) -> None:
    """E[x_0 | x_t] = (x_t + (1 - a) grad log q(x_t)) / sqrt(a) (Robbins 1956), by autograd."""
    mixture, time = gaussian_mixture(), torch.full((20,), log_snr)
    x_t = noisy(mixture, time).requires_grad_()
    (score,) = torch.autograd.grad(mixture.marginal_log_prob(x_t, time).sum(), x_t)
    a = time.double().sigmoid()[:, None]
    wanted = (x_t + (-time).double().sigmoid()[:, None] * score) / a.sqrt()
    mean, _ = mixture(x_t, time).chunk(2, dim=1)
    torch.testing.assert_close(mean, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("log_snr", LOG_SNRS)
def test_variance_is_the_jacobian_of_the_mean(log_snr: float) -> None:
    """Cov(x_0 | x_t) = (1 - a) / sqrt(a) d E[x_0 | x_t] / d x_t; its diagonal is the variance."""
    mixture, time = gaussian_mixture(), torch.full((1,), log_snr)
    root = time.double().sigmoid().sqrt()
    for x_t in noisy(mixture, time.expand(8)):
        jacobian = torch.autograd.functional.jacobian(lambda x: mixture(x[None], time)[0, :2], x_t)
        log_ratio = mixture(x_t[None], time)[0, 2:]
        torch.testing.assert_close(log_ratio.exp(), jacobian.diag() / root, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("log_snr", [6.0, 1.0, 0.0, -2.0])
def test_posterior_by_quadrature(log_snr: float) -> None:
    """In one dimension: moments of p(x_0) q(x_t | x_0) on a grid."""
    mixture, time = gaussian_mixture(features=1), torch.full((5,), log_snr)
    x_t = noisy(mixture, time)
    grid = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    a, v = 1 / (1 + math.exp(-log_snr)), 1 / (1 + math.exp(log_snr))
    log_joint = mixture.log_prob(grid[:, None]) - (x_t - math.sqrt(a) * grid).square() / (2 * v)
    p = log_joint.softmax(1)
    mean = p @ grid
    var = (p * (grid - mean[:, None]).square()).sum(1)
    out = mixture(x_t, time)
    torch.testing.assert_close(out[:, 0], mean, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(out[:, 1].exp() * v, var, rtol=1e-6, atol=1e-9)


def test_densities_integrate_to_one() -> None:
    mixture = gaussian_mixture()
    axis = torch.linspace(-15, 15, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    cell = float(axis[1] - axis[0]) ** 2
    assert abs(float(mixture.log_prob(grid).exp().sum()) * cell - 1) < 1e-6
    for log_snr in (2.0, -1.0, -torch.inf):
        density = mixture.marginal_log_prob(grid, torch.full((len(grid),), log_snr)).exp()
        assert abs(float(density.sum()) * cell - 1) < 1e-6


def test_log_prob_is_the_textbooks() -> None:
    mixture = gaussian_mixture(4, 3)
    x_0 = mixture.sample(counter_noise(0, torch.arange(50), 0)).double()
    each = torch.distributions.MultivariateNormal(mixture.means, mixture.covariances)
    wanted = (mixture.weights.log() + each.log_prob(x_0[:, None])).logsumexp(1)
    torch.testing.assert_close(mixture.log_prob(x_0), wanted)


def test_the_ends_are_exact() -> None:
    """No noise: x_0 itself, variance equal to the noise's; no signal: the prior's moments."""
    mixture = gaussian_mixture()
    x_t = noisy(mixture, torch.tensor([5.0, 5.0, 5.0]))
    clean, log_ratio = mixture(x_t, torch.full((3,), torch.inf)).chunk(2, dim=1)
    torch.testing.assert_close(clean, x_t)
    torch.testing.assert_close(log_ratio, torch.zeros_like(log_ratio), atol=1e-9, rtol=0)
    mean, log_ratio = mixture(x_t, torch.full((3,), -torch.inf)).chunk(2, dim=1)
    torch.testing.assert_close(mean, mixture.mean().expand(3, 2))
    torch.testing.assert_close(log_ratio.exp(), mixture.covariance().diag().expand(3, 2))


def test_gaussian_rows_and_dtypes() -> None:
    """A row alone is the row in a batch; float32 in, float32 out, gradients finite at the ends."""
    mixture = gaussian_mixture()
    time = torch.tensor([torch.inf, *LOG_SNRS, -torch.inf])
    x_t = noisy(mixture, time).float().requires_grad_()
    out = mixture(x_t, time)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    alone = torch.cat([mixture(x_t[i : i + 1], time[i : i + 1]) for i in range(len(time))])
    torch.testing.assert_close(alone, out, rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(out[:, :2].sum(), x_t)
    assert gradient.isfinite().all()


def test_far_away_nothing_breaks() -> None:
    """Where every component's density underflows, the nearest one (in its metric) answers."""
    mixture = gaussian_mixture()
    out = mixture(torch.full((len(LOG_SNRS), 2), 1e4), torch.tensor(LOG_SNRS))
    assert out.isfinite().all()


def test_gaussian_samples_have_the_moments() -> None:
    mixture, n = gaussian_mixture(), 40_000
    x_0 = mixture.sample(counter_noise(7, torch.arange(n), 0)).double()
    error = (mixture.covariance().diag() / n).sqrt()
    assert ((x_0.mean(0) - mixture.mean()).abs() < 4.5 * error).all()
    torch.testing.assert_close(x_0.T.cov(), mixture.covariance(), rtol=0.05, atol=0.05)
    # Their log-density is that of fresh draws of another generator.
    k = torch.multinomial(mixture.weights, n, True, generator=torch.Generator().manual_seed(1))
    root = torch.linalg.cholesky(mixture.covariances)[k]
    normal = torch.randn(n, 2, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours, other = (
        mixture.log_prob(x_0),
        mixture.log_prob(mixture.means[k] + (root @ normal)[..., 0]),
    )
    assert abs(float(ours.mean() - other.mean())) < 4.5 * float(other.std()) * math.sqrt(2 / n)


def test_posterior_given_noisy() -> None:
    """Kalman's update of each component, weighted by its evidence."""
    mixture, sigma = gaussian_mixture(3, 3), 0.7
    y = noisy(mixture, torch.tensor([20.0, 20.0]))
    mean, covariance = given_noisy(mixture, y, sigma)
    eye = torch.eye(3, dtype=torch.float64)
    for i in range(2):
        S = mixture.covariances + sigma**2 * eye
        evidence = torch.distributions.MultivariateNormal(mixture.means, S).log_prob(y[i])
        p = (mixture.weights.log() + evidence).softmax(0)
        gain = mixture.covariances @ torch.linalg.inv(S)
        m = mixture.means + (gain @ (y[i] - mixture.means)[..., None])[..., 0]
        second = (eye - gain) @ mixture.covariances + m[:, :, None] * m[:, None, :]
        wanted = p @ m
        torch.testing.assert_close(mean[i], wanted)
        both = torch.einsum("k,kij->ij", p, second) - torch.outer(wanted, wanted)
        torch.testing.assert_close(covariance[i], both)


def test_posterior_given_noisy_is_the_matched_starts() -> None:
    """With (1 - a) / a = sigma^2 and x_t = sqrt(a) y the network gives the same moments."""
    mixture, sigma = gaussian_mixture(), 0.5
    y = noisy(mixture, torch.full((4,), 3.0))
    log_snr = torch.full((4,), -2 * math.log(sigma), dtype=torch.float64)
    mean, covariance = given_noisy(mixture, y, sigma)
    found, log_ratio = mixture(log_snr.sigmoid().sqrt()[:, None] * y, log_snr).chunk(2, dim=1)
    torch.testing.assert_close(found, mean)
    var = log_ratio.exp() * (-log_snr).sigmoid()[:, None]
    torch.testing.assert_close(var, covariance.diagonal(dim1=1, dim2=2))


@pytest.mark.parametrize("log_snr", [12.0, 1.0, -7.0])
def test_told_it_is_the_posterior_of_both(log_snr: float) -> None:
    """E and Var of x_0 given x_t and y: Kalman's update with both as one linear observation."""
    mixture, D = gaussian_mixture(3, 4), 4
    time = torch.full((6,), log_snr)
    x_t, y = noisy(mixture, time), noisy(mixture, torch.full((6,), 30.0))
    dice = torch.Generator().manual_seed(0)
    known = torch.rand(6, D, generator=dice) < 0.6
    known[0] = False  # this row is told nothing, and shares the call
    std = torch.tensor([0.0, 0.1, 0.5, 2.0]).double()[torch.randint(0, 4, (6, D), generator=dice)]
    told = Observation.of_reals(y, known, std).to_network().inputs
    assert told is not None
    found = mixture(torch.cat((x_t, told), 1), time)
    a, v = 1 / (1 + math.exp(-log_snr)), 1 / (1 + math.exp(log_snr))
    eye = torch.eye(D, dtype=torch.float64)
    for i in range(6):
        rows = torch.cat((math.sqrt(a) * eye, eye[known[i]]))
        var = torch.cat((torch.full((D,), v).double(), std[i][known[i]].square()))
        posterior, _ = mixture.posterior(
            rows, torch.cat((x_t[i], y[i][known[i]])), var.clamp_min(1e-9)
        )
        torch.testing.assert_close(found[i, :D], posterior.mean(), rtol=1e-5, atol=1e-6)
        wanted = posterior.covariance().diag()
        torch.testing.assert_close(found[i, D:].exp() * v, wanted, rtol=1e-4, atol=1e-8)


def test_a_row_does_not_depend_on_what_others_are_told() -> None:
    mixture, time = gaussian_mixture(3, 4), torch.linspace(-5, 10, 6)
    x_t = noisy(mixture, time).float()
    known = torch.tensor([True, False, False, True]).repeat(6, 1)
    known[::2] = False
    told = Observation.of_reals(x_t, known, 0.3).to_network().inputs
    assert told is not None
    x = torch.cat((x_t, told), 1)
    together = mixture(x, time)
    torch.testing.assert_close(together[::2], mixture(x_t[::2], time[::2]), rtol=0, atol=1e-6)
    alone = torch.cat([mixture(x[i : i + 1], time[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    # Rows that are told alike at one time share their matrices.
    alike = torch.cat((x_t, told[1:2].expand(6, -1)), 1)
    together = mixture(alike, time[2:3].expand(6))
    alone = torch.cat([mixture(alike[i : i + 1], time[2:3]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


# ---- Bit patterns ----


def enumerated(oracle: BitPatterns, alpha_bar: float) -> tuple[Tensor, Tensor]:
    """q(x_t) [2^D] and P(x_0 = 1 | x_t) [2^D, D] for every x_t, from the joint table."""
    rho, D = oracle.config.base_rate, oracle.config.features
    x = all_bits(D).double()
    joint = torch.zeros(len(x), len(oracle.patterns), dtype=torch.float64)
    for (i, bits), (k, pattern) in itertools.product(enumerate(x), enumerate(oracle.patterns)):
        p = [
            q if bit else 1 - q
            for bit, q in zip(
                bits.tolist(), (pattern * alpha_bar + rho * (1 - alpha_bar)).tolist(), strict=True
            )
        ]
        joint[i, k] = float(oracle.weights[k]) * math.prod(p)
    return joint.sum(1), joint @ oracle.patterns / joint.sum(1, keepdim=True)


@pytest.mark.parametrize("alpha_bar", [0.999, 0.9, 0.5, 0.1, 0.0])
@pytest.mark.parametrize("base_rate", [0.5, 0.2])
def test_bits_by_enumeration(alpha_bar: float, base_rate: float) -> None:
    oracle = bit_patterns(base_rate)
    marginal, wanted = enumerated(oracle, alpha_bar)
    x_t = all_bits(4).double()
    time = torch.logit(torch.tensor(alpha_bar, dtype=torch.float64)).expand(len(x_t))
    torch.testing.assert_close(oracle.marginal_log_prob(x_t, time).exp(), marginal)
    torch.testing.assert_close(oracle.probabilities(x_t, time), wanted)
    logits = oracle(x_t, time)
    assert (logits.abs() <= 30).all()
    torch.testing.assert_close(logits.sigmoid(), wanted, rtol=1e-9, atol=1e-12)


def test_without_noise_only_patterns_can_be() -> None:
    oracle, x = bit_patterns(), all_bits(4)
    log_prob = oracle.log_prob(x)
    weights = {"0000": 0.5, "1010": 0.3, "1100": 0.2}
    wanted = [weights.get("".join(str(int(b)) for b in bits), 0.0) for bits in x.tolist()]
    torch.testing.assert_close(log_prob.exp(), torch.tensor(wanted, dtype=torch.float64))
    assert (log_prob == -torch.inf).sum() == 13
    # x_t that cannot be: no NaN, and the nearest pattern answers.
    out = oracle(x, torch.full((len(x),), torch.inf))
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    one_off = oracle(torch.tensor([[1.0, 0.0, 1.0, 1.0]]), torch.tensor([torch.inf]))
    assert (one_off > 0).tolist() == [[True, False, True, False]]


def test_no_log_snr_gives_nan() -> None:
    oracle, x = bit_patterns(), all_bits(4)
    for log_snr in (torch.inf, 500.0, 100.0, 40.0, -40.0, -100.0, -500.0, -torch.inf):
        time = torch.full((len(x),), log_snr)
        assert oracle(x, time).isfinite().all()
        assert not oracle.marginal_log_prob(x, time).isnan().any()
    prior = torch.full((len(x),), -torch.inf)
    torch.testing.assert_close(oracle.probabilities(x, prior), oracle.mean().expand(16, 4))


def test_the_same_pattern_twice_counts_twice() -> None:
    pattern = torch.tensor([[1, 0], [1, 0], [0, 1]])
    oracle = BitPatterns.from_values(torch.tensor([0.25, 0.25, 0.5]), pattern)
    assert oracle.log_prob(torch.tensor([[1.0, 0.0]])).exp().item() == pytest.approx(0.5)


def test_bit_rows() -> None:
    oracle, x = bit_patterns(), all_bits(4)
    time = torch.linspace(-5, 8, len(x))
    alone = torch.cat([oracle(x[i : i + 1], time[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(alone, oracle(x, time), rtol=0, atol=1e-6)


def test_bit_samples_have_the_frequencies() -> None:
    oracle, n = bit_patterns(), 20_000
    x_0 = oracle.sample(counter_noise(5, torch.arange(n), 0))
    assert x_0.dtype == torch.float32
    found = (x_0[:, None] == oracle.patterns).all(-1).double()
    assert (found.sum(1) == 1).all()
    error = (oracle.weights * (1 - oracle.weights) / n).sqrt()
    assert ((found.mean(0) - oracle.weights).abs() < 4.5 * error).all()


def test_the_posterior_is_bayes() -> None:
    """log p(x | y) = log p(x) + log p(y | x) - log p(y), at points."""
    oracle = gaussian_mixture()
    matrix, y = torch.tensor([[1.0, -0.5]]).double(), torch.tensor([0.4]).double()
    var = torch.tensor([0.2]).double()
    posterior, log_evidence = oracle.posterior(matrix, y, var)
    x = torch.randn(20, 2).double()
    likelihood = torch.distributions.Normal(x @ matrix[0], var.sqrt()).log_prob(y)
    wanted = oracle.log_prob(x) + likelihood - log_evidence
    torch.testing.assert_close(posterior.log_prob(x), wanted)


# ---- Both ----


@pytest.mark.parametrize(
    ("oracle", "config"),
    [
        (gaussian_mixture(), GaussianMixtureConfig(components=3, features=2)),
        (bit_patterns(), BitPatternsConfig(components=3, features=4, base_rate=0.3)),
    ],
    ids=["gaussian", "bits"],
)
def test_a_state_dict_restores_everything(
    oracle: nn.Module, config: GaussianMixtureConfig | BitPatternsConfig
) -> None:
    x = torch.ones(5, config.features)
    time = torch.tensor([torch.inf, 3.0, 0.0, -3.0, -torch.inf])
    loaded, copied = build(config), build(config)
    loaded.load_state_dict(oracle.state_dict())
    for name, tensor in copied.state_dict().items():  # as a loader that copies in place does
        tensor.copy_(oracle.state_dict()[name])
    for twin in (loaded, copied, loaded.float(), copied.to(torch.bfloat16)):
        assert twin.clock == "log_snr"
        assert torch.equal(twin(x, time), oracle(x, time))
        assert all(b.dtype == torch.float64 for b in twin.buffers())


def test_bad_values_teach() -> None:
    eye = torch.eye(2).repeat(2, 1, 1)
    half = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="sum to 1"):
        GaussianMixture.from_values(torch.tensor([0.5, 0.6]), torch.zeros(2, 2), eye)
    with pytest.raises(ValueError, match=r"\[2, 3, 3\] is wanted"):
        GaussianMixture.from_values(half, torch.zeros(2, 3), eye)
    with pytest.raises(ValueError, match="above 0"):
        GaussianMixture.from_values(half, torch.zeros(2, 2), 0 * eye)
    skewed = eye + torch.tensor([[0.0, 0.5], [0.0, 0.0]])
    with pytest.raises(ValueError, match="symmetric"):
        GaussianMixture.from_values(half, torch.zeros(2, 2), skewed)
    with pytest.raises(ValueError, match="write bits"):
        BitPatterns.from_values(half, torch.full((2, 3), 0.5))
    with pytest.raises(ValueError, match="is wanted"):
        BitPatterns.from_values(half, torch.zeros(3, 3))


# ---- What a mixture is told ----


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("log_snr", [8.0, 0.3, -3.0, -12.0])
def test_a_mixture_that_is_told_conditions_on_both(log_snr: float, noise: float) -> None:
    """E and Var of x_0 given x_t and y, both numbers that are linear in x_0."""
    mixture, time = gaussian_mixture(features=3), torch.full((6,), log_snr)
    x_t, known = noisy(mixture, time), torch.tensor([True, False, True])
    y = torch.linspace(-1, 1, 18).view(6, 3).double()
    seen = Observation.of_reals(y, known, noise).to_network()
    assert seen.inputs is not None
    mean, log_var = mixture(torch.cat((x_t, seen.inputs), 1), time).chunk(2, 1)
    signal, rest = float(time[0].double().sigmoid()), float((-time[0].double()).sigmoid())
    eye = torch.eye(3).double()
    matrix = torch.cat((math.sqrt(signal) * eye, eye[known]))
    var = torch.tensor([rest] * 3 + [noise**2 + 1e-9] * 2).double()
    for i in range(6):
        found, _ = mixture.posterior(matrix, torch.cat((x_t[i], y[i, known])), var)
        torch.testing.assert_close(mean[i], found.mean(), rtol=1e-4, atol=1e-5)
        wanted = found.covariance().diagonal()[~known]
        torch.testing.assert_close(log_var[i, ~known].exp() * rest, wanted, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("make", [gaussian_mixture, bit_patterns])
def test_a_row_that_is_told_nothing_has_its_bits_beside_others(
    make: Callable[[], GaussianMixture | BitPatterns],
) -> None:
    mixture = make()
    D = mixture.config.features
    x_t = (torch.arange(6 * D).view(6, D) % 2).float()
    time = torch.linspace(-6, 6, 6)
    told = torch.zeros(6, 3 * D)
    told[::2] = 0.9  # values, shares and precisions
    beside = mixture(torch.cat((x_t, told), 1), time)
    alone = mixture(x_t, time)
    assert torch.equal(beside[1::2], alone[1::2])
    assert not torch.equal(beside[::2], alone[::2])
