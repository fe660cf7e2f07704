"""A Normal of independent elements, conditioned on numbers that are linear in it.

    x ~ N(mean, var),  y - E y = C (x - mean) + noise,  Cov y = S

In units of the standard deviations, u = (x - mean) / sqrt(var), and with y whitened, y changes u in
at most M directions q_k, each with a share rho_k of y's variance that x explains:

    u_k | y ~ N(sqrt(rho_k) e_k, 1 - rho_k),     u is unchanged in all other directions

so draws, densities and normalisers cost one eigenvalue problem of M x M.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from diffusion.distributions import LOG_2PI, Distribution, Normal, Tilt
from diffusion.noise import Noise
from diffusion.rows import Rows, row_sum

#: Why a product of models is refused beside some observations.
TIED = (
    "a product of models is worked out element by element, and what was seen ties them together: "
    "observe elements (operator 'mask'), with covariance 'diagonal' or 'independent'"
)


@final
@dataclass(frozen=True)
class Conditioned(Rows):
    """p(x | y), B rows; also a proposal beside its `base` (`posterior.proposal.Proposal`).

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
        """Condition `base` on y.

        Args:
            base: p(x), [B, *event].
            slope: C, float64 [B or 1, M, D].
            off: y - E y, float64 [B, M].
            total: S, float64 [B, M, M]; C var C^T and the noise's covariance.
            most: rho is clamped to it, where S is only an estimate.

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

    @property
    def drawn(self) -> Self:
        """What draws come from: this."""
        return self

    @property
    def mean(self) -> Tensor:
        """E[x | y], [B, *event]."""
        mean = self.base.mean
        moved = ((self.rho.sqrt() * self.surprise)[:, None] @ self.axes)[:, 0].reshape(mean.shape)
        return mean + (self.base.var.sqrt() * moved).to(mean.dtype)

    @classmethod
    @override
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Their rows in turn; axes of zeros are added where there are fewer than elsewhere."""
        most = max(part.rho.shape[1] for part in parts)
        padded = [cls._padded(part, most) for part in parts]
        return super().joined(padded)  # type: ignore[arg-type]

    @classmethod
    def _padded(cls, part: Self, most: int) -> Self:
        n = most - part.rho.shape[1]
        axes, rho = F.pad(part.axes, (0, 0, 0, n)), F.pad(part.rho, (0, n))
        return replace(part, axes=axes, rho=rho, surprise=F.pad(part.surprise, (0, n)))

    def sample(self, noise: Noise) -> Tensor:
        """One draw a row, [B, *event]."""
        mean, std = self.base.mean, self.base.var.sqrt()
        n = noise.normal(mean.shape[1:]).to(mean).double().flatten(1)
        # Along an axis sqrt(1 - rho) of the noise is kept: no other noise is needed.
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

    def tilted(self, tilt: Tilt) -> tuple[Self, Tensor, Tensor]:
        """`Distribution.tilted` by f(x) = exp(c + h x).

        log Z = c + h E[x | y] + h Cov[x | y] h / 2; the base moves by var h, and y is that much
        less surprising.

        Raises:
            ValueError: a tilt with curvature.
        """
        if bool(tilt.curvature.any()):
            raise ValueError(TIED)
        slope = tilt.linear
        mean, std = self.base.mean, self.base.var.double().sqrt()
        pull = (std * slope).flatten(1)  # in units of the standard deviations
        along = self._along(pull)
        base = Normal(mean + (std * std * slope).to(mean.dtype), self.base.var)
        surprise = self.surprise - self.rho.sqrt() * along
        log_z = tilt.constant + row_sum(slope * mean.double())
        log_z = log_z + (self.rho.sqrt() * self.surprise * along).sum(1)
        log_z = log_z + 0.5 * (pull.square().sum(1) - (self.rho * along.square()).sum(1))
        moved = replace(self, base=base, surprise=surprise)
        return moved, log_z, torch.zeros_like(slope)

    def _along(self, u: Tensor) -> Tensor:
        """q u, [B, M]."""
        return (self.axes @ u[:, :, None])[:, :, 0]
