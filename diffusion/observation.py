"""Observations r(x_0) of an example, and the products of kernels with them.

    y = A x_0 + noise,     p~(x_s | x_t) = p(x_s | x_t) r(x_s) / Z~_t(x_t)

With a Normal or a Bernoulli kernel, both the draws and Z~ have closed forms (Sohl-Dickstein et al.
2015, Section 2.5).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self, final

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from diffusion.distributions import LOG_2PI, Bernoulli, Distribution, Normal, Tilt
from diffusion.noise import Noise
from diffusion.operators import Dense, LinearOperator, Mask
from diffusion.rows import Rows, row_sum
from diffusion.space import Space

_ELEMENTS = Mask()
#: Why some observations cannot be combined with a product of models.
TIED = (
    "a product of models works element by element, and this observation ties them together: "
    "observe elements (operator 'mask'), with covariance 'diagonal' or 'independent'"
)


@final
@dataclass(frozen=True)
class Observation(Rows):
    """What was observed of N examples, as a factor over A x_0 in model units.

    Attributes:
        factor: [N, *seen]; infinite variance, or a logit of 0, where nothing was seen.
        operator: A; always a `Mask` for binary data.
        told: which examples' network is told of it, instead of multiplying its kernels by r, bool
            [N]; None for none.
        gaps: which elements are not there at all, neither seen nor asked for, bool [N, *event]; a
            network is told of them in every example. None for none.
    """

    factor: Distribution
    operator: LinearOperator = _ELEMENTS
    told: Tensor | None = None
    gaps: Tensor | None = None

    @classmethod
    def of_reals(cls, y: Tensor, known: Tensor, noise_std: Tensor | float = 0.0) -> Self:
        """Observe elements one by one: y = x_0 + noise_std n where known.

        Args:
            y: [N, *event], model units; ignored where not known.
            known: bool [N, *event].
            noise_std: model units, a number or broadcastable to `y`; 0 for exact values.
        """
        var = torch.as_tensor(noise_std, dtype=y.dtype, device=y.device).square()
        seen = torch.where(known, var, torch.inf)
        return cls(Normal(torch.where(known, y, 0.0), seen.expand_as(y).contiguous()))

    @classmethod
    def of_linear(
        cls,
        operator: LinearOperator,
        y: Tensor,
        event: tuple[int, ...],
        noise_std: Tensor | float = 0.0,
    ) -> Self:
        """Observe a linear map: y = A x_0 + noise_std n.

        Args:
            operator: A.
            y: [N, *seen], model units.
            event: the shape of an example.
            noise_std: model units, a number or broadcastable to `y`.

        Raises:
            ValueError: the shapes do not fit, or A is singular and there is no noise.
        """
        wanted = operator.seen(event)
        if tuple(y.shape[1:]) != wanted:
            raise ValueError(
                f"for data of shape {list(event)} this operator sees {list(wanted)}, came values "
                f"of shape {list(y.shape[1:])}"
            )
        seen = cls.of_reals(y, torch.ones_like(y, dtype=torch.bool), noise_std)
        if not isinstance(operator, Mask):
            exact = (seen.factor.var == 0).flatten(1).any(0)
            rows = operator.matrix(event, y.device)[exact]
            rows = rows / rows.abs().amax(1, keepdim=True).clamp_min(1e-300)  # unit-free
            if len(rows) and int(torch.linalg.matrix_rank(rows, rtol=1e-6)) < len(rows):
                raise ValueError(
                    f"some of {len(rows)} numbers seen without noise follow from the others (a "
                    "singular operator): leave them out, or give a noise above 0"
                )
        return cls(seen.factor, operator)

    @classmethod
    def of_bits(cls, y: Tensor, known: Tensor, flip_probability: Tensor | float = 0.0) -> Self:
        """Observe bits where known, each flipped with `flip_probability` in [0, 1/2).

        The probability is a number or broadcastable to `y`.
        """
        flip = torch.as_tensor(flip_probability, dtype=torch.float64, device=y.device)
        strength = -torch.logit(flip)  # infinite for 0
        logits = torch.where(y > 0.5, strength, -strength).to(y.dtype)
        return cls(Bernoulli(torch.where(known, logits, 0.0)))

    def to_network(self, told: bool = True) -> Self:
        """Return a copy whose examples are all told to the network, or none of them."""
        rows = torch.full((len(self),), told, device=self.known.device)
        return replace(self, told=rows)

    def without(self, gaps: Tensor) -> Self:
        """Return a copy that has not seen what is a gap, bool [N, *event]."""
        return replace(self, factor=self.factor.unseen(gaps), gaps=gaps)

    @cached_property
    def multiplied(self) -> Self:
        """What is left for kernels to multiply: r = 1 in the examples that the network is told."""
        if self.told is None:
            return self
        return replace(self, factor=self.factor.forget(self.told), told=None)

    @cached_property
    def telling(self) -> Distribution:
        """The factor of the examples whose network is told; 1 in the others."""
        assert self.told is not None  # as callers know
        return self.factor.forget(~self.told)

    @cached_property
    def inputs(self) -> Tensor | None:
        """What the network is told, [N, 3 event[0], ...] (`Distribution.told`); None for nothing.

        Raises:
            ValueError: it was seen through an operator.
        """
        if self.told is None:
            return None
        if not isinstance(self.operator, Mask):
            raise ValueError("a network is told of elements, not of what an operator makes of them")
        found = self.telling.told()
        if self.gaps is None:
            return found
        value, share, precision = found.chunk(3, 1)
        return torch.cat((value, share, precision.masked_fill(self.gaps, -1.0)), 1)

    @cached_property
    def certain(self) -> Tensor:
        """Which elements the network is told without noise, bool [N, *event]."""
        assert self.told is not None  # as callers know
        return self.factor.exact & self.told.view(-1, *[1] * (self.known.ndim - 1))

    @cached_property
    def closed(self) -> Tensor:
        """Which elements are not asked for: those told without noise, gaps; bool [N, *event]."""
        return self.certain if self.gaps is None else self.certain | self.gaps

    def __len__(self) -> int:
        """The number of examples, N."""
        return len(self.known)

    @property
    def known(self) -> Tensor:
        """Which numbers were seen, bool [N, *seen]."""
        return self.factor.known

    @property
    def values(self) -> Tensor:
        """The observed numbers or bits, [N, *seen]; meaningless where unknown."""
        return self.factor.values

    def one_noise(self, most: float) -> float | None:
        """Return the noise if all elements are seen with the same, below `most`; else None."""
        if not isinstance(self.operator, Mask) or not bool(self.known.all()):
            return None
        noise = self.factor.noise
        first = float(noise.flatten()[0])
        same = bool(((noise - first).abs() <= 1e-5 * first).all())  # up to rounding
        return first if 0 < first < most and same else None

    @property
    def count(self) -> Tensor:
        """The number of values seen of each example, int64 [N]."""
        return row_sum(self.known)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The factor's mean and variance, or its logits, [N, *seen] each; `told` and `gaps`."""
        more = (part for part in (self.told, self.gaps) if part is not None)
        return (*self.factor.tensors, *more)

    def multiply(self, kernel: Distribution) -> "tuple[Distribution | Conditioned, Tensor]":
        """Multiply a kernel p(x_s | x_t) of the process's own family by r.

        r(x) is the density of y given x_0 = x, or its probability for binary data.

        Returns:
            The normalised product p r / Z~, and log Z~ in nats, float64 [B].
        """
        if not isinstance(self.operator, Mask):
            matrix, off, noise = self.linear(kernel.mean)
            spread = matrix * kernel.var.expand_as(kernel.mean).double().flatten(1)[:, None]
            total = spread @ matrix.mT + torch.diag_embed(noise)
            product = Conditioned.on(kernel, matrix, off, total)
            return product, product.log_z
        return kernel.observe(self.factor)

    def residual(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y - A x and the noise variance, float64 [N, *seen]; 0 and 1 where unobserved."""
        factor, known = self.factor, self.known
        off = torch.where(known, (factor.mean - self.operator.forward(x)).double(), 0.0)
        return off, torch.where(known, factor.var.expand_as(factor.mean).double(), 1.0)

    def linear(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return A as a matrix, y - A x and the noise variances, for x [N, *event].

        A mask's matrix has a row only for each value seen. Examples with fewer values than others
        are padded with rows of zeros and variance 1 / (2 pi), which add nothing to a log-density.

        Returns:
            float64 [N or 1, M, D], [N, M] and [N, M].
        """
        factor = self.factor
        off = (factor.mean - self.operator.forward(x)).double().flatten(1)
        var = factor.var.expand_as(factor.mean).double().flatten(1)
        if not isinstance(self.operator, Mask):
            return self.operator.matrix(x.shape[1:], x.device)[None], off, var
        known = self.known.flatten(1)
        count = max(1, int(known.sum(1).max()))
        place = known.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
        real = known.gather(1, place)
        matrix = torch.zeros(*place.shape, known.shape[1], dtype=torch.float64, device=x.device)
        matrix.scatter_(2, place[:, :, None], real.double()[:, :, None])
        none = math.exp(-LOG_2PI)
        return (
            matrix,
            torch.where(real, off.gather(1, place), 0.0),
            torch.where(real, var.gather(1, place), none),
        )


def in_model_units(
    space: Space,
    operator: LinearOperator,
    y: Tensor,
    known: Tensor,
    noise: Tensor,
) -> tuple[Observation, Tensor]:
    """Build r in model units, x = c z + b, and its gain in log p(y): `Process.observe` for reals.

        y = A x + noise n   <=>   (y - A b) / c = A z + (noise / c) n

    if all elements share one scale c, or if each is observed on its own with its own c. Otherwise c
    goes into the matrix: y - A b = (A c) z + noise n.

    Raises:
        ValueError: an element with limits is seen with noise, or through an operator.
    """
    if space.limits is not None:
        curved = torch.tensor([each is not None for each in space.limits], device=y.device)
        if not isinstance(operator, Mask) or bool((curved & known & (noise > 0)).any()):
            raise ValueError(
                "elements with limits are seen one by one and exactly, because noise is not added "
                "to what the model is of, their probits: give them no noise, and no operator"
            )
    shift, scale = (part.broadcast_to(space.shape)[None] for part in space.affine)
    if isinstance(operator, Mask):
        z, std = space.to_model(y), (noise.double() / scale).float().expand_as(y)
        return Observation.of_reals(z, known, std), space.log_jacobian_of(z, known)
    first = float(scale.flatten()[0])
    if bool((scale != first).any()):
        shift = operator.forward(shift).flatten(1)
        rows = operator.matrix(space.shape, y.device) * scale.flatten()
        y, noise = y.flatten(1), noise.expand_as(y).flatten(1)
        ours: LinearOperator = Dense(rows=tuple(map(tuple, rows.tolist())))
        first = 1.0
    else:
        shift, ours = operator.forward(shift), operator
    z, std = (y.double() - shift) / first, noise.double() / first
    found = Observation.of_linear(ours, z.float(), space.shape, std.float())
    return found, -math.log(first) * found.count.double()


@final
@dataclass(frozen=True)
class Conditioned(Rows):
    """A Normal of independent elements, conditioned on numbers y that are linear in it; B rows.

        x ~ N(mean, var),  y - E y = C (x - mean) + noise,  Cov y = S

    With u = (x - mean) / sqrt(var) and y whitened, y changes u in at most M directions q_k; x
    explains a share rho_k of y's variance along each:

        u_k | y ~ N(sqrt(rho_k) e_k, 1 - rho_k),     u is unchanged in all other directions

    so draws, densities and normalisers cost one M x M eigenvalue problem. Also serves as a
    `posterior.proposal.Proposal`.

    Attributes:
        base: p(x), [B, *event].
        axes: q, float64 [B, M, D], orthonormal; zero where rho is zero.
        rho: the explained share of variance, float64 [B, M], 0 to 1.
        surprise: e, the whitened y, float64 [B, M]; standard normal a priori.
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
            total: S, float64 [B, M, M]: C var C^T plus the noise covariance.
            most: upper limit for rho; below 1 where S is only an estimate.

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
        """The distribution that draws come from: this one."""
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
        """Concatenate the rows, padding with zero axes to a common number."""
        most = max(part.rho.shape[1] for part in parts)
        padded = [cls._padded(part, most) for part in parts]
        return super().joined(padded)  # type: ignore[arg-type]

    @classmethod
    def _padded(cls, part: Self, most: int) -> Self:
        n = most - part.rho.shape[1]
        axes, rho = F.pad(part.axes, (0, 0, 0, n)), F.pad(part.rho, (0, n))
        return replace(part, axes=axes, rho=rho, surprise=F.pad(part.surprise, (0, n)))

    def sample(self, noise: Noise) -> Tensor:
        """Draw once per row, [B, *event]."""
        mean, std = self.base.mean, self.base.var.sqrt()
        n = noise.normal(mean.shape[1:]).to(mean).double().flatten(1)
        # Each axis keeps sqrt(1 - rho) of the noise, so no second draw is needed.
        along = self._along(n)
        change = (1 - self.rho).sqrt() * along + self.rho.sqrt() * self.surprise - along
        moved = n + (change[:, None] @ self.axes)[:, 0]
        return (mean + std * moved.reshape(mean.shape)).to(mean.dtype)

    def log_ratio(self, x: Tensor) -> Tensor:
        """Return log p(x | y) - log p(x), nats, float64 [B]; needs rho below 1."""
        u = (x - self.base.mean).double() / self.base.var.double().sqrt()
        along, left = self._along(u.flatten(1)), 1 - self.rho
        missed = (along - self.rho.sqrt() * self.surprise).square() / left
        return -0.5 * (missed - along.square() + left.log()).sum(1)

    def tilted(self, tilt: Tilt) -> tuple[Self, Tensor, Tensor]:
        """Multiply by f(x) = exp(c + h x), as `Distribution.tilted` does.

        log Z = c + h E[x | y] + h Cov[x | y] h / 2; the base moves by var h, which makes y less
        surprising.

        Raises:
            ValueError: the tilt has curvature.
        """
        if bool(tilt.curvature.any()):
            raise ValueError(TIED)
        slope = tilt.linear
        mean, std = self.base.mean, self.base.var.double().sqrt()
        pull = (std * slope).flatten(1)  # in standard deviations
        along = self._along(pull)
        base = Normal(mean + (std * std * slope).to(mean.dtype), self.base.var)
        surprise = self.surprise - self.rho.sqrt() * along
        log_z = tilt.constant + row_sum(slope * mean.double())
        log_z = log_z + (self.rho.sqrt() * self.surprise * along).sum(1)
        log_z = log_z + 0.5 * (pull.square().sum(1) - (self.rho * along.square()).sum(1))
        moved = replace(self, base=base, surprise=surprise)
        return moved, log_z, torch.zeros_like(slope)

    def _along(self, u: Tensor) -> Tensor:
        """Return q u, [B, M]."""
        return (self.axes @ u[:, :, None])[:, :, 0]
