"""The bound: against enumeration, exact answers and itself.

Terms are sums over elements, so a term's expectation over its noise is a Gauss and Hermite rule
with the same node in every element. Where a term is quadratic in the noise, as it is for one
Gaussian, two nodes give its expectation to the last digit: no sampling error.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.bound import (
    BoundResult,
    bits,
    bound,
    check_convention,
    choose_steps,
    closed_last,
    discretised_log_prob,
    evaluate,
    min_terms,
    null_log_prob,
    prior_part,
    terms,
)
from diffusion.distributions import Normal
from diffusion.model import DiffusionModel
from diffusion.networks import MLP, BitPatterns, GaussianMixture, MLPConfig
from diffusion.noise import Noise, counter_noise
from diffusion.process import BinomialProcess, GaussianProcess
from diffusion.schedule import (
    CosineSchedule,
    InverseTimeSchedule,
    LinearSchedule,
    LogSnrSchedule,
    Schedule,
)
from diffusion.space import Convention, DataSpace

CONVENTIONS: list[Convention] = ["discretised", "density", "paper"]
EVERY_LEVEL = torch.arange(256, dtype=torch.float64) / 127.5 - 1
LEVELS = DataSpace(kind="vector", shape=(1,), shift=127.5, scale=127.5, levels=256)


def gaussian(
    network: GaussianMixture,
    T: int,
    schedule: Schedule | None = None,
    space: DataSpace | None = None,
) -> DiffusionModel:
    schedule = schedule or LogSnrSchedule(first=8.0, last=-12.0)
    space = space or DataSpace(kind="vector", shape=(network.config.features,))
    process = GaussianProcess(schedule.beta(T))
    return DiffusionModel(process, network, space, "x_0", "moment").eval()


def binomial(network: BitPatterns, T: int, schedule: Schedule | None = None) -> DiffusionModel:
    beta = (schedule or InverseTimeSchedule()).beta(T)
    process = BinomialProcess(beta, network.config.base_rate)
    space = DataSpace(kind="bits", shape=(network.config.features,))
    return DiffusionModel(process, network, space, "x_0", None).eval()


def sized(features: int, var: float, mean: float = 0.0) -> GaussianMixture:
    """One isotropic Gaussian."""
    return GaussianMixture.from_values(
        torch.ones(1), torch.full((1, features), mean), var * torch.eye(features)[None].double()
    )


def drawn(network: GaussianMixture, count: int) -> Tensor:
    return network.sample(counter_noise(1, torch.arange(count), 0)).double()


class Constant(Noise):
    """The same number everywhere."""

    def __init__(self, value: float, rows: int) -> None:
        self.value, self.rows = value, rows

    def normal(self, event: Sequence[int]) -> Tensor:
        return torch.full((self.rows, *event), self.value, dtype=torch.float64)

    def uniform(self, event: Sequence[int]) -> Tensor:
        raise NotImplementedError


def expected(model: DiffusionModel, x_0: Tensor, convention: Convention, nodes: int = 2) -> Tensor:
    """The bound of each datum [N, D], float64, its expectation over noise by quadrature."""
    T, N = model.T, len(x_0)
    t, x = torch.arange(1, T + 1).repeat(N), x_0.repeat_interleave(T, 0)
    total = prior_part(model, x_0, convention)
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    for point, weight in zip(points, weights / weights.sum(), strict=True):
        values = terms(model, x, t, Constant(float(point), N * T), convention)
        total = total + float(weight) * values.view(N, T).sum(1)
    return total


# ---- exact answers ----


@pytest.mark.parametrize(
    "schedule",
    [LinearSchedule(first=0.01, last=0.3), CosineSchedule(), LogSnrSchedule(first=9.0, last=-3.0)],
    ids=lambda s: s.kind,
)
@pytest.mark.parametrize("T", [1, 2, 13])
def test_the_bound_is_tight_where_the_kernel_is_exact(
    T: int, schedule: Schedule, line: GaussianMixture
) -> None:
    """K = log p(x_0) - E_q(x_T | x_0) log q(x_T) / pi(x_T), at any number of steps."""
    model, x_0 = gaussian(line, T, schedule), drawn(line, 7)
    at, end = model.process.alpha_bar[T], torch.full((7,), T)
    prior = model.process.prior(model.event, 7)
    mismatch = torch.zeros(7, dtype=torch.float64)
    for sign in (1, -1):
        x_T = at.sqrt() * x_0 + sign * (1 - at).sqrt()
        log_q = line.marginal_log_prob(x_T, model.process.log_snr(end))
        mismatch += (log_q - prior.log_prob(x_T)) / 2
    K = expected(model, x_0, "density")
    assert_close(K, line.log_prob(x_0) - mismatch, rtol=1e-6, atol=1e-6)


def test_the_papers_bound_of_the_prior_itself_is_its_entropy() -> None:
    """Data from pi: every step is reversible, so K is -H on average. x_0 by quadrature, too."""
    network = sized(2, 1.0)
    x_0 = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2)), dtype=torch.float64)
    for T in (1, 2, 30):
        K = expected(gaussian(network, T), x_0, "paper").mean()
        assert float(K) == pytest.approx(-math.log(2 * math.pi * math.e), abs=1e-6)


def test_the_papers_bound_has_a_ceiling() -> None:
    """Data ever narrower: the fixed last step keeps K below -1/2 log(2 pi e beta_1) a dimension."""
    ceilings = []
    for var in (1e-2, 1e-4, 1e-8):
        network = sized(3, var)
        model = gaussian(network, 60)
        ceiling = -1.5 * math.log(2 * math.pi * math.e * float(model.process.beta[1]))
        x_0 = drawn(network, 20)
        K = expected(model, x_0, "paper")
        assert float(K.max()) <= ceiling
        ceilings.append(ceiling - float(K.mean()))
        density = expected(model, x_0, "density")
        assert_close(density, network.log_prob(x_0), rtol=0, atol=1e-3)
    assert ceilings[0] > ceilings[1] > ceilings[2]
    assert float(density.mean()) > ceiling + 10


def test_the_bound_of_a_mixture_lies_below_and_closes_in(mixture: GaussianMixture) -> None:
    """E K < E log p by more than 2 standard errors of the mean over 4,000 data, and closer by more
    than 4 as the steps grow."""
    x_0 = drawn(mixture, 4000)
    exact = mixture.log_prob(x_0)
    gaps, errors = [], []
    for T in (2, 8, 30):
        K = bound(gaussian(mixture, T), x_0, seed=0, convention="density", batch=8192).bound
        gaps.append(float((exact - K).mean()))
        errors.append(float((exact - K).std()) / 4000**0.5)
    for i in range(3):
        assert gaps[i] > 2 * errors[i]
    for i in range(2):
        assert gaps[i] - gaps[i + 1] > 4 * math.hypot(errors[i], errors[i + 1])


def test_the_heartbeats_figures(heartbeat: BitPatterns) -> None:
    """An ideal factorised kernel at T = 2000: K = -2.371 bits in the paper's convention, -2.327
    with its own last step, each known to .003 from sampling. By enumeration -2.3683 and -2.3244.

    A term depends on how many ones each phase has, and the four wrong phases are alike: 350 kinds
    of x_t stand for all 2^20. Between the steps evaluated, terms are smooth: linear interpolation
    costs less than .0005 bits.
    """
    model, kinds, ways = binomial(heartbeat, 2000), [], []
    for right in range(5):
        for wrong in itertools.combinations_with_replacement(range(5), 4):
            kinds.append((right, *wrong))
            orders = len(set(itertools.permutations(wrong)))
            ways.append(orders * math.prod(math.comb(4, ones) for ones in kinds[-1]))
    place = torch.arange(20)
    x_t = (place // 5 < torch.tensor(kinds)[:, place % 5]).double()
    x_0 = heartbeat.patterns[0].expand_as(x_t)

    def term(step: int, convention: Convention) -> float:
        t = torch.full((len(x_t),), step)
        weights = torch.tensor(ways) * model.process.marginal(x_0, t).log_prob(x_t).exp()
        assert float(weights.sum()) == pytest.approx(1)
        return float(weights @ evaluate(model, model.predict(x_t, t), x_0, x_t, t, convention))

    grid = [*range(2, 40), *range(40, 2000, 20), 2000]
    steps = float(np.interp(range(2, 2001), grid, [term(t, "paper") for t in grid]).sum())
    figures: list[tuple[Convention, float, float]] = [
        ("paper", -2.371, -2.3683),
        ("discretised", -2.327, -2.3244),
    ]
    for convention, sampled, enumerated in figures:
        K = float(prior_part(model, x_0[:1], convention)) + steps + term(1, convention)
        assert abs(K / math.log(2) - sampled) < 0.004
        assert abs(K / math.log(2) - enumerated) < 0.0005
        found = bound(model, x_0[:60].float(), seed=0, convention=convention, batch=4096)
        error = float(found.standard_error.square().sum().sqrt()) / 60
        assert error < 0.02
        assert abs(float(found.bound.mean()) - K) < 4 * error


# ---- bits: the whole bound by enumeration ----


def whole_by_enumeration(
    model: DiffusionModel, x_0: Tensor, last: Literal["own", "paper"]
) -> Tensor:
    """E_q log p(x_0..T) / q(x_1..T | x_0) over every path, from single forward steps alone."""
    D, T = model.space.dims, model.T
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=D)), dtype=torch.float64)
    S = len(states)
    left, right = states.repeat_interleave(S, 0), states.repeat(S, 1)

    def of(t: int) -> Tensor:
        return torch.full((S * S,), t)

    at = (states == x_0).all(1).double()  # q(x_{t-1} | x_0)
    total = torch.zeros((), dtype=torch.float64)
    for t in range(1, T + 1):
        log_q = model.process.forward_kernel(left, of(t)).log_prob(right).view(S, S)
        if t == 1 and last == "paper":
            log_p = model.process.forward_kernel(right, of(1)).log_prob(left).view(S, S)
        else:
            log_p = model.reverse_kernel(right, of(t), of(t - 1)).log_prob(left).view(S, S)
        joint = at[:, None] * log_q.exp()
        total = total + torch.where(joint > 0, joint * (log_p - log_q), 0.0).sum()
        at = joint.sum(0)
    prior = model.process.prior(model.event, S)
    return total + at @ prior.log_prob(states).double()


def whole_by_terms(model: DiffusionModel, x_0: Tensor, convention: Convention) -> Tensor:
    """The same from `evaluate`, with x_t enumerated."""
    states = torch.tensor(
        list(itertools.product((0.0, 1.0), repeat=model.space.dims)), dtype=torch.float64
    )
    x = x_0.expand_as(states)
    total = prior_part(model, x_0[None], convention)[0]
    for step in range(1, model.T + 1):
        t = torch.full((len(states),), step)
        weights = model.process.marginal(x, t).log_prob(states).exp()
        values = evaluate(model, model.predict(states, t), x, states, t, convention)
        total = total + weights @ values
    return total


def few_bits(base_rate: float) -> BitPatterns:
    patterns = torch.tensor([[0, 0, 1], [1, 0, 1], [1, 1, 0]])
    return BitPatterns.from_values(torch.tensor([0.5, 0.3, 0.2]), patterns, base_rate)


@pytest.mark.parametrize(
    "schedule", [InverseTimeSchedule(), CosineSchedule(), LinearSchedule(first=0.1, last=0.6)]
)
@pytest.mark.parametrize("base_rate", [0.5, 0.2])
def test_the_whole_bound_by_enumeration(schedule: Schedule, base_rate: float) -> None:
    """Each datum, whatever the base rate and whatever signal is left at T."""
    network = few_bits(base_rate)
    model = binomial(network, 4, schedule)
    for x_0, exact in zip(network.patterns, network.log_prob(network.patterns), strict=True):
        K = whole_by_terms(model, x_0, "discretised")
        assert_close(K, whole_by_enumeration(model, x_0, "own"), rtol=1e-6, atol=1e-6)
        if schedule.kind == "inverse-time":
            assert float(exact - K) > 0


def test_the_papers_bound_by_enumeration(one_hot: BitPatterns) -> None:
    """Equation 14 holds for each datum where pi is uniform, and else on average over data whose
    mean is pi's: it takes the cross entropy to pi for a constant."""
    network = few_bits(0.5)
    model = binomial(network, 4)
    for x_0 in network.patterns:
        K = whole_by_terms(model, x_0, "paper")
        assert_close(K, whole_by_enumeration(model, x_0, "paper"), rtol=1e-6, atol=1e-6)
    model = binomial(one_hot, 4)
    found = [whole_by_terms(model, x_0, "paper") for x_0 in one_hot.patterns]
    wanted = [whole_by_enumeration(model, x_0, "paper") for x_0 in one_hot.patterns]
    assert_close(torch.stack(found).mean(), torch.stack(wanted).mean(), rtol=1e-6, atol=1e-6)


