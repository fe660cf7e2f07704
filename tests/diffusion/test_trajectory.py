"""Trajectories are the forward process's, and their bound grows with their number to log p(x_0).

The exact p(x_0) of a model of T steps is a product of matrices, over all states of a few bits or a
fine grid of one real number: E w equals it. A tolerance is 4 standard errors; seeds are fixed.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.distributions import Normal
from diffusion.likelihood.bound import bound
from diffusion.likelihood.iwae import Trajectories, _jackknife, neighbours, trajectory_bound
from diffusion.model import DiffusionModel
from diffusion.networks import GaussianMixture
from diffusion.process import BinomialProcess, GaussianProcess, Process
from diffusion.schedule import InverseTimeSchedule, LinearSchedule, LogSnrSchedule
from diffusion.space import Convention
from tests.diffusion.bounds import (
    CONVENTIONS,
    LEVELS,
    binomial,
    drawn,
    expected,
    few_bits,
    gaussian,
    sized,
    whole_by_terms,
)

MANY = 8192  # rows of a network call


def paths(process: Process, x_0: Tensor, rows: int) -> Tensor:
    """x_0..T of so many trajectories, [rows, T + 1, *event], each step asked for alone."""
    of, row = Trajectories(2, process.T), torch.arange(rows)
    x, noise = x_0.expand(rows, *x_0.shape), of.noise(5, row)
    points = [x.double()]
    for step in range(1, process.T + 1):
        before, x_t = neighbours(process, x, torch.full_like(row, step), noise)
        assert torch.equal(before, points[-1])
        points.append(x_t)
    return torch.stack(points, 1)


@pytest.mark.parametrize("T", [1, 2, 5, 8, 11])
def test_gaussian_trajectories_have_the_processes_covariances(T: int) -> None:
    """Cov(x_s, x_t | x_0) = sqrt(alpha_bar_t / alpha_bar_s) (1 - alpha_bar_s)."""
    n, process = 20_000, GaussianProcess(LogSnrSchedule(first=3.0, last=-4.0).beta(T))
    found = paths(process, torch.tensor([1.5]), n)[:, 1:, 0]
    signal = process.alpha_bar[1:]
    wanted = (1 - signal)[:, None] * (signal[None] / signal[:, None]).sqrt()
    wanted = wanted.triu() + wanted.triu(1).mT
    off = found - 1.5 * signal.sqrt()
    assert bool((off.mean(0).abs() < 4 * (off.var(0) / n).sqrt()).all())
    products = off[:, :, None] * off[:, None, :]
    assert bool(((products.mean(0) - wanted).abs() < 4.5 * products.std(0) / n**0.5).all())


@pytest.mark.parametrize("bit", [0.0, 1.0])
def test_each_path_of_a_bit_is_as_frequent_as_its_probability(bit: float) -> None:
    n, T = 20_000, 5
    process = BinomialProcess(LinearSchedule(first=0.2, last=0.5).beta(T), 0.3)
    found = paths(process, torch.tensor([bit]), n)[:, 1:, 0]
    for path in itertools.product((0.0, 1.0), repeat=T):
        x, log_p = torch.tensor([bit, *path], dtype=torch.float64)[:, None], 0.0
        log_p = float(process.forward_kernel(x[:-1], torch.arange(1, T + 1)).log_prob(x[1:]).sum())
        p, share = math.exp(log_p), float((found == torch.tensor(path)).all(1).double().mean())
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n), path


def test_ends_without_signal_are_the_prior() -> None:
    """alpha_bar_T = 0: x_T knows nothing of x_0, and the bridges from it still hold."""
    process = GaussianProcess(InverseTimeSchedule().beta(6))
    found = paths(process, torch.tensor([3.0]), 20_000)[:, :, 0]
    assert bool(found.isfinite().all())
    assert abs(float(found[:, 6].mean())) < 4 / 20_000**0.5
    half = found[:, 3] - 3 * 0.5**0.5
    assert abs(float(half.mean())) < 4 * (0.5 / 20_000) ** 0.5


# ---- the exact likelihood of a model ----


def exact_bits(model: DiffusionModel, convention: Convention) -> tuple[Tensor, Tensor]:
    """All states of a model of bits, and log p(x_0) of each."""
    bits = itertools.product((0.0, 1.0), repeat=model.space.dims)
    states = torch.tensor(list(bits), dtype=torch.float64)
    n = len(states)
    to, at = states.repeat(n, 1), states.repeat_interleave(n, 0)
    p = model.process.prior(model.event, n).log_prob(states).double().exp()
    for step in range(model.T, 0, -1):
        t = torch.full((n * n,), step)
        if step == 1 and convention == "paper":
            kernel = model.process.forward_kernel(at, t)
        else:
            kernel = model.reverse_kernel(at, t, t - 1)
        p = p @ kernel.log_prob(to).exp().view(n, n)
    return states, p.log()


def exact_real(model: DiffusionModel, x_0: Tensor, convention: Convention) -> Tensor:
    """log p(x_0) of a model of one real number, x_0 [N, 1], by quadrature on a grid."""
    grid = torch.linspace(-8, 8, 1601, dtype=torch.float64)[:, None]
    n, width = len(grid), 16 / 1600

    def towards(x: Tensor, step: int) -> Normal:
        t = torch.full((n,), step)
        if step == 1 and convention == "paper":
            kernel = model.process.forward_kernel(grid, t)
        else:
            kernel = model.reverse_kernel(grid, t, t - 1)
        assert isinstance(kernel, Normal)
        mean, var = torch.broadcast_tensors(kernel.mean, kernel.var)
        return Normal(mean.repeat_interleave(len(x), 0), var.repeat_interleave(len(x), 0))

    p = model.process.prior(model.event, n).log_prob(grid).exp()
    for step in range(model.T, 1, -1):
        p = width * p @ towards(grid, step).log_prob(grid.repeat(n, 1)).exp().view(n, n)
    kernel, x = towards(x_0, 1), x_0.repeat(n, 1)
    if convention == "discretised":
        last = kernel.log_mass(x, model.space)
    else:
        jacobian = model.space.log_jacobian() if convention == "density" else 0.0
        last = kernel.log_prob(x) + jacobian
    return (width * p @ last.exp().view(n, len(x_0))).log()


def check_growth(model: DiffusionModel, x_0: Tensor, exact: float, convention: Convention) -> None:
    """E w = p(x_0); E K_S grows from S = 1 to 2 and 8, never past log p(x_0), and is near at 64."""
    mean, error = [], []

    def tell(estimates: Tensor) -> None:
        mean.append(float(estimates.mean()))
        error.append(float(estimates.std()) / len(estimates) ** 0.5)

    for each, count in ((2, 4000), (8, 1000), (64, 400)):
        rows = x_0.expand(count, *x_0.shape)
        found = trajectory_bound(
            model, rows, seed=3, convention=convention, trajectories=each, batch=MANY
        )
        if each == 2:
            tell(found.bound - found.gain)
        tell(found.bound)
        p = (found.bound - exact).exp()
        assert abs(float(p.mean()) - 1) < 4 * float(p.std()) / count**0.5
        # Of two trajectories the jackknife is far on the safe side.
        reported = float(found.standard_error.square().mean().sqrt())
        assert 0.8 < reported / float(found.bound.std()) < (2 if each > 2 else math.inf)
    for i in range(2):
        assert mean[i + 1] - mean[i] > 3 * math.hypot(error[i], error[i + 1])
    for K, e in zip(mean, error, strict=True):
        assert exact + 4 * e > K
    assert mean[3] > exact - 0.05


@pytest.mark.parametrize("convention", ["discretised", "paper"])
def test_the_bound_of_bits_grows_to_the_exact_log_probability(convention: Convention) -> None:
    model = binomial(few_bits(0.3), 4)
    states, exact = exact_bits(model, convention)
    assert float(exact.exp().sum()) == pytest.approx(1)
    check_growth(model, states[1], float(exact[1]), convention)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_bound_of_reals_grows_to_the_exact_log_density(convention: Convention) -> None:
    network = GaussianMixture.from_values(
        torch.tensor([0.4, 0.6]),
        torch.tensor([[-0.8], [0.8]], dtype=torch.float64),
        torch.tensor([[[0.01]], [[0.01]]], dtype=torch.float64),
    )
    schedule = LogSnrSchedule(first=3.0, last=-5.0)
    model = gaussian(network, 4, schedule, space=LEVELS)
    x_0 = LEVELS.to_model(torch.tensor([[25.0]])).double()
    exact = float(exact_real(model, x_0, convention))
    check_growth(model, x_0[0], exact, convention)


def test_every_trajectory_tells_log_p_where_the_kernel_is_exact(line: GaussianMixture) -> None:
    """And pi is q(x_T): log w is log p(x_0) itself, whatever the noise and however many."""
    x_0 = drawn(line, 6)
    for T in (1, 2, 13, 200):
        model = gaussian(line, T, InverseTimeSchedule())
        found = trajectory_bound(
            model, x_0, seed=1, convention="density", trajectories=3, batch=MANY
        )
        assert_close(found.bound, line.log_prob(x_0), rtol=0, atol=1e-6)
        assert float(found.standard_error.max()) < 1e-6
        assert float(found.gain.abs().max()) < 1e-6


# ---- the average of trajectories is the ordinary bound ----


def check_average(model: DiffusionModel, x_0: Tensor, exact: float, convention: Convention) -> None:
    rows = x_0.expand(1500, *x_0.shape)
    found = trajectory_bound(model, rows, seed=2, convention=convention, trajectories=2, batch=MANY)
    average = found.prior + found.steps + found.last
    assert_close(found.bound, average + found.gain)
    assert bool((found.gain > -1e-12).all())
    assert abs(float(average.mean()) - exact) < 4 * float(average.std()) / 1500**0.5


def test_the_average_of_bits_is_the_bound_by_enumeration() -> None:
    network = few_bits(0.5)
    model, x_0 = binomial(network, 12), network.patterns[1]
    for convention in ("discretised", "paper"):
        check_average(model, x_0, float(whole_by_terms(model, x_0, convention)), convention)


@pytest.mark.parametrize("convention", ["density", "paper"])
def test_the_average_of_reals_is_the_bound_by_quadrature(convention: Convention) -> None:
    """Of a model that is wrong. Equation 14 takes the data to have pi's second moment: where they
    have another, "paper" differs by (alpha_bar_T + beta_1) (1 - x_0^2) / 2 an element."""
    model = gaussian(sized(3, 0.7, 0.2), 9, LogSnrSchedule(first=3.0, last=-4.0))
    x_0 = torch.tensor([0.3, -1.4, 0.9], dtype=torch.float64)
    exact = expected(model, x_0[None], convention)[0]
    if convention == "paper":
        ends = model.process.alpha_bar[9] + model.process.beta[1]
        exact += (ends * (1 - x_0.square()) / 2).sum()
    check_average(model, x_0, float(exact), convention)


def test_the_average_of_levels_is_the_bound_by_quadrature() -> None:
    model = gaussian(sized(1, 0.04, 0.3), 9, LogSnrSchedule(first=3.0, last=-4.0), space=LEVELS)
    x_0 = LEVELS.to_model(torch.tensor([[200.0]])).double()
    exact = float(expected(model, x_0, "discretised", nodes=30))
    check_average(model, x_0[0], exact, "discretised")


# ---- rows, batches, numbers ----


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_an_example_alone_is_the_example_in_a_batch(convention: Convention) -> None:
    model = gaussian(sized(1, 0.04, 0.3), 6, space=LEVELS)
    x_0 = LEVELS.to_model(torch.tensor([[3.0], [128.0], [170.0], [255.0]]))
    asked = {"seed": 2, "convention": convention, "trajectories": 3}
    told: list[int] = []
    whole = trajectory_bound(model, x_0, **asked, progress=told.append)  # type: ignore[arg-type]
    assert sum(told) == 4 * 3 * 6
    for part, batch in ((slice(0, 2), 64), (slice(0, 4), 5), (slice(0, 4), 1)):
        found = trajectory_bound(model, x_0[part], **asked, batch=batch)  # type: ignore[arg-type]
        for name in ("bound", "standard_error", "prior", "steps", "last", "gain"):
            assert_close(getattr(found, name), getattr(whole, name)[part], rtol=1e-5, atol=1e-5)
            assert getattr(found, name).dtype == torch.float64
    other = trajectory_bound(model, x_0, **asked | {"seed": 3})  # type: ignore[arg-type]
    assert (other.bound != whole.bound).all()


def test_more_trajectories_begin_with_the_same_ones() -> None:
    """Trajectory k of an example is the same of 3 as of 6, and no two are alike."""
    process, example = GaussianProcess(LogSnrSchedule().beta(8)), torch.arange(4)
    x_0, t = torch.zeros(4, 2), torch.tensor([1, 3, 6, 8])
    found = []
    for number in range(3):
        few, more = (
            neighbours(process, x_0, t, Trajectories(each, 8).noise(4, example * each + number))
            for each in (3, 6)
        )
        assert torch.equal(torch.stack(few), torch.stack(more))
        found.append(few[1])
    assert not torch.equal(found[0], found[1])
    assert len(torch.cat(found).unique()) == 24


def test_the_error_is_the_jackknifes() -> None:
    """By leaving out each trajectory in turn; and one weight that is nearly all is seen."""
    log_w = torch.tensor([[0.3, -0.2, 1.1, 0.4], [60.0, 0.0, 1.0, -2.0]], dtype=torch.float64)
    left_out = torch.stack(
        [
            torch.cat((log_w[:, :i], log_w[:, i + 1 :]), 1).logsumexp(1) - math.log(3)
            for i in range(4)
        ],
        1,
    )
    wanted = ((left_out - left_out.mean(1, keepdim=True)).square().sum(1) * 3 / 4).sqrt()
    assert_close(_jackknife(log_w), wanted)
    assert float(wanted[1]) > 40


def test_one_trajectory_is_refused() -> None:
    for each in (1, 0, 2**32):
        with pytest.raises(ValueError, match=f"from 2 to .*, came {each}"):
            Trajectories(each, 10)


def test_a_model_of_bits_has_no_density() -> None:
    model = binomial(few_bits(0.5), 3)
    with pytest.raises(ValueError, match="bits have no density"):
        trajectory_bound(model, torch.zeros(1, 3), seed=0, convention="density", trajectories=2)


def test_in_float32_as_the_ordinary_bound(mixture: GaussianMixture) -> None:
    """Means over 300 data within 4 standard errors of their difference."""
    model, x_0 = gaussian(mixture, 30), drawn(mixture, 300).float()
    ordinary = bound(model, x_0, seed=0, convention="density", batch=MANY).bound
    found = trajectory_bound(model, x_0, seed=0, convention="density", trajectories=2, batch=MANY)
    gap = found.bound - found.gain - ordinary
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / 300**0.5
