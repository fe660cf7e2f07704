"""Predictions: every kind says the same of the same truth, and kernels are what they claim."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.distributions import Bernoulli
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.process import (
    BinomialPrediction,
    BinomialProcess,
    GaussianPrediction,
    GaussianProcess,
    PredictionKind,
    VarianceKind,
)
from diffusion.schedule import (
    CosineSchedule,
    InverseTimeSchedule,
    LinearSchedule,
    LogSnrSchedule,
    Schedule,
)

T = 8
PAIRS = [(t, s) for t in range(1, T + 1) for s in range(t)]
SCHEDULES: list[Schedule] = [
    LinearSchedule(first=0.01, last=0.4),
    CosineSchedule(),
    InverseTimeSchedule(),
    LogSnrSchedule(first=6.0, last=-4.0),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)


def pairs() -> tuple[Tensor, Tensor]:
    t, s = torch.tensor(PAIRS).unbind(1)
    return t, s


def reals(seed: int, width: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(PAIRS), width, generator=generator, dtype=torch.float64)


def read_gaussian(
    process: GaussianProcess,
    kind: PredictionKind,
    variance: VarianceKind | None,
    output: Tensor,
    x_t: Tensor,
    t: Tensor,
) -> GaussianPrediction:
    return process.output(kind, variance).read(output, x_t, t)


def read_binomial(
    process: BinomialProcess, kind: PredictionKind, output: Tensor, x_t: Tensor, t: Tensor
) -> BinomialPrediction:
    return process.output(kind, None).read(output, x_t, t)


def amplitudes(process: GaussianProcess, t: Tensor) -> tuple[Tensor, Tensor]:
    """Of signal and of noise, [B, 1]."""
    signal = process.alpha_bar[t][:, None]
    return signal.sqrt(), (1 - signal).sqrt()


def perturbation(
    process: GaussianProcess, mean: Tensor, var: Tensor, x: Tensor, t: Tensor
) -> Tensor:
    """The output whose own kernel is N(mean, var): Equation 65 of the paper, solved for z."""
    z_mean = (mean - x * (1 - var)) / var
    z_var = torch.logit(var) - torch.logit(process.beta[t])[:, None]
    return torch.cat((z_mean, z_var), 1)


# ---- what a network's output means ----


@pytest.mark.parametrize("kind", ["eps", "x_0", "v", "perturbation"])
@every_schedule
def test_every_kind_tells_the_same_truth(schedule: Schedule, kind: PredictionKind) -> None:
    """Made from one x_0 and one noise, each output is read as that x_0."""
    process, (t, _) = GaussianProcess(schedule.beta(T)), pairs()
    if schedule.kind == "inverse-time" and kind in ("eps", "perturbation"):
        t = t.clamp(max=T - 1)  # at T no signal is left for eps, and no logit of beta_T = 1
    x_0, n = reals(0), reals(1)
    signal, noise = amplitudes(process, t)
    x_t = signal * x_0 + noise * n
    mean = process.posterior(x_0, x_t, t, t - 1).mean
    output = {
        "x_0": x_0,
        "eps": n,
        "v": signal * n - noise * x_0,
        "perturbation": perturbation(process, mean, 0.7 * torch.ones_like(x_t), x_t, t),
    }[kind]
    found = read_gaussian(
        process, kind, None if kind == "perturbation" else "lower", output, x_t, t
    )
    assert_close(found.x_0, x_0, rtol=1e-8, atol=1e-8)


@every_schedule
def test_the_true_x_0_gives_the_posteriors_mean_at_any_stride(schedule: Schedule) -> None:
    process, (t, s), x_0, x_t = GaussianProcess(schedule.beta(T)), pairs(), reals(0), reals(1)
    found = read_gaussian(process, "x_0", "lower", x_0, x_t, t).kernel(s)
    wanted = process.posterior(x_0, x_t, t, s)
    assert_close(found.mean, wanted.mean)
    assert_close(found.var[s > 0], wanted.var[s > 0])


@every_schedule
def test_the_papers_perturbation_keeps_its_own_mean_and_sigma(schedule: Schedule) -> None:
    """At s = t - 1: Sigma = sigmoid(z_Sigma + logit beta), mean = (x - z)(1 - Sigma) + z."""
    process = GaussianProcess(schedule.beta(T))
    t = torch.arange(1, T if schedule.kind == "inverse-time" else T + 1)
    x_t, z, z_var = reals(0)[: len(t)], reals(1)[: len(t)], reals(2)[: len(t)]
    output = torch.cat((z, z_var), 1)
    kernel = read_gaussian(process, "perturbation", None, output, x_t, t).kernel(t - 1)
    beta = process.beta[t][:, None]
    sigma = 1 / (1 + (1 - beta) / beta * (-z_var).exp())
    assert_close(kernel.var, sigma)
    assert_close(kernel.mean, (x_t - z) * (1 - sigma) + z, rtol=1e-8, atol=1e-8)


def test_an_untrained_perturbation_is_the_forward_kernel_reversed() -> None:
    """z = 0: mean (1 - beta_t) x_t and Sigma = beta_t, where the paper starts its training."""
    process = GaussianProcess(LinearSchedule(first=0.01, last=0.4).beta(T))
    t, x_t = torch.arange(1, T + 1), reals(0)[:T]
    zeros = torch.zeros(T, 6, dtype=torch.float64)
    kernel = read_gaussian(process, "perturbation", None, zeros, x_t, t).kernel(t - 1)
    beta = process.beta[t][:, None]
    assert_close(kernel.var, beta.expand_as(x_t))
    assert_close(kernel.mean, (1 - beta) * x_t)


# ---- the moment match is exact for a Gaussian ----


def exact_kernel(
    line: GaussianMixture, process: GaussianProcess, x_t: Tensor, t: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance of p(x_s | x_t) where x_0 is one diagonal Gaussian, by Bayes."""
    at_s, rate = process.alpha_bar[s][:, None], process.rate(t, s)[:, None]
    before = at_s * line.covariance().diag() + 1 - at_s
    var = 1 / (1 / before + rate / (1 - rate))
    mean = var * (at_s.sqrt() * line.mean() / before + rate.sqrt() * x_t / (1 - rate))
    return mean, var


