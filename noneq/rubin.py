"""Pools estimates from m completed data sets by Rubin's rules.

    Q = mean Q_i,    W = mean U_i,    B = var Q_i,    T = W + (1 + 1 / m) B
    lambda = (1 + 1 / m) B / T,    nu = (m - 1) / lambda^2

Q_i is the estimate from draw i and U_i its variance. (Q - truth) / sqrt(T) is about Student's t
with nu degrees of freedom (Rubin 1987, Section 3.3), fewer if the complete data have few
themselves (Barnard and Rubin 1999).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_NORMAL = 1e4  # degrees of freedom from which t is as good as normal


class Pooled(NamedTuple):
    """A pooled estimate.

    Attributes:
        estimate: Q.
        standard_error: sqrt(T).
        low, high: the 95% interval.
        degrees_of_freedom: of the interval's t; infinite if the draws agree.
        within, between: W and B.
        missing: the fraction of the information that is missing, 0 to 1.
    """

    estimate: float
    standard_error: float
    low: float
    high: float
    degrees_of_freedom: float
    within: float
    between: float
    missing: float


def pool(
    estimates: Sequence[float], variances: Sequence[float], complete: float = math.inf
) -> Pooled:
    """Pool one number's estimates, and their variances, from m >= 2 completed data sets.

        fits = [fit(frame) for frame in imputed.draws]
        noneq.pool([fit.slope for fit in fits], [fit.slope_error**2 for fit in fits])

    Args:
        estimates: Q_i.
        variances: U_i.
        complete: degrees of freedom that the estimate would have without gaps; n - 1 of a mean.
    """
    q, u = np.asarray(estimates, np.float64), np.asarray(variances, np.float64)
    m = len(q)
    if m < 2 or q.shape != u.shape:
        raise ValueError(
            f"a variance for each of two estimates or more is expected, received {m} estimates "
            f"and {len(u)} variances: ask for more draws"
        )
    estimate, within, between = float(q.mean()), float(u.mean()), float(q.var(ddof=1))
    added = (1 + 1 / m) * between
    total = within + added
    share = added / total if total else 0.0
    freedom = (m - 1) / share**2 if share else math.inf
    missing = share + 2 * (1 - share) / (freedom + 3)
    if math.isfinite(complete):
        seen = (1 - share) * complete * (complete + 1) / (complete + 3)
        freedom = 1 / (1 / freedom + 1 / seen) if seen else 0.0
    error = math.sqrt(total)
    half = _t(freedom) * error if freedom else math.inf
    return Pooled(
        estimate, error, estimate - half, estimate + half, freedom, within, between, missing
    )


def _t(freedom: float) -> float:
    """Return the 97.5% quantile of Student's t: t = sqrt(n) tan a, a of density cos(a)^(n - 1)."""
    n = min(freedom, _NORMAL)
    angle = np.linspace(0, math.pi / 2, 20_000, endpoint=False)
    density = np.cos(angle) ** (n - 1)
    below = np.concatenate(([0.0], np.cumsum(density[1:] + density[:-1])))
    return math.sqrt(n) * math.tan(float(np.interp(0.95 * below[-1], below, angle)))
