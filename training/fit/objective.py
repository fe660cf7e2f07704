"""The training loss of a batch.

    loss = mean over rows of w_t (bound * -T term_t / dims + simple * f_t * error_t)

With "bound" alone this is -K / dims without the prior's part, which does not depend on the weights;
it is added for a learned schedule, which does change it. error_t is the mean square of eps -
eps_hat = sqrt(SNR_t) (x_0hat - x_0) over elements (Ho, Jain and Abbeel 2020, Equation 14), or of
v - v_hat, which is 1 + 1 / SNR_t times that; for binary data the cross-entropy of x_0.
f_t = sigmoid(b - log SNR_t) favours steps with much noise, which decide what an example shows, over
those that decide its last bits (Kingma and Gao 2023); 1 without a b. What a row's network is told
of x_0 without noise adds nothing to its terms.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffusion.likelihood.bound import evaluate, prior_part
from diffusion.model import DiffusionModel
from diffusion.noise import Noise
from diffusion.observation import Observation
from diffusion.space import Convention


@dataclass(frozen=True)
class Loss:
    """The scalar loss of one rank's rows, and each row's term (nats, no gradient)."""

    value: Tensor
    terms: Tensor


@dataclass(frozen=True)
class Objective:
    """The weights of the two losses, and the convention of the last step's term; b or None.

    `target` is what the simple loss is the square error of, for reals.
    """

    bound: float
    simple: float
    convention: Convention
    bias: float | None = None
    target: Literal["eps", "v"] = "eps"

    def __call__(
        self,
        model: DiffusionModel,
        x_0: Tensor,
        t: Tensor,
        weight: Tensor,
        noise: Noise,
        observation: Observation | None = None,
    ) -> Loss:
        """The loss of rows x_0 [B, *event] (model units) at t [B], with weights w_t [B].

        `observation` is what the network is told of some of the rows.
        """
        each, terms = self.rows(model, x_0, t, noise, observation)
        value = (weight * each).mean()
        if model.process.beta.requires_grad:
            prior = prior_part(model, x_0, self.convention).mean()
            value = value - self.bound * prior / model.space.dims
        return Loss(value, terms.detach())

    def rows(
        self,
        model: DiffusionModel,
        x_0: Tensor,
        t: Tensor,
        noise: Noise,
        observation: Observation | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Each row's loss without its weight, and its term in nats, [B] both; as in `__call__`."""
        x_t = model.process.marginal(x_0, t).sample(noise)
        prediction = model.predict(x_t, t, clip=False, observation=observation)
        terms = evaluate(model, prediction, x_0, x_t, t, self.convention)
        each = x_0.new_zeros(len(x_0))
        if self.bound:
            each = each - self.bound * (model.T / model.space.dims) * terms
        if self.simple:
            share = self._share(model, t)
            each = each + self.simple * share * prediction.error(x_0)
        return each, terms

    def _share(self, model: DiffusionModel, t: Tensor) -> Tensor:
        """The weight of the simple error of a row at t [B], float32 [B]."""
        log_snr = model.process.log_snr(t)
        share = torch.ones_like(log_snr)
        if self.bias is not None:
            share = share * (self.bias - log_snr).sigmoid()
        if self.target == "v":
            share = share * (1 + (-log_snr).exp())
        return share.float()
