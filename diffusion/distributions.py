"""Distributions over rows of independent elements, one row per example.

    log_prob(x) = sum over elements,    KL(q || p) = E_q[log q - log p],
    q(x) r(x) = Z * (q multiplied by r)(x)

All results are in nats, summed over the elements of a row: [B]. Products and their normalisers have
closed forms (Sohl-Dickstein et al. 2015, Section 2.5).
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
from diffusion.space import Space

#: log(2 pi)
LOG_2PI = math.log(2.0 * math.pi)
_FAR = 1e3  # standard deviations; a stand-in for infinity that keeps gradients finite
#: Stands for the end of a cell without one, in model units.
_ENDLESS = 1e12
#: Limit on the factor by which a tilt widens a Normal. A tilt that grows faster than the Normal
#: falls has no normalised product, so weights correct the rest.
_WIDEST = 4.0
#: A variance, and log-odds, that a network is told as if they were certain.
_FINEST, _SUREST = 1e-7, 14.0


#: The lower and upper ends of the cells that values stand for, float64 [B, *event] each.
Cells = tuple[Tensor, Tensor]


class Distribution(Rows, ABC):
    """A distribution over rows [B, *event]; `other` is always of the same family.

    Used as a factor, it holds an observation: `values` with `noise`, where `known`.

    Attributes:
        continuous: whether it has a density.
        mean: [B, *event].
        var: broadcastable to `mean`.
    """

    continuous: ClassVar[bool] = True
    mean: Tensor
    var: Tensor

    @abstractmethod
    def sample(self, noise: Noise) -> Tensor:
        """Draw once per row, [B, *event]."""

    def log_prob(self, x: Tensor, among: Tensor | None = None) -> Tensor:
        """Return log p(x), nats [B]; of the elements `among` alone, bool [B, *event], if given."""
        return sum_of(self.log_probs(x), among)

    def log_mass(self, x: Tensor, space: Space, among: Tensor | None = None) -> Tensor:
        """Return the log-probability of the cells of x, nats [B]; `among` as in `log_prob`."""
        return sum_of(self.log_masses(x, space.cells(x)), among)

    def kl(self, other: Self, among: Tensor | None = None) -> Tensor:
        """Return KL(self || other), nats [B]; `among` as in `log_prob`."""
        return sum_of(self.kls(other), among)

    @abstractmethod
    def log_probs(self, x: Tensor) -> Tensor:
        """Return what each element adds to log p(x), nats [B, *event]."""

    def log_masses(self, x: Tensor, cells: Cells | None) -> Tensor:
        """Return what each element adds to the log-probability of its cell, nats [B, *event].

        Args:
            x: [B, *event].
            cells: their lower and upper ends; None for values that are cells themselves.

        Raises:
            ValueError: the data have no cells.
        """
        del cells
        return self.log_probs(x)

    @abstractmethod
    def kls(self, other: Self) -> Tensor:
        """Return what each element adds to KL(self || other), nats [B, *event]."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """Return the entropy -E log p, nats [B]."""

    @abstractmethod
    def multiply(self, other: Self) -> tuple[Self, Tensor]:
        """Return the normalised product with `other`, and log Z in nats [B]."""

    @abstractmethod
    def observe(self, factor: Self) -> tuple[Self, Tensor]:
        """`multiply` by an observation, which counts as 1 where unknown; log Z is float64 [B]."""

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
        """The values that a factor observed, [B, *event]."""

    @property
    @abstractmethod
    def noise(self) -> Tensor:
        """The noise of a factor: standard deviations or flip probabilities, [B, *event]."""

    @abstractmethod
    def tilt(self) -> "Tilt":
        """Return the density or probability as a factor."""

    @abstractmethod
    def tilted(self, tilt: "Tilt") -> tuple[Self, Tensor, Tensor]:
        """Return the product p' = p f / Z, log Z (float64 [B]) and a missing curvature e.

        Where f grows faster than p falls, p f has no integral. There p' is narrower, and
        p f / Z = p' exp(e (x - mean)^2 / 2) with e float64 [B, *event]; e is 0 elsewhere.
        """

    @property
    @abstractmethod
    def noisy(self) -> bool:
        """Whether a factor allows for noise in any of its values."""

    @property
    @abstractmethod
    def exact(self) -> Tensor:
        """Which elements a factor knows without noise, bool [B, *event]."""

    @abstractmethod
    def told(self) -> Tensor:
        """Return a factor as inputs of a network, [B, 3 event[0], ...]; 0 where unknown.

        In turn the values, shrunk towards 0 by their noise; the share that is left of them, 0 to 1;
        and their precision on a log scale, 0 to 1.
        """

    @abstractmethod
    def unseen(self, gone: Tensor) -> Self:
        """Return a factor that is 1 in these elements, bool [B, *event]."""

    def forget(self, rows: Tensor) -> Self:
        """Return a factor that is 1 in these rows, bool [B]."""
        return self.unseen(rows.view(-1, *[1] * (self.mean.ndim - 1)))

    def double(self) -> Self:
        """Return a copy in float64."""
        return self.each(Tensor.double)


def sum_of(each: Tensor, among: Tensor | None = None) -> Tensor:
    """Sum the elements of each row, or some of them, bool [B, *event]: [B, *event] to [B]."""
    return row_sum(each if among is None else torch.where(among, each, 0.0))


@final
@dataclass(frozen=True)
class Normal(Distribution):
    """A Normal N(mean, var) with independent elements.

    Args:
        mean: [B, *event].
        var: broadcastable to `mean`. In a factor, 0 means known exactly and infinity unknown.
    """

    mean: Tensor
    var: Tensor

    @override
    def sample(self, noise: Noise) -> Tensor:
        """Draw mean + sqrt(var) n, [B, *event]; exactly the mean where var is 0."""
        drawn = noise.normal(self.mean.shape[1:]).to(self.mean)
        return torch.addcmul(self.mean, self.var.sqrt(), drawn)

    @override
    def log_probs(self, x: Tensor) -> Tensor:
        """Return log N(x_i; mean_i, var_i), nats [B, *event]."""
        return -0.5 * ((x - self.mean).square() / self.var + self._log_var() + LOG_2PI)

    @override
    def kls(self, other: Self) -> Tensor:
        ratio = (self.var / other.var).expand_as(self.mean)
        shift = (self.mean - other.mean).square() / other.var
        return 0.5 * (ratio - 1.0 - ratio.log() + shift)

    @override
    def entropy(self) -> Tensor:
        """Return (1/2) log(2 pi e var), nats [B]."""
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
        """Return the normalised product, and log Z = log N(mean; other.mean, var + other.var).

        Where one variance is infinite, the element takes the other's parameters and adds nothing to
        log Z. Where `other.var` is 0 the product is exactly `other.mean`.
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
    def log_masses(self, x: Tensor, cells: Cells | None) -> Tensor:
        """Return log(Phi((above - mean) / std) - Phi((below - mean) / std)), nats [B, *event].

        As Ho, Jain and Abbeel 2020, Equation 13.
        """
        if cells is None:
            raise ValueError(
                'convention "discretised" needs data with levels: use "density" or "paper"'
            )
        mean, std = self.mean.double(), self.var.double().sqrt()
        # Infinite ends would have no gradient.
        ends = (end.clamp(-_ENDLESS, _ENDLESS) for end in cells)
        below, above = (((end - mean) / std).clamp(-_FAR, _FAR) for end in ends)
        # In the upper tail, subtract from the other side to avoid cancellation.
        flip = below + above > 0
        lower = log_ndtr(torch.where(flip, -above, below))
        upper = log_ndtr(torch.where(flip, -below, above))
        found: Tensor = upper + torch.log(-torch.expm1((lower - upper).clamp(max=-1e-30)))
        return found

    @override
    def tilt(self) -> "Tilt":
        mean = self.mean.double()
        var = self.var.double().expand_as(mean)
        constant = -0.5 * row_sum(mean.square() / var + var.log() + LOG_2PI)
        return Tilt(constant, mean / var, 1 / var)

    @override
    def tilted(self, tilt: "Tilt") -> tuple[Self, Tensor, Tensor]:
        """Multiply by f, whose log has slope g = h - k mean at the mean.

        var' = var / (1 + k var), mean' = mean + var' g, log Z = log f(mean) + g^2 var' / 2 -
        log(1 + k var) / 2; 1 + k var is clamped to at least 1 / 4.
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

    @property
    @override
    def exact(self) -> Tensor:
        return (self.var == 0).expand_as(self.mean)

    @override
    def told(self) -> Tensor:
        """w mean, w and log(1 + 1 / var), with w = 1 / (1 + var), the share for unit variance."""
        mean, var = self.tensors
        share = 1 / (1 + var)
        precision = (1 / var.clamp_min(_FINEST)).log1p() / math.log1p(1 / _FINEST)
        return torch.cat((share * mean, share, precision), 1)

    @override
    def unseen(self, gone: Tensor) -> Self:
        return type(self)(
            self.mean.masked_fill(gone, 0.0), self.tensors[1].masked_fill(gone, torch.inf)
        )

    def _log_var(self) -> Tensor:
        return self.var.log().expand_as(self.mean)


@final
@dataclass(frozen=True)
class Bernoulli(Distribution):
    """A Bernoulli B(sigmoid(logits)) with independent elements in {0, 1}.

    Args:
        logits: [B, *event]; -inf and inf mean certain zeros and ones.
    """

    continuous = False
    logits: Tensor

    @classmethod
    def of(cls, probability: Tensor) -> Self:
        """Build from the probability of a one, [B, *event]."""
        return cls(torch.logit(probability))

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        """The probability of a one, [B, *event]."""
        return self.logits.sigmoid()

    @property
    def var(self) -> Tensor:  # type: ignore[override]
        """The variance P(1) (1 - P(1)), [B, *event]."""
        return self.mean * (1 - self.mean)

    @override
    def sample(self, noise: Noise) -> Tensor:
        """Draw 1 where a uniform number is below the mean, [B, *event]."""
        return (noise.uniform(self.logits.shape[1:]).to(self.mean) < self.mean).to(self.mean)

    @override
    def log_probs(self, x: Tensor) -> Tensor:
        """Return log B(x_i), nats [B, *event]; -inf where x is impossible."""
        return torch.where(x > 0.5, F.logsigmoid(self.logits), F.logsigmoid(-self.logits))

    @override
    def kls(self, other: Self) -> Tensor:
        return self._expect(self._log(1) - other._log(1), self._log(0) - other._log(0))

    @override
    def entropy(self) -> Tensor:
        """Return the entropy -E log B, nats [B]."""
        return -row_sum(self._expect(self._log(1), self._log(0)))

    @override
    def multiply(self, other: Self) -> tuple[Self, Tensor]:
        """Return the normalised product, and log Z = log sum_x self(x) other(x), nats [B].

        log Z is -inf where the two exclude each other.
        """
        log_z = torch.logaddexp(self._log(1) + other._log(1), self._log(0) + other._log(0))
        return type(self)(self.logits + other.logits), row_sum(log_z)

    @override
    def observe(self, factor: Self) -> tuple[Self, Tensor]:
        product, log_z = self.multiply(factor)
        # A logit of 0 gives an unknown bit a factor of 1/2; make it 1.
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

    @property
    @override
    def exact(self) -> Tensor:
        return self.logits.isinf()

    @override
    def told(self) -> Tensor:
        """+-(1 - 2 f), 1 - 2 f and the log-odds of no flip, for a flip probability f."""
        value = (self.logits / 2).tanh()
        odds = self.logits.abs().clamp(max=_SUREST) / _SUREST
        return torch.cat((value, value.abs(), odds), 1)

    @override
    def unseen(self, gone: Tensor) -> Self:
        return type(self)(self.logits.masked_fill(gone, 0.0))

    def log_each(self, x: Tensor) -> Tensor:
        """Return the log-probability of each bit of x, float64 [B, *event]."""
        logits = self.logits.double()
        return F.logsigmoid(torch.where(x > 0.5, logits, -logits))

    def _log(self, x: int) -> Tensor:
        return F.logsigmoid(self.logits if x else -self.logits)

    def _expect(self, one: Tensor, zero: Tensor) -> Tensor:
        """Return E of a function that is `one` at 1 and `zero` at 0; impossible values add 0."""
        p = self.mean
        return torch.where(p > 0, p * one, 0.0) + torch.where(p < 1, (1.0 - p) * zero, 0.0)


@final
@dataclass(frozen=True)
class Tilt:
    """A factor f(x) = exp(c + sum_i (h_i x_i - k_i x_i^2 / 2)) over B rows, in canonical form.

    Attributes:
        constant: c, float64 [B].
        linear: h, float64 [B, *event].
        curvature: k, float64, broadcastable to `linear`; 0 for binary data.
    """

    constant: Tensor
    linear: Tensor
    curvature: Tensor

    def times(self, other: Self, power: Tensor | float = 1.0) -> Self:
        """Return f g^power, with `power` a number or float64 [B]."""
        power = torch.as_tensor(power, dtype=torch.float64, device=self.constant.device)
        each = power.reshape(-1, *[1] * (self.linear.ndim - 1))
        return type(self)(
            self.constant + power * other.constant,
            self.linear + each * other.linear,
            self.curvature + each * other.curvature,
        )

    def log(self, x: Tensor) -> Tensor:
        """Return log f(x), nats, float64 [B]."""
        x = x.double()
        return self.constant + row_sum(self.linear * x - self.curvature * x.square() / 2)
