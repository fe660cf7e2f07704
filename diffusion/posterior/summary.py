"""What people ask of a posterior's samples: mean, standard deviation, quantiles, by element.

    mean = sum_j w_j x_j,    var = sum_j w_j (x_j - mean)^2 / (1 - sum_j w_j^2)

with weights that sum to 1; equal ones make them the usual estimates, var without bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Summary:
    """Of N posteriors, element by element.

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