def test_no_more_probability_than_one() -> None:
    """K is a bound on a log-probability: exp K sums to at most 1 over all data."""
    network = few_bits(0.3)
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)
    model = binomial(network, 30)
    K = torch.stack([whole_by_terms(model, x_0, "discretised") for x_0 in states])
    assert 0.9 < float(K.exp().sum()) < 1
    model = gaussian(sized(1, 0.04, 0.3), 20, space=LEVELS)
    K = expected(model, EVERY_LEVEL[:, None], "discretised", nodes=30)
    assert 0.9 < float(K.exp().sum()) < 1


# ---- the estimate and its error ----


@pytest.mark.parametrize("convention", ["discretised", "paper"])
def test_bits_are_estimated_without_bias_by_all_terms_and_by_some(convention: Convention) -> None:
    """600 rows of one datum: mean within 4 standard errors of enumeration; errors calibrated."""
    network = few_bits(0.5)
    model, x_0 = binomial(network, 12), network.patterns[1]
    exact = float(whole_by_terms(model, x_0, convention))
    for count in (None, 6, 11):
        found = bound(
            model, x_0.expand(600, 3), seed=4, convention=convention, terms=count, batch=8192
        )
        check_estimates(found, exact)


@pytest.mark.parametrize("convention", ["density", "paper"])
def test_reals_are_estimated_without_bias_by_all_terms_and_by_some(
    convention: Convention, line: GaussianMixture
) -> None:
    model, x_0 = gaussian(line, 30), drawn(line, 1)
    exact = float(expected(model, x_0, convention))
    for count in (None, 8, 20):
        found = bound(
            model, x_0.expand(400, 3), seed=4, convention=convention, terms=count, batch=8192
        )
        check_estimates(found, exact)


