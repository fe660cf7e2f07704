"""Factors that multiply a model's p(x_0) besides an observation: a label, or another model.

    p~(x_0) = p(x_0) r(x_0) p(y | x_0) p_2(x_0) / Z

At every step each factor changes the twist's value: the weight of x_t and the proposal of x_s. The
particles' weights correct the rest (`particle_filter`), so their evidence belongs to the whole
product: p(y), p(y, observation), or the integral of p p_2. Ratios of evidences are probabilities:
p(y | observation) = Z_y / sum over y of Z_y.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.classifier import Classifier, same_process
from diffusion.model import DiffusionModel
from diffusion.posterior.proposal import Left, TwistValue, join, steer
from diffusion.process import Process
from diffusion.rows import Rows, per_row, row_sum


class Factor(Rows, ABC):
    """A factor for each of N posteriors."""

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """The network evaluations that it adds per step."""

    @property
    def elementwise(self) -> bool:
        """Whether it needs proposals whose elements are independent."""
        return False

    @abstractmethod
    def check(self, model: DiffusionModel, count: int) -> None:
        """Raise ValueError unless it can multiply that model's p(x_0) for `count` posteriors."""

    @abstractmethod
    def multiply(self, here: TwistValue, x_t: Tensor, t: Tensor, s: Tensor) -> TwistValue:
        """Multiply the twist's value at x_t by this factor.

        Args:
            here: the value for the model and the factors multiplied so far.
            x_t: [B, *event].
            t: int64 [B], or [1] for all rows.
            s: int64, likewise; s < t.
        """


