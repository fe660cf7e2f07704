"""The variance of an estimate of the bound, and the degrees of freedom of that variance.

    variance = (k V + n v) / (k + n),    freedom = k + n

v is estimated from the terms of this one example, with n degrees of freedom. V comes from a profile
of training data and counts for k degrees of freedom: a few terms say little about their own spread,
which one or two of them often dominate. If v is far above V, the example is unlike the training
data and V counts for less. The 95% interval is the bound plus or minus the standard error times the
quantile of Student's t with `freedom` degrees of freedom.
"""

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from diffusion.profile import Profile

PRIOR = 8.0  # degrees of freedom that a profile counts for
UNLIKE = 3.0  # ratio of the seen variance to the profile's above which the profile counts for less
# Degrees of freedom of binary data's terms relative to normal ones: most are near 0, few are large.
BITS = 0.4
_95 = 1.959963984540054


@final
@dataclass(frozen=True)
class Expected:
    """A profile's prediction of the parts of an estimate.

    Attributes:
        mean: mean of each stratum's part, nats, float64 [n].
        variance: variance of its estimate from one draw, nats squared, float64 [n].
        last: variance of one draw of the last step's part; None if unknown.
        share: degrees of freedom of a term relative to a normal one, see `BITS`.
    """

    mean: Tensor
    variance: Tensor
    last: float | None
    share: float = 1.0

    @classmethod
    def of(cls, profile: Profile, edges: Tensor, own: bool, bits: bool) -> Self:
        """Predict for strata with these edges; `own`: whether it is the data's own convention."""
        mean, spread = profile.mean.cpu(), profile.spread.cpu()
        sums = mean.cumsum(0)[edges].diff()
        squares = (mean.square() + spread.square()).cumsum(0)[edges].diff()
        variance = (edges.diff() * squares - sums.square()).clamp_min(0)
        last = float(spread[1].square()) if own else None
        return cls(sums, variance, last, BITS if bits else 1.0)


def pooled(
    seen: Tensor, freedom: Tensor, prior: float | Tensor | None, share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Pool a sample variance with a prior one; return it [N] and its degrees of freedom [N].

    Args:
        seen: the sample variance, [N].
        freedom: its degrees of freedom, [N]; 0 if it is unknown.
        prior: the prior variance, or None.
        share: degrees of freedom of a term relative to a normal one, see `BITS`.
    """
    if prior is None:
        return seen, freedom
    known = torch.as_tensor(prior, dtype=seen.dtype)
    weight = PRIOR / share * (UNLIKE * known / seen).nan_to_num(1.0).clamp(max=1.0)
    total = weight + freedom
    return (weight * known + freedom * seen) / total, share * total


def summed(*parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the variance of a sum of independent parts, and Satterthwaite degrees of freedom."""
    variance = torch.stack([part[0] for part in parts]).sum(0)
    each = torch.stack([v.square() / n.clamp_min(1e-9) for v, n in parts]).sum(0)
    least = torch.stack([n for _, n in parts]).amin(0)
    return variance, torch.where(each > 0, variance.square() / each, least)


def of_strata(weighted: Tensor, expected: Expected | None) -> tuple[Tensor, Tensor]:
    """Estimate the variance of the sum of `weighted` [N, n] over strata and its degrees of freedom.

    It uses successive differences after removing the profile's trend, and is slightly too large.
    """
    strata = weighted.shape[1]
    if expected is not None:
        trend = weighted.sum(1) / expected.mean.sum()
        weighted = weighted - expected.mean * trend.nan_to_num(0.0)[:, None]
    squares = weighted.diff(dim=1).square()
    seen = squares.sum(1) / 2 * strata / max(strata - 1, 1)
    if expected is None:
        # Half the value for normal differences of any variances, since they are seldom normal.
        freedom = squares.sum(1).square() / squares.square().sum(1)
        return seen, freedom.nan_to_num(1.0, posinf=1.0).clamp_min(1.0)
    total = expected.variance.sum()
    freedom = total.square() / expected.variance.square().sum() if strata > 1 else 0 * total
    return pooled(seen, freedom.nan_to_num(1.0).expand_as(seen), total, expected.share)


def of_draws(draws: Tensor, expected: Expected | None) -> tuple[Tensor, Tensor]:
    """Estimate the variance of the mean of `draws` [N, n], n >= 2, and its degrees of freedom."""
    n = draws.shape[1]
    prior = None if expected is None or expected.last is None else expected.last / n
    share = 1.0 if expected is None else expected.share
    freedom = torch.full((len(draws),), n - 1.0, dtype=torch.float64)
    return pooled(draws.var(1) / n, freedom, prior, share)


def quantile(freedom: Tensor) -> Tensor:
    """Return the 97.5% quantile of Student's t, within 0.2% for 3 degrees of freedom or more.

    It uses the expansion in 1 / freedom (Abramowitz and Stegun, 26.7.5). Between 1, 2 and 3 degrees
    it interpolates the logarithm linearly, which is too large by up to a quarter.
    """
    n, z = freedom.double().clamp_min(1.0), _95
    far = n.clamp_min(3.0)
    found = (
        z
        + (z**3 + z) / (4 * far)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * far**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * far**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * far**4)
    )
    ends = torch.tensor([12.7062, 4.3027, 3.1824], dtype=torch.float64).log()
    low = n.clamp(max=2.0) - 1
    high = n.clamp(2.0, 3.0) - 2
    near = (ends[0] + low * (ends[1] - ends[0]) + high * (ends[2] - ends[1])).exp()
    return torch.where(n < 3, near, found)