def check_estimates(found: BoundResult, exact: float) -> None:
    spread = float(found.bound.std())
    assert abs(float(found.bound.mean()) - exact) < 4 * spread / len(found.bound) ** 0.5
    reported = float(found.standard_error.square().mean().sqrt())
    assert 0.7 < reported / spread < 1.6
    assert_close(found.bound, found.prior + found.steps + found.last)


def test_levels_are_estimated_alike_by_all_terms_and_by_some() -> None:
    """Means over 400 rows agree within 4 standard errors of their difference."""
    model = gaussian(sized(1, 0.04, 0.3), 20, space=LEVELS)
    x_0 = LEVELS.to_model(torch.full((400, 1), 200.0))
    whole, part = (
        bound(model, x_0, seed=4, convention="discretised", terms=count, batch=8192)
        for count in (None, 9)
    )
    check_estimates(part, float(part.bound.mean()))
    error = ((whole.bound.var() + part.bound.var()) / 400).sqrt()
    assert abs(float(whole.bound.mean() - part.bound.mean())) < 4 * float(error)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_terms_are_chosen_so_that_each_step_counts_once(convention: Convention) -> None:
    """Any T, any number of terms: valid steps, noise of their own, weights that make no bias."""
    rows = torch.arange(4)
    for T in (1, 2, 3, 10, 20, 41):
        least = min_terms(T, convention)
        for count in [None, *range(least, T + 12)]:
            steps = choose_steps(T, rows, 3, convention, count)
            assert steps.t.shape == steps.draw.shape == (4, steps.count)
            assert steps.count <= (T + 8 if count is None else count)
            assert bool(((steps.t >= 1) & (steps.t <= T)).all()), (T, count)
            assert bool((steps.t[:, : steps.last] == 1).all())
            assert bool((steps.t[:, steps.last :] >= 2).all())
            assert bool((steps.t[:, steps.last :].diff(dim=1) > 0).all()), (T, count)
            assert all(len(draws.unique()) == steps.count for draws in steps.draw)
            assert steps.weight.dtype == torch.float64
            assert float(steps.weight[steps.last :].sum()) == T - 1
            closed = convention == "paper"
            ends = float(steps.weight[: steps.last].sum())
            assert ends == pytest.approx(0.0 if closed else 1.0, abs=1e-12)
        with pytest.raises(ValueError, match=f"at least {least} .*, came {least - 1}"):
            choose_steps(T, rows, 3, convention, least - 1)


