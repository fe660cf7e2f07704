"""A Normal of independent elements, given numbers that go linearly with it.

    x ~ N(mean, var),  y - E y = C (x - mean) + noise,  Cov y = S

In units of the standard deviations, u = (x - mean) / sqrt(var), and with y whitened, the two meet
in at most M directions q_k, each with a share rho_k of y's variance that x explains:

    u_k | y ~ N(sqrt(rho_k) e_k, 1 - rho_k),     u as it was in all other directions

so that draws, densities and normalisers cost one eigenvalue problem of M x M.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.distributions import LOG_2PI, Distribution, Normal
from diffusion.noise import Noise


@final
@dataclass(frozen=True)
class Conditioned:
    """p(x | y), B rows.

    Attributes:
        base: p(x), [B, *event].
        axes: q, float64 [B, M, D], orthonormal; zero where rho is.
        rho: the share explained, float64 [B, M], 0 to 1.
        surprise: e, y whitened, float64 [B, M]; standard normal before x is known.
        log_z: log N(y; E y, S), nats, float64 [B].
    """

    base: Distribution
    axes: Tensor
    rho: Tensor
    surprise: Tensor
    log_z: Tensor

    @classmethod
    def on(
        cls, base: Distribution, slope: Tensor, off: Tensor, total: Tensor, most: float = 1.0
    ) -> Self:
        """Given y.

        Args:
            base: p(x), [B, *event].
            slope: C, float64 [B or 1, M, D].
            off: y - E y, float64 [B, M].
            total: S, float64 [B, M, M]; C var C^T and the noise's covariance.
            most: of rho; what is above is cut to it, where S is no more than an estimate.

        Raises:
            ValueError: S is singular.
        """
        root, failed = torch.linalg.cholesky_ex(total)
        if bool(failed.any()):
            raise ValueError(
                "the numbers observed determine each other (a singular operator), without noise "
                "to allow for it: leave out what follows from the rest, or give a noise above 0"
            )
        scaled = slope * base.var.expand_as(base.mean).double().flatten(1).sqrt()[:, None]
        white = torch.linalg.solve_triangular(root, scaled, upper=False)
        rho, turn = torch.linalg.eigh(white @ white.mT)
        axes = turn.mT @ white / rho.clamp_min(1e-24).sqrt()[:, :, None]
        whitened = torch.linalg.solve_triangular(root, off[:, :, None], upper=False)
        surprise = (turn.mT @ whitened)[:, :, 0]
        log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)
        log_z = -0.5 * (surprise.square().sum(1) + log_det + off.shape[1] * LOG_2PI)
        return cls(base, axes, rho.clamp(0.0, most), surprise, log_z)

    def rows(self, index: Tensor) -> Self:
        """Some of the rows, or one several times; int64 [b]."""
        axes, rho, surprise, log_z = (
            part[index] for part in (self.axes, self.rho, self.surprise, self.log_z)
        )
        return type(self)(self.base.rows(index), axes, rho, surprise, log_z)

    @classmethod
    def joined(cls, parts: "Sequence[Conditioned]") -> Self:
        """Their rows in turn; who has fewer axes than others gets some that nothing lies along."""
        most = max(part.rho.shape[1] for part in parts)
        lacking = [most - part.rho.shape[1] for part in parts]
        ways = list(zip(parts, lacking, strict=True))
        return cls(
            type(parts[0].base).joined([part.base for part in parts]),
            torch.cat([F.pad(part.axes, (0, 0, 0, n)) for part, n in ways]),
            torch.cat([F.pad(part.rho, (0, n)) for part, n in ways]),
            torch.cat([F.pad(part.surprise, (0, n)) for part, n in ways]),
            torch.cat([part.log_z for part in parts]),
        )

    def sample(self, noise: Noise) -> Tensor:
        """One draw a row, [B, *event]."""
        mean, std = self.base.mean, self.base.var.sqrt()
        n = noise.normal(mean.shape[1:]).to(mean).double().flatten(1)
        # Of what lies along an axis sqrt(1 - rho) is kept: no noise is needed but x's own.
        along = self._along(n)
        change = (1 - self.rho).sqrt() * along + self.rho.sqrt() * self.surprise - along
        moved = n + (change[:, None] @ self.axes)[:, 0]
        return (mean + std * moved.reshape(mean.shape)).to(mean.dtype)

    def log_ratio(self, x: Tensor) -> Tensor:
        """log p(x | y) - log p(x), nats, float64 [B]; rho below 1."""
        u = (x - self.base.mean).double() / self.base.var.double().sqrt()
        along, left = self._along(u.flatten(1)), 1 - self.rho
        missed = (along - self.rho.sqrt() * self.surprise).square() / left
        return -0.5 * (missed - along.square() + left.log()).sum(1)

    def tilted(self, slope: Tensor) -> tuple[Self, Tensor]:
        """p(x | y) exp(slope x) / Z, and log Z = slope E[x | y] + slope Cov[x | y] slope / 2.

        The base moves by var slope, and y is that much less surprising.

        Args:
            slope: float64 [B, *event].
        """
        mean, std = self.base.mean, self.base.var.double().sqrt()
        pull = (std * slope).flatten(1)  # in units of the standard deviations
        along = self._along(pull)
        base = Normal(mean + (std * std * slope).to(mean.dtype), self.base.var)
        surprise = self.surprise - self.rho.sqrt() * along
        log_z = (slope * mean.double()).flatten(1).sum(1)
        log_z = log_z + (self.rho.sqrt() * self.surprise * along).sum(1)
        log_z = log_z + 0.5 * (pull.square().sum(1) - (self.rho * along.square()).sum(1))
        return type(self)(base, self.axes, self.rho, surprise, self.log_z), log_z

    def _along(self, u: Tensor) -> Tensor:
        """q u, [B, M]."""
        return (self.axes @ u[:, :, None])[:, :, 0]
