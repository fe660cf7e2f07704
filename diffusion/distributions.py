"""Distributions over rows: independent elements, one row an example.

    log_prob(x) = sum over elements,    KL(q || p) = E_q[log q - log p],
    q(x) r(x) = Z * (q multiplied by r)(x)

Every figure is in nats and summed over a row's elements: [B]. Products have closed forms, kernel
and normaliser both (Sohl-Dickstein et al. 2015, Section 2.5).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.special import log_ndtr
from typing_extensions import override

from diffusion.noise import Noise
from diffusion.rows import Rows, row_sum
from diffusion.space import DataSpace

#: log(2 pi), a Normal's share of each element.
LOG_2PI = math.log(2.0 * math.pi)
_FAR = 1e3  # standard deviations; stands for infinity where a gradient must stay finite
#: The most by which a tilt widens a Normal's variance: a factor that grows faster than the Normal
#: falls has no product with it, and weights correct the rest.
_WIDEST = 4.0


class Distribution(Rows, ABC):
    """One family over rows [B, *event]; `other` is always of the same family.

    As a factor it holds what was observed of each element: `values` with `noise`, where `known`.

    Attributes:
        continuous: whether it is a density.
        mean: [B, *event].
        var: broadcastable to `mean`.
    """

    continuous: ClassVar[bool] = True
    mean: Tensor
    var: Tensor

    @abstractmethod
    def sample(self, noise: Noise) -> Tensor:
        """One draw a row, [B, *event]."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), nats [B]."""

    @abstractmethod
    def kl(self, other: Self) -> Tensor:
        """KL(self || other), nats [B]."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """-E log p, nats [B]."""

    @abstractmethod
    def multiply(self, other: Self) -> tuple[Self, Tensor]:
        """The normalised product with `other`, and log Z in nats [B]."""

    @abstractmethod
    def observe(self, factor: Self) -> tuple[Self, Tensor]:
        """`multiply` by an observation, which is 1 where nothing was seen; log Z float64 [B]."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """The parameters, [B, *event] each; `type(self)(*tensors)` is the same distribution."""

    @property
    @abstractmethod
    def known(self) -> Tensor:
        """Which elements a factor observes, bool [B, *event]."""

    @property
    @abstractmethod
    def values(self) -> Tensor:
        """What a factor observed, [B, *event]."""

    @property
    @abstractmethod
    def noise(self) -> Tensor:
        """A factor's noise, a standard deviation or a flip probability, [B, *event]."""

    @abstractmethod
    def log_mass(self, x: Tensor, space: DataSpace) -> Tensor:
        """log of the probability of the level that each element of x is, nats [B].

        Raises:
            ValueError: data without levels.
        """

    @abstractmethod
    def tilt(self) -> "Tilt":
        """The density or probability as a factor."""

    @abstractmethod
    def tilted(self, tilt: "Tilt") -> tuple[Self, Tensor, Tensor]:
        """The normalised product p' = p f / Z; log Z, float64 [B]; and a missing curvature e.

        Where f grows faster than p falls p f has no integral: p' is then narrower, and
        p f / Z = p' exp(e (x - mean)^2 / 2), e float64 [B, *event], 0 elsewhere.
        """

    @property
    @abstractmethod
    def noisy(self) -> bool:
        """Whether a factor allows for noise in anything that it observed."""

    def double(self) -> Self:
        """The same in float64."""
        return self.each(Tensor.double)