def test_every_step_has_the_same_expected_weight() -> None:
    """Over 20,000 rows, within 5 standard errors."""
    n, T = 20_000, 12
    steps = choose_steps(T, torch.arange(n), 0, "paper", 4)
    weight = torch.zeros(T + 1, dtype=torch.float64)
    weight.index_add_(0, steps.t.flatten(), steps.weight.repeat(n))
    # A step of a stratum of k is drawn with probability 1/k and then weighs k.
    assert (weight[2:] / n - 1).abs().max() < 5 * (2 / n) ** 0.5


def test_all_steps_are_all_steps_for_any_seed() -> None:
    for seed in (0, 5):
        steps = choose_steps(9, torch.arange(3), seed, "paper")
        assert torch.equal(steps.t, torch.arange(2, 10).expand(3, 8))


# ---- rows, batches, units ----


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_datum_alone_is_the_datum_in_a_batch(convention: Convention) -> None:
    model = gaussian(sized(1, 0.04, 0.3), 6, space=LEVELS)
    x_0 = LEVELS.to_model(torch.tensor([[3.0], [128.0], [170.0], [255.0]]))
    told: list[int] = []
    whole = bound(model, x_0, seed=2, convention=convention, progress=told.append)
    assert sum(told) == 4 * choose_steps(6, torch.arange(4), 2, convention).count
    for part, batch in ((slice(0, 2), 64), (slice(0, 4), 5), (slice(0, 4), 1)):
        found = bound(model, x_0[part], seed=2, convention=convention, batch=batch)
        for name in ("bound", "standard_error", "prior", "steps", "last"):
            assert_close(getattr(found, name), getattr(whole, name)[part], rtol=1e-5, atol=1e-5)
            assert getattr(found, name).dtype == torch.float64
    assert (bound(model, x_0, seed=3, convention=convention).bound != whole.bound).all()


