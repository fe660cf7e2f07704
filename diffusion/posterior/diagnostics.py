"""Diagnostics: how far to trust the samples of a posterior, in numbers and in words.

    log Z = log mean_k Z_k,     u = log(1 + (exp(v) - 1) / K),
    its error^2 = u + u^2 / 4 + (3.4 moved / steps)^2

for K independent systems of P particles, with v the variance of log Z_k. The log of a mean of K
lognormals has variance u and lies u / 2 too low (Fenton 1960). v is estimated from each system's
own ancestors (`smc.spread`), which count as two systems, and from the spread among the K systems;
a factor 1 + 2 / (K (P - 3)) allows for the error of that estimate. The last term is the chain's
error: its steps miss the reversal of q in proportion to the nats that the observation moves them
(measured: docs/posteriors.md).

The effective sample size alone misleads: a system that has lost the right mode has equal weights.
Few ancestors do not show a bias either: each sample is still drawn by its system's weights. v does:
the bias of a sample, in posterior standard deviations, is at most the standard deviation of
Z_k / E[Z_k] (Cauchy and Schwarz), and grows with it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from diffusion.posterior.smc import SMCResult, log_mean

#: The standard deviation of a system's log Z, nats, above which samples are off by half a posterior
#: standard deviation or more (`benchmarks.warnings`, docs/posteriors.md).
SPREAD = 1.5
_OWN = 2  # number of systems that the systems' own estimates count as
_CHAIN = 3.4


@final
@dataclass(frozen=True)
class Diagnostics:
    """The diagnostics of one posterior's particles.

    Attributes:
        particles: the particles per system.
        systems: the number of independent systems.
        ess: effective sample size before each step, averaged over systems; empty without weights.
        ancestors: the median number of first particles that a system's last ones descend from.
        log_evidence: log of the estimate of p(y), nats; None without weights.
        log_evidence_error: its standard error, including the chain's; None if unknown, for a single
            system of one particle or a zero estimate of p(y).
        warning: a problem and how to fix it, in words; None if there is none.
        calibration: how such posteriors fare on held-out data, in words; None if not measured.
    """

    particles: int = 1
    systems: int = 1
    ess: tuple[float, ...] = ()
    ancestors: int = 1
    log_evidence: float | None = None
    log_evidence_error: float | None = None
    warning: str | None = None
    calibration: str | None = None

    @classmethod
    def of(cls, result: SMCResult, most_steps: int) -> Self:
        """Diagnose the K systems of one posterior, for a model of `most_steps` steps."""
        log_z, count = result.log_evidence, len(result.log_evidence)
        total, steps = float(log_mean(log_z[None])), result.ess.shape[1]
        v = _variance(log_z, result.variance) if math.isfinite(total) else None
        error = None
        if v is not None:
            # v is an estimate: Student's t of m degrees has m / (m - 2) times a normal's variance.
            sure = v * (1 + 2 / (count * max(result.particles - 3, 1)))
            # For v in the hundreds exp(v) would overflow; there u = v - log K.
            u = math.log1p(math.expm1(sure) / count) if sure < 500 else sure - math.log(count)
            chain = _CHAIN * float(result.moved.mean()) / steps
            error = math.sqrt(u + u**2 / 4 + chain**2)
        return cls(
            result.particles,
            count,
            tuple(result.ess.mean(0).tolist()),
            int(result.ancestors.median()),
            total,
            error,
            _warn(total, v, result.particles, steps, most_steps),
        )


def _variance(log_z: Tensor, own: Tensor) -> float | None:
    """Estimate the variance of log Z from K values [K] and each system's own estimate [K].

    Systems with Z_k = 0 raise E[Z^2] / E[Z]^2 accordingly.
    """
    possible = log_z.isfinite()
    found = log_z[possible]
    lost, mine = math.log(len(log_z) / len(found)), float(own[possible].mean())
    if not math.isfinite(mine):  # a single particle
        return float(found.var()) + lost if len(found) > 1 else None
    apart = float((found - found.mean()).square().sum())
    return (_OWN * mine + apart) / (_OWN + len(found) - 1) + lost


def _warn(total: float, v: float | None, particles: int, steps: int, most: int) -> str | None:
    if not math.isfinite(total):
        return (
            "the model gives what was observed no probability: check its units and which "
            "elements are known, or allow for noise"
        )
    if v is None or v <= SPREAD**2:
        return None
    more = min(most, max(2 * steps, 250))
    fix = f"raise particles to {max(64, 4 * particles)}"
    return (
        f"systems of {particles} particles differ by {math.sqrt(v):.1f} nats in the evidence, so "
        "the samples may be off by half a posterior standard deviation or more: "
        + fix
        + (f" or steps to {more}" if more > steps else "")
    )


@final
@dataclass(frozen=True)
class Summary:
    """The mean, standard deviation and quantiles of N posteriors, per element.

        mean = sum_j w_j x_j,    var = sum_j w_j (x_j - mean)^2 / (1 - sum_j w_j^2)

    with weights that sum to 1; equal weights give the usual unbiased estimates.

    Attributes:
        mean: [N, *event].
        std: [N, *event]; NaN for a single sample.
        quantiles: [N, levels, *event].
    """

    mean: Tensor
    std: Tensor
    quantiles: Tensor

    @classmethod
    def of(
        cls, samples: Tensor, weights: Tensor | None = None, levels: Sequence[float] = ()
    ) -> Self:
        """Summarise n samples of each posterior.

        Args:
            samples: [N, n, *event], in the units wanted for the summary.
            weights: [N, n], at least 0, summing to 1 (default: equal).
            levels: quantile levels, each 0 to 1; a quantile is the least sample with at least that
                much weight at or below it.

        Raises:
            ValueError: a level is outside 0 to 1.
        """
        if any(not 0 <= level <= 1 for level in levels):
            raise ValueError(f"quantiles take levels from 0 to 1, came {list(levels)}")
        N, n = samples.shape[:2]
        if weights is None:
            weights = torch.full((N, n), 1 / n, dtype=torch.float64, device=samples.device)
        x, w = samples.double().flatten(2), weights.double()[:, :, None]
        first = x[:, :1]  # a reference point, so that identical samples give exact means
        mean = first[:, 0] + (w * (x - first)).sum(1)
        left = 1 - w.square().sum(1)
        std = ((w * (x - mean[:, None]).square()).sum(1) / left.clamp_min(0)).sqrt()
        std = torch.where(left > 1e-12, std, torch.nan)
        ordered, place = x.sort(1)
        below = w.expand_as(x).gather(1, place).cumsum(1)
        found = [
            ordered.gather(1, (below < level - 1e-9).sum(1, keepdim=True).clamp(max=n - 1))
            for level in levels
        ]
        empty = x.new_zeros(N, 0, x.shape[2])
        event, dtype = samples.shape[2:], samples.dtype
        quantiles = torch.cat([empty, *found], 1).unflatten(2, event)
        return cls(
            mean.unflatten(1, event).to(dtype),
            std.unflatten(1, event).to(dtype),
            quantiles.to(dtype),
        )
