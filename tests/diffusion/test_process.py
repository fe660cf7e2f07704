"""Both processes: Chapman and Kolmogorov, Bayes, and the ends of the trajectory.

Every law is asked of all pairs s < t in one batch, a row each, so that per-row times are met too.
"""

import itertools
import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.testing import assert_close

from diffusion.distributions import Bernoulli, Distribution, Normal
from diffusion.process import BinomialProcess, GaussianProcess, Process, ProcessConfig
from diffusion.schedule import (
    CosineSchedule,
    GeometricSchedule,
    InverseTimeSchedule,
    LinearSchedule,
    LogSnrSchedule,
    Schedule,
)

T = 9
PAIRS = [(t, s) for t in range(1, T + 1) for s in range(t)]
SCHEDULES: list[Schedule] = [
    LinearSchedule(first=0.01, last=0.4),
    CosineSchedule(),
    GeometricSchedule(first=0.001, last=0.5),
    InverseTimeSchedule(),
    LogSnrSchedule(first=6.0, last=-4.0),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
every_base_rate = pytest.mark.parametrize("base_rate", [0.5, 0.2, 0.9])


def pairs() -> tuple[Tensor, Tensor]:
    t, s = torch.tensor(PAIRS).unbind(1)
    return t, s


def reals(seed: int, rows: int = len(PAIRS)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, generator=generator, dtype=torch.float64)


def all_bits(rows: int = len(PAIRS)) -> Tensor:
    """Both values of a bit in each row, float64 [rows, 2]."""
    return torch.tensor([0.0, 1.0], dtype=torch.float64).expand(rows, 2)


def column(values: Tensor) -> Tensor:
    return values[:, None]


def parameter(distribution: Distribution) -> Tensor:
    if isinstance(distribution, Normal):
        return distribution.mean
    assert isinstance(distribution, Bernoulli)
    return distribution.logits


# ---- the Gaussian process ----


@every_schedule
def test_gaussian_chapman_kolmogorov(schedule: Schedule) -> None:
    """q(x_t | x_0) = integral of q(x_t | x_s) q(x_s | x_0), any stride: x_t = k x_s + noise."""
    process, (t, s), x_0 = GaussianProcess(schedule.beta(T)), pairs(), reals(0)
    at_s, at_t = process.marginal(x_0, s), process.marginal(x_0, t)
    step = process.forward_kernel(at_s.mean, t, s)
    slope = process.forward_kernel(torch.ones_like(x_0), t, s).mean
    assert_close(at_t.mean, step.mean)
    assert_close(at_t.var.expand_as(x_0), slope.square() * at_s.var + step.var)


@every_schedule
def test_gaussian_steps_are_the_papers(schedule: Schedule) -> None:
    """q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t); s = t - 1 where none is given."""
    process, t, x = GaussianProcess(schedule.beta(T)), torch.arange(1, T + 1), reals(0, T)
    step, beta = process.forward_kernel(x, t), column(process.beta[1:])
    assert_close(step.mean, (1 - beta).sqrt() * x)
    assert_close(step.var, beta)
    same = process.forward_kernel(x, t, t - 1)
    assert torch.equal(step.mean, same.mean)
    assert torch.equal(step.var, same.var)


@every_schedule
def test_gaussian_posterior_by_quadrature(schedule: Schedule) -> None:
    """q(x_s | x_t, x_0) is q(x_t | x_s) q(x_s | x_0), normalised on a grid."""
    process = GaussianProcess(schedule.beta(T))
    grid = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for t, s in ((t, s) for t, s in PAIRS if s > 0):
        times = torch.full((len(grid),), t), torch.full((len(grid),), s)
        x_0 = torch.randn(1, 1, generator=generator, dtype=torch.float64)
        x_t = 2 * torch.randn(1, 1, generator=generator, dtype=torch.float64)
        found = process.posterior(x_0, x_t, *(time[:1] for time in times))
        # A grid ten standard deviations wide about where the answer is claimed to be.
        x_s = (found.mean + 10 * found.var.sqrt() * grid)[0, :, None]
        prior = process.marginal(x_0.expand_as(x_s), times[1]).log_prob(x_s)
        seen = process.forward_kernel(x_s, *times).log_prob(x_t.expand_as(x_s))
        weights = (prior + seen).softmax(0)
        mean = weights @ x_s[:, 0]
        var = weights @ (x_s[:, 0] - mean).square()
        assert_close(mean, found.mean[0, 0], rtol=1e-7, atol=1e-7)
        assert_close(var, found.var[0, 0], rtol=1e-6, atol=0)


@every_schedule
def test_gaussian_posterior_ends_at_x_0(schedule: Schedule) -> None:
    process, t, x_0 = GaussianProcess(schedule.beta(T)), torch.arange(1, T + 1), reals(0, T).float()
    found = process.posterior(x_0, reals(1, T).float(), t, torch.zeros_like(t))
    assert torch.equal(found.mean, x_0)
    assert not found.var.any()


@every_schedule
def test_gaussian_posterior_variance_is_positive_and_below_each_parent(schedule: Schedule) -> None:
    process, (t, s) = GaussianProcess(schedule.beta(T)), pairs()
    t, s = t[s > 0], s[s > 0]
    _, _, var = process.posterior_coefficients(t, s)
    assert bool((var > 0).all())
    assert bool((var <= 1 - process.alpha_bar[s]).all())
    assert bool((var <= 1 - process.rate(t, s)).all())


@every_schedule
def test_gaussian_entropy_of_a_reverse_step_lies_in_the_papers_bounds(schedule: Schedule) -> None:
    """Equation 24's upper bound: H_q(x_{t-1} | x_t, x_0) <= H_q(x_t | x_{t-1})."""
    process = GaussianProcess(schedule.beta(T))
    t, x = torch.arange(2, T + 1), reals(0, T - 1)
    backward = process.posterior(x, x, t, t - 1).entropy()
    assert bool((backward <= process.forward_kernel(x, t).entropy() + 1e-12).all())


def test_gaussian_prior_is_standard() -> None:
    prior = GaussianProcess(LinearSchedule().beta(T)).prior((2, 3), 4)
    assert prior.mean.shape == (4, 2, 3)
    assert not prior.mean.any()
    assert bool((prior.var == 1).all())


# ---- the binomial process ----


@every_base_rate
@every_schedule
def test_binomial_chapman_kolmogorov(schedule: Schedule, base_rate: float) -> None:
    """q(x_t | x_0) = sum over x_s of q(x_t | x_s) q(x_s | x_0), any stride."""
    process, (t, s) = BinomialProcess(schedule.beta(T), base_rate), pairs()
    at_s = process.marginal(all_bits(), s).mean
    one = process.forward_kernel(torch.ones_like(at_s), t, s).mean
    zero = process.forward_kernel(torch.zeros_like(at_s), t, s).mean
    assert_close(process.marginal(all_bits(), t).mean, at_s * one + (1 - at_s) * zero)


@every_base_rate
@every_schedule
def test_binomial_steps_are_the_papers(schedule: Schedule, base_rate: float) -> None:
    """q(x_t = 1 | x_{t-1}) = x_{t-1} (1 - beta_t) + rho beta_t, and pi is kept."""
    process, t = BinomialProcess(schedule.beta(T), base_rate), torch.arange(1, T + 1)
    beta = column(process.beta[1:])
    step = process.forward_kernel(all_bits(T), t)
    assert_close(step.mean, all_bits(T) * (1 - beta) + base_rate * beta)
    assert torch.equal(step.logits, process.forward_kernel(all_bits(T), t, t - 1).logits)
    kept = (1 - base_rate) * step.mean[:, 0] + base_rate * step.mean[:, 1]
    assert_close(kept, torch.full((T,), base_rate, dtype=torch.float64))


@every_base_rate
@every_schedule
def test_binomial_posterior_by_enumeration(schedule: Schedule, base_rate: float) -> None:
    """q(x_s | x_t, x_0) over both values of x_s, for all x_0 and x_t."""
    process, (t, s) = BinomialProcess(schedule.beta(T), base_rate), pairs()
    for bit_0, bit_t in itertools.product((0.0, 1.0), repeat=2):
        x_0, x_t = torch.full((len(t), 1), bit_0), torch.full((len(t), 1), bit_t)
        x_0, x_t = x_0.double(), x_t.double()
        joint = [
            process.marginal(x_0, s).log_prob(x_s) + process.forward_kernel(x_s, t, s).log_prob(x_t)
            for x_s in (torch.zeros_like(x_0), torch.ones_like(x_0))
        ]
        wanted = torch.stack(joint, 1).softmax(1)[:, 1:]
        assert_close(process.posterior(x_0, x_t, t, s).mean, wanted)


@every_base_rate
@every_schedule
def test_binomial_posterior_ends_at_x_0(schedule: Schedule, base_rate: float) -> None:
    process, t = BinomialProcess(schedule.beta(T), base_rate), torch.arange(1, T + 1)
    for bit in (0.0, 1.0):
        x_t = torch.full((T, 2), bit)
        found = process.posterior(all_bits(T).float(), x_t, t, torch.zeros_like(t))
        assert torch.equal(found.mean, all_bits(T).float())


@every_base_rate
@every_schedule
def test_mix_by_enumeration(schedule: Schedule, base_rate: float) -> None:
    """sum over x_0 of P(x_0 | x_t) q(x_s | x_t, x_0), any stride, s = 0 too; `unmix` undoes it."""
    process, (t, s) = BinomialProcess(schedule.beta(T), base_rate), pairs()
    p = torch.tensor([0.0, 1e-6, 0.3, 0.97, 1.0], dtype=torch.float64).expand(len(t), 5)
    for bit in (0.0, 1.0):
        x_t = torch.full_like(p, bit)
        one = process.posterior(torch.ones_like(p), x_t, t, s).mean
        zero = process.posterior(torch.zeros_like(p), x_t, t, s).mean
        kernel = process.mix(torch.logit(p), x_t, t, s)
        assert_close(kernel.mean, p * one + (1 - p) * zero)
        assert_close(process.unmix(kernel, x_t, t, s), p, rtol=1e-8, atol=1e-10)
        a, b, c, d = process.mixing(t, s)[:, :, None].unbind(1)
        assert_close(a + b * x_t + (c + d * x_t) * p, kernel.mean)


def test_unmix_clamps_what_no_estimate_of_x_0_explains() -> None:
    process = BinomialProcess(InverseTimeSchedule().beta(T))
    t, x_t = torch.tensor([4]), torch.tensor([[0.0, 1.0]])
    for logit, wanted in ((-50.0, 0.0), (50.0, 1.0)):
        kernel = Bernoulli(torch.full((1, 2), logit))
        assert torch.equal(process.unmix(kernel, x_t, t, t - 1), torch.full((1, 2), wanted))


def test_binomial_prior_is_the_base_rate() -> None:
    prior = BinomialProcess(InverseTimeSchedule().beta(T), 0.2).prior((3,), 4)
    assert_close(prior.mean, torch.full((4, 3), 0.2))


# ---- both ----


@pytest.mark.parametrize("kind", ["gaussian", "binomial"])
@every_schedule
def test_a_row_alone_is_the_row_in_a_batch(schedule: Schedule, kind: str) -> None:
    beta, (t, s) = schedule.beta(T), pairs()
    process: Process = GaussianProcess(beta) if kind == "gaussian" else BinomialProcess(beta, 0.3)
    x = reals(0) if kind == "gaussian" else all_bits()
    x_t = reals(1) if kind == "gaussian" else 1 - all_bits()

    def numbers(rows: slice) -> list[Tensor]:
        at, to = t[rows], s[rows]
        return [
            parameter(process.marginal(x[rows], at)),
            parameter(process.forward_kernel(x[rows], at, to)),
            parameter(process.posterior(x[rows], x_t[rows], at, to)),
        ]

    whole = numbers(slice(None))
    for i in range(len(t)):
        for alone, together in zip(numbers(slice(i, i + 1)), whole, strict=True):
            assert torch.equal(alone[0], together[i])


def test_log_snr_runs_from_infinity_down() -> None:
    process = GaussianProcess(InverseTimeSchedule().beta(4))
    wanted = [math.inf, math.log(3), 0.0, -math.log(3), -math.inf]
    assert_close(process.log_snr(torch.arange(5)), torch.tensor(wanted, dtype=torch.float64))
    assert process.T == 4


def test_refresh_follows_a_loaded_table() -> None:
    process = GaussianProcess(LinearSchedule().beta(T))
    process.beta.copy_(InverseTimeSchedule().beta(T))
    process.refresh()
    assert_close(process.alpha_bar, 1 - torch.arange(T + 1, dtype=torch.float64) / T)
    process.beta[3] = 2.0
    with pytest.raises(ValueError, match="above 0 and below 1"):
        process.refresh()


def test_tables_stay_in_float64_whatever_the_model_is_cast_to() -> None:
    process = GaussianProcess(LogSnrSchedule().beta(1000))
    process.to(torch.bfloat16)
    assert process.beta.dtype == process.alpha_bar.dtype == torch.float64


@pytest.mark.parametrize(
    "document",
    [
        {"kind": "gaussian", "T": 30, "schedule": {"kind": "cosine"}},
        {"kind": "binomial", "T": 30, "base_rate": 0.2},
    ],
)
def test_a_configuration_builds_its_process(document: dict[str, object]) -> None:
    adapter: TypeAdapter[ProcessConfig] = TypeAdapter(ProcessConfig)
    config = adapter.validate_python(document)
    assert adapter.validate_json(config.model_dump_json()) == config
    process = config.build()
    assert process.T == 30
    assert torch.equal(process.beta, config.schedule.beta(30))
    if isinstance(process, BinomialProcess):
        assert process.base_rate == 0.2
    for wrong in ({"T": 0}, {"beta": 1}, {"kind": "poisson"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(document | wrong)


@pytest.mark.parametrize("base_rate", [0.0, 1.0, -0.1])
def test_a_base_rate_is_a_probability(base_rate: float) -> None:
    with pytest.raises(ValueError, match=f"came {base_rate}"):
        BinomialProcess(InverseTimeSchedule().beta(T), base_rate)


def test_a_process_takes_another_table_and_lets_gradients_through() -> None:
    """alpha_bar_2 = (1 - beta_1)(1 - beta_2), so its slope by beta_1 is -(1 - beta_2)."""
    process = GaussianProcess(torch.tensor([0.0, 0.1, 0.2], dtype=torch.float64))
    beta = torch.tensor([0.0, 0.3, 0.6], dtype=torch.float64, requires_grad=True)
    process.take(beta)
    torch.testing.assert_close(process.alpha_bar, (1 - beta).cumprod(0))
    process.log_snr(torch.tensor([2])).sum().backward()
    signal = 0.7 * 0.4
    assert beta.grad is not None
    assert float(beta.grad[1]) == pytest.approx(-0.4 / (signal * (1 - signal)))
    with pytest.raises(ValueError, match="above 0 and below 1"):
        process.take(torch.tensor([0.0, -0.3, 0.6], dtype=torch.float64))