def test_single_precision_costs_less_than_a_hundredth_of_the_error(line: GaussianMixture) -> None:
    """At T = 1000, where the last steps' kernels are 10^-4 wide."""
    model, x_0 = gaussian(line, 1000, LogSnrSchedule()), drawn(line, 2)
    double, single = (
        bound(model, x, seed=0, convention="density", batch=4096) for x in (x_0, x_0.float())
    )
    assert bool(((double.bound - single.bound).abs() < 0.01 * double.standard_error).all())


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_terms_of_mixed_steps_are_each_rows_own(convention: Convention) -> None:
    model = gaussian(sized(1, 0.04, 0.3), 6, space=LEVELS)
    t = torch.tensor([3, 1, 6, 2, 1, 1])
    row, x_0 = torch.arange(6), LEVELS.to_model(torch.arange(6.0)[:, None] * 51)
    whole = terms(model, x_0, t, counter_noise(0, row, t), convention)
    for i in range(6):
        one = slice(i, i + 1)
        alone = terms(model, x_0[one], t[one], counter_noise(0, row[one], t[one]), convention)
        assert_close(alone.to(whole.dtype), whole[one], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [0.01, 255.0, (0.5, 3.0, 40.0)])
def test_a_change_of_units_costs_the_logarithm_of_the_scale(
    scale: float | tuple[float, ...], line: GaussianMixture
) -> None:
    """y = c x: log p(y) = log p(x) - D log c, in the density's convention; the paper's has none."""
    x_0 = drawn(line, 4)
    scaled = DataSpace(kind="vector", shape=(3,), scale=scale)
    each = scale if isinstance(scale, tuple) else (scale,) * 3
    cost = sum(math.log(c) for c in each)
    one, other = gaussian(line, 9), gaussian(line, 9, space=scaled)
    costs: dict[Convention, float] = {"density": cost, "paper": 0.0}
    for convention, wanted in costs.items():
        a, b = (bound(m, x_0, seed=0, convention=convention) for m in (one, other))
        assert_close(a.bound - b.bound, torch.full_like(a.bound, wanted), rtol=1e-9, atol=1e-9)
        null = [null_log_prob(m, x_0, convention) for m in (one, other)]
        assert_close(null[0] - null[1], torch.full_like(null[0], wanted), rtol=1e-9, atol=1e-9)


