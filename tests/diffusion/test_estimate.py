"""The bound's estimate: no bias whatever terms are chosen, a true error, each row its own."""

import math

import pytest
import torch
from torch.testing import assert_close

from diffusion.likelihood.bound import (
    BoundResult,
    bound,
    null_log_prob,
    terms,
)
from diffusion.likelihood.estimator import choose_steps, min_terms
from diffusion.model import DiffusionModel
from diffusion.networks import MLP, GaussianMixture, MLPConfig
from diffusion.noise import counter_noise
from diffusion.process import GaussianProcess
from diffusion.schedule import (
    LogSnrSchedule,
)
from diffusion.space import Convention, DataSpace
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


@pytest.mark.parametrize("convention", ["discretised", "paper"])
def test_bits_are_estimated_without_bias_by_all_terms_and_by_some(convention: Convention) -> None:
    """600 rows of one example: mean within 4 standard errors of enumeration; errors calibrated."""
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
def test_an_example_alone_is_the_example_in_a_batch(convention: Convention) -> None:
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