@final
@dataclass(frozen=True)
class Normal(Distribution):
    """N(mean, var) elementwise.

    Args:
        mean: [B, *event].
        var: broadcastable to `mean`. As a factor of `multiply`, 0 means known exactly and infinity
            not known at all.
    """

    mean: Tensor
    var: Tensor

    @override
    def sample(self, noise: Noise) -> Tensor:
        """mean + sqrt(var) n, [B, *event]; where var is 0 the mean comes back bit for bit."""
        drawn = noise.normal(self.mean.shape[1:]).to(self.mean)
        return torch.addcmul(self.mean, self.var.sqrt(), drawn)

    @override
    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, var), nats [B]."""
        return -0.5 * row_sum((x - self.mean).square() / self.var + self._log_var() + LOG_2PI)

    @override
    def kl(self, other: Self) -> Tensor:
        """KL(self || other), nats [B]."""
        ratio = (self.var / other.var).expand_as(self.mean)
        shift = (self.mean - other.mean).square() / other.var
        return 0.5 * row_sum(ratio - 1.0 - ratio.log() + shift)

    @override
    def entropy(self) -> Tensor:
        """(1/2) log(2 pi e var), nats [B]."""
        return 0.5 * row_sum(self._log_var() + (LOG_2PI + 1.0))

    @override
    def rows(self, index: slice | Tensor) -> Self:
        return type(self)(*(part[index] for part in self.tensors))

    @classmethod
    @override
    def joined(cls, parts: Sequence[Self]) -> Self:
        return cls(*map(torch.cat, zip(*(part.tensors for part in parts), strict=True)))

    @override
    def multiply(self, other: Self) -> tuple[Self, Tensor]:
        """The normalised product with `other` and log Z = log N(mean; other.mean, var + other.var).

        Elements where either variance is infinite are not constrained by it: they take the other's
        parameters and add nothing to log Z. Where `other.var` is 0 the product is `other.mean` bit
        for bit.

        Returns:
            The product, and log Z in nats [B].
        """
        mean, var = torch.broadcast_tensors(self.mean, self.var)
        other_mean, other_var = torch.broadcast_tensors(other.mean, other.var)
        keeps = torch.isinf(other_var)
        takes = (other_var == 0) | (torch.isinf(var) & ~keeps)
        total = var + other_var
        product_mean = mean + var / total * (other_mean - mean)
        product_var = var * (other_var / total)  # in this order nothing cancels or underflows
        product = type(self)(
            torch.where(keeps, mean, torch.where(takes, other_mean, product_mean)),
            torch.where(keeps, var, torch.where(takes, other_var, product_var)),
        )
        log_z = (other_mean - mean).square() / total + total.log() + LOG_2PI
        return product, -0.5 * row_sum(torch.where(torch.isinf(total), 0.0, log_z))

    @override
    def observe(self, factor: Self) -> tuple[Self, Tensor]:
        product, log_z = self.multiply(factor)
        return product, log_z.double()

    @property
    @override
    def tensors(self) -> tuple[Tensor, ...]:
        return self.mean, self.var.expand_as(self.mean)

    @property
    @override
    def known(self) -> Tensor:
        return torch.isfinite(self.var).expand_as(self.mean)

    @property
    @override
    def values(self) -> Tensor:
        return self.mean

    @property
    @override
    def noise(self) -> Tensor:
        return self.var.sqrt().expand_as(self.mean)

    @override
    def log_mass(self, x: Tensor, space: DataSpace) -> Tensor:
        """log of the mass in the bin of each level, the end bins open, nats [B].

        Phi((x + h - mean) / std) - Phi((x - h - mean) / std), h half a level in model units
        (Ho, Jain and Abbeel 2020, Equation 13).
        """
        if space.levels is None or space.bounds is None:
            raise ValueError(
                'convention "discretised" needs data with levels: use "density" or "paper"'
            )
        low, high = (bound.to(x.device) for bound in space.bounds)
        half = (high - low) / (2 * (space.levels - 1))
        x, mean = x.double(), self.mean.double()
        std = self.var.double().sqrt()
        below = torch.where(x <= low + half, -_FAR, (x - half - mean) / std).clamp(-_FAR, _FAR)
        above = torch.where(x >= high - half, _FAR, (x + half - mean) / std).clamp(-_FAR, _FAR)
        # In the upper tail the difference is taken from the other side, where it does not cancel.
        flip = below + above > 0
        lower = log_ndtr(torch.where(flip, -above, below))
        upper = log_ndtr(torch.where(flip, -below, above))
        mass = upper + torch.log(-torch.expm1((lower - upper).clamp(max=-1e-30)))
        return row_sum(mass)

    @override
    def tilt(self) -> "Tilt":
        mean = self.mean.double()
        var = self.var.double().expand_as(mean)
        constant = -0.5 * row_sum(mean.square() / var + var.log() + LOG_2PI)
        return Tilt(constant, mean / var, 1 / var)

    @override
    def tilted(self, tilt: "Tilt") -> tuple[Self, Tensor, Tensor]:
        """With g = h - k mean the slope of log f at the mean: var' = var / (1 + k var), mean' =
        mean + var' g and log Z = log f(mean) + g^2 var' / 2 - log(1 + k var) / 2; 1 + k var is
        taken to be at least 1 / 4.
        """
        mean = self.mean.double()
        var = self.var.double().expand_as(mean)
        narrow = (1 + tilt.curvature * var).clamp_min(1 / _WIDEST)
        slope, left = tilt.linear - tilt.curvature * mean, var / narrow
        log_z = tilt.log(mean) + 0.5 * row_sum(slope.square() * left - narrow.log())
        missing = torch.where(var > 0, narrow - 1 - tilt.curvature * var, 0.0) / var.clamp_min(
            1e-300
        )
        dtype = self.mean.dtype
        product = type(self)((mean + left * slope).to(dtype), left.to(dtype))
        return product, log_z, missing

    @property
    @override
    def noisy(self) -> bool:
        return bool((torch.isfinite(self.var) & (self.var > 0)).any())

    def _log_var(self) -> Tensor:
        return self.var.log().expand_as(self.mean)


@final
@dataclass(frozen=True)
class Bernoulli(Distribution):
    """B(sigmoid(logits)) elementwise, over 0 and 1.

    Args:
        logits: [B, *event]; -inf and inf are certain zeros and ones.
    """

    continuous = False
    logits: Tensor

    @classmethod
    def of(cls, probability: Tensor) -> Self:
        """From the probability of a one, [B, *event]."""
        return cls(torch.logit(probability))

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        """The probability of a one, [B, *event]."""
        return self.logits.sigmoid()

    @property
    def var(self) -> Tensor:  # type: ignore[override]
        """P(1) (1 - P(1)), [B, *event]."""
        return self.mean * (1 - self.mean)

    @override
    def sample(self, noise: Noise) -> Tensor:
        """1 where a uniform draw falls under the mean, [B, *event]."""
        return (noise.uniform(self.logits.shape[1:]).to(self.mean) < self.mean).to(self.mean)

    @override
    def log_prob(self, x: Tensor) -> Tensor:
        """log B(x), nats [B]; -inf where x is impossible."""
        return row_sum(torch.where(x > 0.5, F.logsigmoid(self.logits), F.logsigmoid(-self.logits)))

    @override
    def kl(self, other: Self) -> Tensor:
        """KL(self || other), nats [B]."""
        return row_sum(self._expect(self._log(1) - other._log(1), self._log(0) - other._log(0)))

    @override
    def entropy(self) -> Tensor:
        """-E log B, nats [B]."""
        return -row_sum(self._expect(self._log(1), self._log(0)))

    @override
    def multiply(self, other: Self) -> tuple[Self, Tensor]:
        """The normalised product with `other` and log Z = log sum_x self(x) other(x).

        Returns:
            The product, and log Z in nats [B]; -inf where the two exclude each other.
        """
        log_z = torch.logaddexp(self._log(1) + other._log(1), self._log(0) + other._log(0))
        return type(self)(self.logits + other.logits), row_sum(log_z)

    @override
    def observe(self, factor: Self) -> tuple[Self, Tensor]:
        product, log_z = self.multiply(factor)
        # A logit of 0 counts 1/2 for a bit of which nothing was seen: it is to count 1.
        log_z = log_z + math.log(2.0) * row_sum(~factor.known)
        return product, log_z.double()

    @property
    @override
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.logits,)

    @property
    @override
    def known(self) -> Tensor:
        return self.logits != 0

    @property
    @override
    def values(self) -> Tensor:
        return (self.logits > 0).to(self.logits.dtype)

    @property
    @override
    def noise(self) -> Tensor:
        return (-self.logits.double().abs()).sigmoid()

    @override
    def log_mass(self, x: Tensor, space: DataSpace) -> Tensor:
        return self.log_prob(x)  # a bit is its own level

    @override
    def tilt(self) -> "Tilt":
        logits = self.logits.double()
        return Tilt(row_sum(F.logsigmoid(-logits)), logits, torch.zeros_like(logits))

    @override
    def tilted(self, tilt: "Tilt") -> tuple[Self, Tensor, Tensor]:
        logits = self.logits.double()
        one, zero = F.logsigmoid(logits) + tilt.linear, F.logsigmoid(-logits)
        log_z = tilt.constant + row_sum(torch.logaddexp(one, zero))
        product = type(self)((logits + tilt.linear).to(self.logits.dtype))
        return product, log_z, torch.zeros_like(logits)

    @property
    @override
    def noisy(self) -> bool:
        return bool(self.logits[self.known].isfinite().any())

    def log_each(self, x: Tensor) -> Tensor:
        """log-probability of each bit of x, float64 [B, *event]."""
        logits = self.logits.double()
        return F.logsigmoid(torch.where(x > 0.5, logits, -logits))

    def _log(self, x: int) -> Tensor:
        return F.logsigmoid(self.logits if x else -self.logits)

    def _expect(self, one: Tensor, zero: Tensor) -> Tensor:
        """E of a function that is `one` at 1 and `zero` at 0; an impossible value adds nothing."""
        p = self.mean
        return torch.where(p > 0, p * one, 0.0) + torch.where(p < 1, (1.0 - p) * zero, 0.0)


@final
@dataclass(frozen=True)
class Tilt:
    """A factor f(x) = exp(c + sum_i (h_i x_i - k_i x_i^2 / 2)) of B rows, in canonical form.

    Attributes:
        constant: c, float64 [B].
        linear: h, float64 [B, *event].
        curvature: k, float64, broadcastable to `linear`; of bits 0.
    """

    constant: Tensor
    linear: Tensor
    curvature: Tensor

    def times(self, other: Self, power: Tensor | float = 1.0) -> Self:
        """f g^power; power a number, or float64 [B]."""
        power = torch.as_tensor(power, dtype=torch.float64, device=self.constant.device)
        each = power.reshape(-1, *[1] * (self.linear.ndim - 1))
        return type(self)(
            self.constant + power * other.constant,
            self.linear + each * other.linear,
            self.curvature + each * other.curvature,
        )

    def log(self, x: Tensor) -> Tensor:
        """log f(x), nats, float64 [B]."""
        x = x.double()
        return self.constant + row_sum(self.linear * x - self.curvature * x.square() / 2)