@final
@dataclass(frozen=True)
class Label(Factor):
    """A label y as a factor p(y | x_0), by a classifier that gives r_t(x_t) = p(y | x_t).

    If r_t is exact, the mean of x_s given x_t and y is E[x_s | x_t] + (1 - k) / sqrt(k) d log r_t /
    d x_t, k = alpha_bar_t / alpha_bar_s, by Tweedie's formula with and without y, at any stride.
    (For small steps this is the paper's perturbed kernel, Sohl-Dickstein et al. 2015, Section 2.5,
    and Dhariwal and Nichol 2021, Equation 10.) A step is never moved further than a label of that
    probability can move it. For binary data log r_s is taken as linear about x_t (Grathwohl,
    Swersky, Hashemi, Duvenaud and Maddison 2021).

    Attributes:
        classifier: a classifier fitted under the model's own process.
        y: the label of each posterior, int64 [N].
    """

    classifier: Classifier
    y: Tensor

    @property
    @override
    def evaluations(self) -> int:
        """Always 0: the classifier's call and gradient are not counted."""
        return 0

    @override
    def check(self, model: DiffusionModel, count: int) -> None:
        self.classifier.check(model.process, model.space)
        labels = self.classifier.labels
        if self.y.shape != (count,) or self.y.is_floating_point():
            raise ValueError(
                f"of {count} posteriors each has its label, int64 [{count}]; came {self.y.dtype} "
                f"{list(self.y.shape)}"
            )
        if bool(((self.y < 0) | (self.y >= len(labels))).any()):
            raise ValueError(
                f"labels are 0 to {len(labels) - 1} ({', '.join(labels)}), came "
                f"{sorted(set(self.y.tolist()))}"
            )

    @override
    def multiply(self, here: TwistValue, x_t: Tensor, t: Tensor, s: Tensor) -> TwistValue:
        if int(s.max()) == 0:
            log_r = self._log_prob(x_t, t, self.y)

            def owed(x_0: Tensor, index: Tensor) -> Tensor:
                """Return log p(y | x_0) / p(y | x_t)."""
                return self._log_prob(x_0, torch.zeros_like(t), self.y[index]) - log_r[index]

            left = both(here.left, owed)
            return replace(here, log_r=here.log_r + log_r, left=left)
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t.clone().requires_grad_()
            log_r = self._log_prob(x, t, self.y.clone())
            (slope,) = torch.autograd.grad(log_r.sum(), x)
        log_r, slope, kernel = log_r.detach(), slope.double(), here.proposal.base
        var = kernel.var.double()
        slope = self.classifier.process.guide(slope, var, t, s)
        # p(x_s | x_t, y) <= p(x_s | x_t) / r_t, so their divergence is at most -log r_t.
        size = row_sum(var * slope.square())
        most = (-2 * log_r / size.clamp_min(1e-300)).clamp(max=1.0).sqrt()
        steered = steer(here.proposal, per_row(most, slope) * slope)
        return replace(here, log_r=here.log_r + log_r, proposal=steered)

    def _log_prob(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return log p(y | x_t), [B]."""
        return self.classifier.log_prob(x_t, t).gather(1, y[:, None])[:, 0]


@final
@dataclass(frozen=True)
class Expert(Factor):
    """A second model of the same data and process: p(x_0) p_2(x_0) / Z, a product of experts.

    The target over paths is p(x_0..T) p_2(x_0..T) / q(x_1..T | x_0). If either chain is the exact
    reversal of q, as in p_2(x_0..T) = p_2(x_0) q(x_1..T | x_0), then x_0 follows the product. Each
    step is a product of kernels,

        p(x_s | x_t) p_2(x_s | x_t) / q(x_t | x_s),

    which is Normal or Bernoulli again, with a known normaliser. A binary model that gives some data
    zero probability is no exact reversal at any number of steps; one that allows all data has an
    error of order 1 / T. On the way x_t is weighted by
    r_t = pi(x_t)^-u_t, u_t = (1 - alpha_bar_t) / (1 - alpha_bar_t / 2), because the prior of x_T
    must count once, not twice; this is exact for two models that both equal pi.

    Sources: Hinton 2002 (products of experts); Sohl-Dickstein et al. 2015, Section 2.5; Du,
    Durkan, Strudel, Tenenbaum, Dieleman, Fergus, Sohl-Dickstein, Doucet and Grathwohl 2023
    (composed diffusion models need more than the sum of their scores).

    Attributes:
        model: p_2.
    """

    model: DiffusionModel

    @property
    @override
    def evaluations(self) -> int:
        """Always 1."""
        return 1

    @property
    @override
    def elementwise(self) -> bool:
        return True

    @override
    def check(self, model: DiffusionModel, count: int) -> None:
        same_process(self.model.process, model.process, "this model runs")
        if not self.model.space.agrees(model.space):
            raise ValueError(
                f"a product needs models of the same data: one has space {model.space!r}, the "
                f"other {self.model.space!r}"
            )

    @override
    def multiply(self, here: TwistValue, x_t: Tensor, t: Tensor, s: Tensor) -> TwistValue:
        process, t, s = self.model.process, t.expand(len(x_t)), s.expand(len(x_t))
        prior = process.prior(self.model.event, len(x_t)).tilt()
        tilt = self.model.predict(x_t, t).kernel(s).tilt()
        tilt = tilt.times(process.likelihood(x_t, t, s), -1.0)
        tilt = tilt.times(prior, -_share(process, s))
        joined = join(here.proposal, tilt)
        log_r = here.log_r + joined.log_z + _share(process, t) * prior.log(x_t)
        # What is drawn from is the product of what r_t was, so Z is known before the draw.
        paid = replace(joined, log_z=log_r - here.log_r)
        left = both(here.left, lambda x_0, index: joined.rows(index).owed(x_0))
        ends = int(s.max()) == 0
        return replace(here, log_r=log_r, proposal=paid, left=left if ends else here.left)


def _share(process: Process, t: Tensor) -> Tensor:
    """Return u_t, float64 [B]: 1 at T, where x_T is drawn from pi, and 0 at 0."""
    signal = process.alpha_bar[t]
    share = (1 - signal) / (1 - signal / 2)
    return torch.where(t == process.T, 1.0, share)


def both(one: Left | None, other: Left) -> Left:
    """Add the log-weights that two factors leave for x_0."""
    if one is None:
        return other
    return lambda x_0, index: one(x_0, index) + other(x_0, index)