def test_a_bound_is_differentiable_in_a_networks_weights() -> None:
    process = GaussianProcess(LogSnrSchedule(first=4.0, last=-4.0).beta(5))
    x_0, t = LEVELS.to_model(torch.tensor([[0.0], [255.0], [90.0]])), torch.tensor([1, 1, 4])
    for convention in CONVENTIONS:
        network = MLP(MLPConfig(features=1, outputs=2, width=8, zero_out=False))
        model = DiffusionModel(process, network, LEVELS, "v", "interpolated")
        noise = counter_noise(0, torch.arange(3), t)
        terms(model, x_0, t, noise, convention, clip=False).sum().backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            assert bool(torch.isfinite(parameter.grad).all())
            assert bool(parameter.grad.any())


# ---- levels ----


def every_level(mean: Tensor, var: Tensor) -> Tensor:
    """log P of each of 256 levels under each of n kernels [n] -> [n, 256]."""
    n = len(mean)
    x = EVERY_LEVEL[:, None].repeat(n, 1)
    kernel = Normal(*(v.repeat_interleave(256)[:, None] for v in (mean, var)))
    return discretised_log_prob(kernel, x, LEVELS).view(n, 256)


def test_levels_have_probability_one_in_all() -> None:
    """Kernels of any width, within the range, beside it, and far off."""
    generator = torch.Generator().manual_seed(0)
    mean = 1.5 * torch.randn(60, generator=generator, dtype=torch.float64)
    log_var = torch.empty(60, dtype=torch.float64).uniform_(-30, 5, generator=generator)
    mean = torch.cat((mean, torch.tensor([-100.0, 1e4, 1.0, 0.0, 1 / 255]))).double()
    log_var = torch.cat((log_var, torch.tensor([-20.0, 0.0, -60.0, 20.0, -60.0])))
    log_prob = every_level(mean, log_var.exp())
    assert bool(torch.isfinite(log_prob).all())
    assert_close(log_prob.exp().sum(1), torch.ones(65).double(), rtol=0, atol=1e-12)


def test_a_levels_probability_by_quadrature_however_unlikely() -> None:
    """The density's integral over the bin, in logarithms: to e^-100,000."""
    h = 1 / 255
    nodes = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    simpson = torch.full_like(nodes, 2.0)
    simpson[1::2], simpson[0], simpson[-1] = 4.0, 1.0, 1.0
    for mean, std in ((0.0, 0.5), (0.2, 0.02), (-0.9, 0.005), (1.7, 0.05), (-3.0, 0.01)):
        found = every_level(torch.tensor([mean]), torch.tensor([std**2]).double())[0]
        for level in (1, 30, 127, 128, 200, 254):
            x = -1 + 2 * level / 255 + h * nodes
            log_density = -0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
            wanted = (log_density + (simpson * (nodes[1] - nodes[0]) * h / 3).log()).logsumexp(0)
            assert_close(found[level], wanted, rtol=1e-6, atol=1e-6)