@every_schedule
def test_the_moment_kernel_is_exact_for_one_gaussian(
    schedule: Schedule, line: GaussianMixture
) -> None:
    process, (t, s), x_t = GaussianProcess(schedule.beta(T)), pairs(), reals(0)
    output = line(x_t, process.log_snr(t))
    kernel = read_gaussian(process, "x_0", "moment", output, x_t, t).kernel(s)
    mean, var = exact_kernel(line, process, x_t, t, s)
    assert_close(kernel.mean, mean, rtol=1e-8, atol=1e-10)
    assert_close(kernel.var, var, rtol=1e-8, atol=1e-12)


@every_schedule
def test_the_perturbations_strides_are_exact_for_one_gaussian(
    schedule: Schedule, line: GaussianMixture
) -> None:
    """Given the exact p(x_{t-1} | x_t), every longer stride is exact too: a moment match."""
    process, (t, s), x_t = GaussianProcess(schedule.beta(T)), pairs(), reals(0)
    kept = t < T if schedule.kind == "inverse-time" else t > 0
    t, s, x_t = t[kept], s[kept], x_t[kept]
    output = perturbation(process, *exact_kernel(line, process, x_t, t, t - 1), x_t, t)
    kernel = read_gaussian(process, "perturbation", None, output, x_t, t).kernel(s)
    mean, var = exact_kernel(line, process, x_t, t, s)
    assert_close(kernel.mean, mean, rtol=1e-7, atol=1e-8)
    assert_close(kernel.var, var, rtol=1e-7, atol=1e-10)


# ---- variances ----


def variance(kind: VarianceKind | None, extra: Tensor, process: GaussianProcess) -> Tensor:
    """Of every pair's kernel, [B, 3]."""
    (t, s), x_t = pairs(), reals(0)
    output = torch.cat((reals(1), extra), 1) if kind not in ("lower", "upper") else reals(1)
    prediction: PredictionKind = "perturbation" if kind is None else "x_0"
    return read_gaussian(process, prediction, kind, output, x_t, t).kernel(s).var.expand_as(x_t)


@pytest.mark.parametrize("kind", ["lower", "upper", "interpolated", "moment", None])
@every_schedule
def test_every_variance_is_positive_at_every_stride(
    schedule: Schedule, kind: VarianceKind | None
) -> None:
    """At s = 0 too, where the posterior's own is 0: the last step stays a distribution."""
    process = GaussianProcess(schedule.beta(T))
    for seed in range(5):
        var = variance(kind, 3 * reals(2 + seed), process)
        assert bool((torch.isfinite(var) & (var > 0)).all())


@every_schedule
def test_variances_are_ordered(schedule: Schedule) -> None:
    """lower <= interpolated <= upper, with the ends at outputs of -1 and 1; lower <= moment."""
    process, (_, s) = GaussianProcess(schedule.beta(T)), pairs()
    inside = s > 0
    extra = reals(2)
    lower, upper = (variance(kind, extra, process)[inside] for kind in ("lower", "upper"))
    between = variance("interpolated", extra.tanh(), process)[inside]
    # As real numbers they may be equal: the last digits are allowed for.
    assert bool((lower <= between * (1 + 1e-12)).all())
    assert bool((between <= upper * (1 + 1e-12)).all())
    assert bool((lower <= variance("moment", extra, process)[inside]).all())
    for end, wanted in ((-1.0, lower), (1.0, upper)):
        found = variance("interpolated", torch.full_like(extra, end), process)[inside]
        assert_close(found, wanted)


@every_schedule
def test_the_last_steps_lower_variance_is_below_what_x_0_can_have(schedule: Schedule) -> None:
    process, (t, s) = GaussianProcess(schedule.beta(T)), pairs()
    noise = (1 - process.alpha_bar[t])[:, None]
    var = variance("lower", reals(2), process)
    assert bool((var <= noise)[s == 0].all())


