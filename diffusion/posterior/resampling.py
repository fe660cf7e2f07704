"""Weights of particles: resampling, effective sample size, and the variance of an evidence.

Each function takes log-weights, nats, float64 [S, P], of S systems of P particles.

Sources: Kitagawa 1996 (systematic resampling); Lee and Whiteley 2018 (variance from one run).
"""

import math

import torch
from torch import Tensor


def systematic(log_w: Tensor, uniform: Tensor, count: int) -> Tensor:
    """Places drawn in proportion to weights: (i + u) / count through their cumulative sum.

    Of place j come floor or ceil of count w_j / sum(w), on average exactly that.

    Args:
        log_w: nats, float64 [S, P]; where all are -inf, all weigh the same.
        uniform: u, one for each system, float64 [S].
        count: how many places to draw.

    Returns:
        int64 [S, count], ascending.
    """
    ticks = torch.arange(count, dtype=torch.float64, device=log_w.device) + uniform[:, None]
    return _at(log_w, ticks / count)


def drawn(log_w: Tensor, uniform: Tensor, count: int) -> Tensor:
    """Places drawn, each of them j with probability w_j / sum(w): (u + i / count) mod 1.

    All together they are as even as those of `systematic`, whose first place is always a low one:
    taken alone, or few, its places are no draws by the weights.

    Args:
        log_w: and what follows: as `systematic` takes them.
        uniform: u, one for each system, float64 [S].
        count: how many places to draw.

    Returns:
        int64 [S, count].
    """
    ticks = torch.arange(count, dtype=torch.float64, device=log_w.device) / count
    return _at(log_w, (ticks + uniform[:, None]) % 1)


def _at(log_w: Tensor, ticks: Tensor) -> Tensor:
    """Where the shares of the weights, laid end to end, reach ticks of 0 to 1, [S, count]."""
    edges = normalise(log_w).cumsum(1)
    found = torch.searchsorted(edges / edges[:, -1:], ticks.contiguous(), right=True)
    return found.clamp(max=log_w.shape[1] - 1)


def ess(log_w: Tensor) -> Tensor:
    """The effective sample size (sum w)^2 / sum w^2, 1 to P, float64 [S]."""
    return 1 / normalise(log_w).square().sum(1)


def log_mean(log_w: Tensor) -> Tensor:
    """log of the mean weight, [S]; -inf where all are."""
    return log_w.logsumexp(1) - math.log(log_w.shape[1])


def spread(log_w: Tensor, ancestors: Tensor, apart: Tensor) -> Tensor:
    """Variance of a system's log of Z, by the system alone, float64 [S].

        V = 1 - P / (P - 1) (1 - sum over ancestors a of (sum of the weights from a)^2)

    estimates the variance of Z / E[Z] (Lee and Whiteley 2018, Equation 4, with the factor of one
    resampling: the systematic one adds little), so -log(1 - V) that of its logarithm. It is never
    more than 1 and says nothing once all descend from one: then what the resamplings tell, one by
    one, stands in, and at least 1. Of one particle nothing is known: infinite.

    Args:
        log_w: last, nats, float64 [S, P].
        ancestors: from which of the first particles each descends, int64 [S, P].
        apart: sum of `jackknife` over the resamplings, float64 [S].
    """
    P = log_w.shape[1]
    if P == 1:
        return torch.full_like(apart, math.inf)
    families = torch.zeros_like(log_w).scatter_add(1, ancestors, normalise(log_w))
    single = (ancestors == ancestors[:, :1]).all(1)
    V = 1 - P / (P - 1) * (1 - families.square().sum(1))
    return torch.where(single, apart.clamp_min(1.0), -torch.log1p(-V.clamp(0.0, 1 - 1e-9)))


def jackknife(log_w: Tensor) -> Tensor:
    """Variance of `log_mean` by leaving out one weight at a time (Tukey 1958), float64 [S]."""
    P = log_w.shape[1]
    left = torch.log1p(-normalise(log_w).clamp(max=1 - 1e-15))
    return left.var(1, correction=0) * (P - 1)


def normalise(log_w: Tensor) -> Tensor:
    """Weights that sum to 1, [S, P]; equal ones where nothing weighs anything."""
    none = torch.isneginf(log_w).all(1, keepdim=True)
    return torch.where(none, 0.0, log_w).softmax(1)


def weigh(log_z: Tensor) -> Tensor:
    """What each of K independent systems counts, float64 [N, K], summing to 1.

    Z_k / sum Z, by which averages have no bias but that of a ratio, as long as that leaves more
    than half of the systems: an effective number of (K + 1) / 2. So few that lost a mode are made
    up for. Where most are to be given up (much was seen by few particles), the weights say more of
    the noise in Z_k than of the posterior, one system would stand for all, and they count alike.

    Args:
        log_z: of each system, nats, float64 [N, K].
    """
    firm = ess(log_z) >= (log_z.shape[1] + 1) / 2 - 1e-9
    return torch.where(firm[:, None], normalise(log_z), 1 / log_z.shape[1])