def test_a_levels_probability_has_a_gradient_everywhere() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = 2 * torch.randn(40, generator=generator, dtype=torch.float64)
    var = torch.empty(40, dtype=torch.float64).uniform_(-25, 3, generator=generator).exp()
    mean.requires_grad_(), var.requires_grad_()
    found = every_level(mean, var)
    for gradient in torch.autograd.grad(found.sum(), (mean, var)):
        assert bool(torch.isfinite(gradient).all())
    near = torch.tensor([[0.1], [-0.4]], dtype=torch.float64, requires_grad=True)
    wide = torch.tensor([[0.3], [0.02]], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[-1.0], [1 / 255]], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda m, v: discretised_log_prob(Normal(m, v), x, LEVELS), (near, wide)
    )


# ---- the prior alone ----


def test_null_is_a_likelihood() -> None:
    """Over all data in its units it sums, or integrates, to one."""
    grid = torch.linspace(-3000, 3000, 60_001, dtype=torch.float64)[:, None]
    space = DataSpace(kind="vector", shape=(1,), shift=3.0, scale=200.0)
    model = gaussian(sized(1, 1.0), 5, space=space)
    density = null_log_prob(model, (grid - 3) / 200, "density").exp()
    assert float(density.sum()) * 0.1 == pytest.approx(1, abs=1e-6)
    levels = LEVELS.to_model(torch.arange(256.0)[:, None])
    model = gaussian(sized(1, 1.0), 5, space=LEVELS)
    assert float(null_log_prob(model, levels, "discretised").exp().sum()) == pytest.approx(1)
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)))
    bit_model = binomial(few_bits(0.2), 5)
    conventions: list[Convention] = ["discretised", "paper"]
    for convention in conventions:
        log_prob = null_log_prob(bit_model, states, convention)
        assert float(log_prob.exp().sum()) == pytest.approx(1)
        assert float(log_prob[0]) == pytest.approx(3 * math.log(0.8))


def test_a_model_that_learned_nothing_is_the_prior() -> None:
    """The oracle of N(0, 1) says what pi says."""
    model = gaussian(sized(1, 1.0), 9)
    x_0 = torch.tensor([[0.3], [-2.0]], dtype=torch.float64)
    assert_close(
        expected(model, x_0, "density"), null_log_prob(model, x_0, "density"), rtol=0, atol=1e-4
    )


def test_only_the_papers_last_step_is_closed(line: GaussianMixture) -> None:
    model, x_0 = gaussian(line, 5), drawn(line, 2)
    assert closed_last(model, x_0, "density") is None
    found = closed_last(model, x_0, "paper")
    assert found is not None
    assert_close(found, -model.process.marginal(x_0, torch.tensor([1, 1])).entropy())


def test_a_convention_must_fit_the_data(line: GaussianMixture) -> None:
    real, bit = gaussian(line, 5), binomial(few_bits(0.5), 5)
    with pytest.raises(ValueError, match='use "density" or "paper"'):
        check_convention(real, "discretised")
    with pytest.raises(ValueError, match='use "discretised" or "paper"'):
        bound(bit, torch.zeros(1, 3), seed=0, convention="density")
    with pytest.raises(ValueError, match='use "density" or "paper"'):
        discretised_log_prob(
            Normal(torch.zeros(1, 3), torch.ones(1, 3)), torch.zeros(1, 3), real.space
        )
    for model, own in ((real, "density"), (bit, "discretised")):
        assert model.space.default_convention == own
        check_convention(model, model.space.default_convention)
        check_convention(model, "paper")


def test_bits_of_nats() -> None:
    assert bits(math.log(8)) == pytest.approx(3)
