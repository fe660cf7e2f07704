"""Diagnostics: how far the samples of a posterior can be trusted, in numbers and in words.

    log Z = log mean_k Z_k,     u = log(1 + (exp(v) - 1) / K),
    its error^2 = u + u^2 / 4 + (3.4 moved / steps)^2

over K independent systems of P particles, v the variance of log Z_k. The mean of K lognormals has a
logarithm of variance u, which lies u / 2 too low (Fenton 1960). Of v each system tells something by
its own ancestors (`smc.spread`), K of them by their spread too; the former count as two
systems, and for being an estimate v counts 1 + 2 / (K (P - 3)) times. The last part is the chain's:
its steps miss the reversal of q by up to so much of the nats that the observation moves them
(measured: docs/posteriors.md).

The effective sample size alone misleads: a system that has lost the right mode has equal weights.
Nor do few ancestors say that the samples are off: each is still drawn by its system's weights. What
says it is v: the bias of a sample, in posterior standard deviations, is at most the standard
deviation of Z_k / E[Z_k] (Cauchy and Schwarz), and grows with it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from diffusion.posterior.smc import SMCResult, log_mean

#: Standard deviation of a system's log Z, nats, from which its samples are off by half a posterior
#: standard deviation or more (`benchmarks.warnings`, docs/posteriors.md).
SPREAD = 1.5
_OWN = 2  # systems that what each says of itself counts as
_CHAIN = 3.4


@final
@dataclass(frozen=True)
class Diagnostics:
    """What the particles of one posterior show.

    Attributes:
        particles: of each system.
        systems: how many independent ones.
        ess: effective sample size before each step, the mean over systems; empty without weights.
        ancestors: first particles from which a system's last ones descend, the median.
        log_evidence: log of the estimate of p(y), nats; None without weights.
        log_evidence_error: its standard error, chain's steps included; None where nothing can be
            said: of one system of one particle, or where nothing is possible.
        warning: what is poor and how to fix it, in words; None where nothing is.
    """

    particles: int = 1
    systems: int = 1
    ess: tuple[float, ...] = ()
    ancestors: int = 1
    log_evidence: float | None = None
    log_evidence_error: float | None = None
    warning: str | None = None

    @classmethod
    def of(cls, result: SMCResult, most_steps: int) -> Self:
        """Of the K systems of one posterior; a model of `most_steps` steps."""
        log_z, count = result.log_evidence, len(result.log_evidence)
        total, steps = float(log_mean(log_z[None])), result.ess.shape[1]
        v = _variance(log_z, result.variance) if math.isfinite(total) else None
        error = None
        if v is not None:
            # Itself an estimate: Student's t of m degrees has m / (m - 2) the variance of a normal.
            sure = v * (1 + 2 / (count * max(result.particles - 3, 1)))
            # exp(v) is too much for a float where v is in the hundreds; there u = v - log K.
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
    """Of one system's log Z, by K of them [K] and by what each says of its own [K].

    Systems that found nothing possible, Z_k = 0, make E[Z^2] / E[Z]^2 so much more.
    """
    possible = log_z.isfinite()
    found = log_z[possible]
    lost, mine = math.log(len(log_z) / len(found)), float(own[possible].mean())
    if not math.isfinite(mine):  # of one particle
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
    """What people ask of the samples of N posteriors: mean, deviation, quantiles, by element.

        mean = sum_j w_j x_j,    var = sum_j w_j (x_j - mean)^2 / (1 - sum_j w_j^2)

    with weights that sum to 1; equal ones make them the usual estimates, var without bias.

    Attributes:
        mean: [N, *event].
        std: [N, *event]; of a single sample NaN, for one says nothing of spread.
        quantiles: [N, levels, *event].
    """

    mean: Tensor
    std: Tensor
    quantiles: Tensor

    @classmethod
    def of(
        cls, samples: Tensor, weights: Tensor | None = None, levels: Sequence[float] = ()
    ) -> Self:
        """Of n samples each.

        Args:
            samples: [N, n, *event], model units or data units; the answer is in the same.
            weights: [N, n], at least 0, summing to 1; equal where they are not given.
            levels: of the quantiles, each 0 to 1: the least sample with so much weight at or below
                it.

        Raises:
            ValueError: a level outside 0 to 1.
        """
        if any(not 0 <= level <= 1 for level in levels):
            raise ValueError(f"quantiles are of levels from 0 to 1, came {list(levels)}")
        N, n = samples.shape[:2]
        if weights is None:
            weights = torch.full((N, n), 1 / n, dtype=torch.float64, device=samples.device)
        x, w = samples.double().flatten(2), weights.double()[:, :, None]
        first = x[:, :1]  # from which all are measured: what they share comes back bit for bit
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
