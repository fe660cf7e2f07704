"""Distributions over rows: independent elements, one row a datum.

    log_prob(x) = sum over elements,    KL(q || p) = E_q[log q - log p],
    q(x) r(x) = Z * (q multiplied by r)(x)

Every figure is in nats and summed over a row's elements: [B]. Products have closed forms, kernel
and normaliser both (Sohl-Dickstein et al. 2015, Section 2.5).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from diffusion.noise import Noise

#: log(2 pi), a Normal's share of each element.
LOG_2PI = math.log(2.0 * math.pi)


def _sum(x: Tensor) -> Tensor:
    """Sum over everything but the rows."""
    return x.flatten(1).sum(1)


class Distribution(ABC):
    """One family over rows [B, *event]; `other` is always of the same family."""

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
    def rows(self, index: Tensor) -> Self:
        """Some of the rows, or one several times; int64 [b]."""

    @classmethod
    @abstractmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Their rows in turn."""

    @abstractmethod
    def multiply(self, other: Self) -> tuple[Self, Tensor]:
        """The normalised product with `other`, and log Z in nats [B]."""


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
        return -0.5 * _sum((x - self.mean).square() / self.var + self._log_var() + LOG_2PI)

    @override
    def kl(self, other: Self) -> Tensor:
        """KL(self || other), nats [B]."""
        ratio = (self.var / other.var).expand_as(self.mean)
        shift = (self.mean - other.mean).square() / other.var
        return 0.5 * _sum(ratio - 1.0 - ratio.log() + shift)

    @override
    def entropy(self) -> Tensor:
        """(1/2) log(2 pi e var), nats [B]."""
        return 0.5 * _sum(self._log_var() + (LOG_2PI + 1.0))

    @override
    def rows(self, index: Tensor) -> Self:
        return type(self)(self.mean[index], self.var.expand_as(self.mean)[index])

    @classmethod
    @override
    def joined(cls, parts: Sequence[Self]) -> Self:
        mean = torch.cat([part.mean for part in parts])
        return cls(mean, torch.cat([part.var.expand_as(part.mean) for part in parts]))

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
        return product, -0.5 * _sum(torch.where(torch.isinf(total), 0.0, log_z))

    def _log_var(self) -> Tensor:
        return self.var.log().expand_as(self.mean)


@final
@dataclass(frozen=True)
class Bernoulli(Distribution):
    """B(sigmoid(logits)) elementwise, over 0 and 1.

    Args:
        logits: [B, *event]; -inf and inf are certain zeros and ones.
    """

    logits: Tensor

    @classmethod
    def of(cls, probability: Tensor) -> Self:
        """From the probability of a one, [B, *event]."""
        return cls(torch.logit(probability))

    @property
    def mean(self) -> Tensor:
        """The probability of a one, [B, *event]."""
        return self.logits.sigmoid()

    @override
    def sample(self, noise: Noise) -> Tensor:
        """1 where a uniform draw falls under the mean, [B, *event]."""
        return (noise.uniform(self.logits.shape[1:]).to(self.mean) < self.mean).to(self.mean)

    @override
    def log_prob(self, x: Tensor) -> Tensor:
        """log B(x), nats [B]; -inf where x is impossible."""
        return _sum(torch.where(x > 0.5, F.logsigmoid(self.logits), F.logsigmoid(-self.logits)))

    @override
    def kl(self, other: Self) -> Tensor:
        """KL(self || other), nats [B]."""
        return _sum(self._expect(self._log(1) - other._log(1), self._log(0) - other._log(0)))

    @override
    def entropy(self) -> Tensor:
        """-E log B, nats [B]."""
        return -_sum(self._expect(self._log(1), self._log(0)))

    @override
    def rows(self, index: Tensor) -> Self:
        return type(self)(self.logits[index])

    @classmethod
    @override
    def joined(cls, parts: Sequence[Self]) -> Self:
        return cls(torch.cat([part.logits for part in parts]))

    @override
    def multiply(self, other: Self) -> tuple[Self, Tensor]:
        """The normalised product with `other` and log Z = log sum_x self(x) other(x).

        Returns:
            The product, and log Z in nats [B]; -inf where the two exclude each other.
        """
        log_z = torch.logaddexp(self._log(1) + other._log(1), self._log(0) + other._log(0))
        return type(self)(self.logits + other.logits), _sum(log_z)

    def _log(self, x: int) -> Tensor:
        return F.logsigmoid(self.logits if x else -self.logits)

    def _expect(self, one: Tensor, zero: Tensor) -> Tensor:
        """E of a function that is `one` at 1 and `zero` at 0; an impossible value adds nothing."""
        p = self.mean
        return torch.where(p > 0, p * one, 0.0) + torch.where(p < 1, (1.0 - p) * zero, 0.0)