# ---- rows, clipping, bits ----


@pytest.mark.parametrize("kind", ["x_0", "perturbation"])
def test_rows_of_a_prediction_are_the_rows_of_its_kernel(kind: PredictionKind) -> None:
    process, (t, s), x_t = GaussianProcess(LinearSchedule().beta(T)), pairs(), reals(0)
    read = read_gaussian(process, kind, "moment" if kind == "x_0" else None, reals(1, 6), x_t, t)
    binomial = BinomialProcess(InverseTimeSchedule().beta(T), 0.3)
    bits = read_binomial(binomial, kind, reals(1), (reals(2) > 0).double(), t)
    whole, whole_bits = read.kernel(s), bits.kernel(s)
    for index in (slice(3, 9), s == 0):
        part, part_bits = read.rows(index), bits.rows(index)
        assert torch.equal(part.x_0, read.x_0[index])
        assert torch.equal(part.kernel(s[index]).mean, whole.mean[index])
        assert torch.equal(part.kernel(s[index]).var, whole.var[index])
        assert torch.equal(part_bits.x_0, bits.x_0[index])
        assert torch.equal(part_bits.kernel(s[index]).logits, whole_bits.logits[index])


def test_clipping_keeps_x_0_in_range_and_the_kernel_follows() -> None:
    process, (t, s), x_t = GaussianProcess(LinearSchedule().beta(T)), pairs(), reals(0)
    free = read_gaussian(process, "x_0", "lower", 3 * reals(1), x_t, t)
    kept = free.clipped(torch.tensor(-1.0), torch.tensor(1.0))
    assert torch.equal(kept.x_0, free.x_0.clamp(-1, 1))
    wanted = GaussianPrediction(process, x_t, t, free.x_0.clamp(-1, 1), "lower").kernel(s)
    assert torch.equal(kept.kernel(s).mean, wanted.mean)
    assert torch.equal(kept.kernel(s).var, free.kernel(s).var)


@every_schedule
def test_the_papers_f_b_keeps_its_own_kernel_and_its_strides_are_mixed(
    schedule: Schedule, one_hot: BitPatterns
) -> None:
    """f_b made from the exact p(x_{t-1} | x_t): longer strides are those of P(x_0 | x_t)."""
    process, (t, s) = BinomialProcess(schedule.beta(T), 1 / 3), pairs()
    x_t = (reals(0) > 0.5).double()
    logits = one_hot(x_t, process.log_snr(t))
    exact = BinomialPrediction(process, x_t, t, logits)
    own = exact.kernel(t - 1)
    output = own.logits - process.forward_kernel(x_t, t).logits
    read = read_binomial(process, "perturbation", output, x_t, t)
    assert_close(read.kernel(t - 1).mean, own.mean)
    # P(x_0 | x_t) is kept off 0 and 1 by 1e-6, for a logit's sake.
    assert_close(read.x_0, exact.x_0, rtol=0, atol=2e-6)
    assert_close(read.kernel(s).mean, exact.kernel(s).mean, rtol=0, atol=2e-6)


def test_an_untrained_f_b_is_the_forward_kernel_reversed() -> None:
    process, t = BinomialProcess(InverseTimeSchedule().beta(T), 0.3), torch.arange(1, T + 1)
    x_t = (reals(0) > 0).double()[:T]
    read = read_binomial(process, "perturbation", torch.zeros_like(x_t), x_t, t)
    kernel = read.kernel(t - 1)
    assert isinstance(kernel, Bernoulli)
    assert_close(kernel.mean, process.forward_kernel(x_t, t).mean)


def test_bits_read_x_0_as_logits() -> None:
    process, (t, s) = BinomialProcess(InverseTimeSchedule().beta(T), 0.3), pairs()
    x_t, logits = (reals(0) > 0).double(), 3 * reals(1)
    read = read_binomial(process, "x_0", logits, x_t, t)
    assert_close(read.x_0, 1 / (1 + (-logits).exp()))
    assert torch.equal(read.kernel(s).logits, process.mix(logits, x_t, t, s).logits)
    ends = s == 0
    assert_close(read.kernel(s).mean[ends], read.x_0[ends])


def test_certainty_is_finite() -> None:
    """A kernel at the ends of float32 gives no NaN and still excludes nothing it should not."""
    process, (t, s) = BinomialProcess(InverseTimeSchedule().beta(T), 0.3), pairs()
    x_t = (reals(0) > 0).float()
    for logit in (-1e4, -30.0, 30.0, 1e4):
        kernel = read_binomial(process, "x_0", torch.full_like(x_t, logit), x_t, t).kernel(s)
        assert not bool(torch.isnan(kernel.logits).any())
        wanted = process.posterior(torch.full_like(x_t, float(logit > 0)), x_t, t, s)
        assert_close(kernel.mean, wanted.mean, rtol=0, atol=1e-6)
    assert math.isfinite(float(process.log_snr(torch.tensor([1]))[0]))
