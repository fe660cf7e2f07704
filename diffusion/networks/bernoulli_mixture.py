"""A mixture of products of Bernoullis, the simplest density for binary data with classes.

P(x_0i = 1 | x_t) = sum_k p(k | x_t) P(x_0i = 1 | x_ti, k)

With one component the columns are independent.
"""

from typing import ClassVar, Literal, Self, final

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from diffusion.networks.mixture import Mixture, MixtureConfig, check_components, split_seen

#: Logits are kept this far from certainty, so that they are finite.
_LOGIT_LIMIT = 30.0


class BernoulliMixtureConfig(MixtureConfig):
    """The configuration of a `BernoulliMixture`; `base_rate` is the process's rho."""

    reads: ClassVar[tuple[str, str | None] | None] = ("x_0", None)
    kind: Literal["bernoulli-mixture"] = "bernoulli-mixture"
    base_rate: float = Field(default=0.5, gt=0.0, lt=1.0)

    @property
    def outputs(self) -> Literal[1]:
        """One output per element: a logit."""
        return 1


@final
class BernoulliMixture(Mixture):
    """sum_k w_k prod_i B(x_0i; p_ki), under P(x_t = 1 | x_0) = x_0 alpha_bar + rho (1 - alpha_bar).

    The buffer `logits` [K, D] holds the logits of p.
    """

    logits: Tensor

    def __init__(self, config: BernoulliMixtureConfig) -> None:
        super().__init__(config.components)
        self.config = config
        shape = (config.components, config.features)
        self.register_buffer("logits", torch.zeros(shape, dtype=torch.float64))

    @classmethod
    def from_values(cls, weights: Tensor, probabilities: Tensor, base_rate: float = 0.5) -> Self:
        """Build the mixture of the given components.

        Args:
            weights: [K], positive, sum 1.
            probabilities: P(x_0i = 1 | k), within (0, 1), [K, D].
            base_rate: the process's rho.

        Raises:
            ValueError: mismatched shapes, weights off the simplex, or a probability of 0 or 1.
        """
        K, D = len(weights), probabilities.shape[-1]
        check_components(weights, probabilities, (K, D))
        if not bool(((probabilities > 0) & (probabilities < 1)).all()):
            raise ValueError("a probability lies between 0 and 1: leave a little room to each side")
        mixture = cls(BernoulliMixtureConfig(components=K, features=D, base_rate=base_rate))
        mixture.weights.copy_(weights / weights.sum())
        mixture.logits.copy_(torch.logit(probabilities.double()))
        return mixture

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        """Return the logits of P(x_0 = 1 | x_t), clamped to +-30, [B, D] in the dtype of x_t.

        Args:
            x_t: bits [B, D].
            condition: log-SNR, [B], infinite at alpha_bar = 0 and 1.
        """
        x, told = split_seen(x_t, self.config.features)
        ones, zeros, log_joint = self._joint(x, condition[0], told)
        p = log_joint.log_softmax(1)[:, :, None]
        each = torch.logaddexp(ones, zeros)
        logits = (p + ones - each).logsumexp(1) - (p + zeros - each).logsumexp(1)
        return logits.clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT).to(x_t.dtype)

    def log_prob(self, x_0: Tensor) -> Tensor:
        """Return log p(x_0), nats, float64 [B]."""
        x = x_0.double()
        log_p, log_q = self._logs()
        log_joint: Tensor = self.weights.log() + x @ log_p.mT + (1 - x) @ log_q.mT
        return log_joint.logsumexp(1)

    def _logs(self) -> tuple[Tensor, Tensor]:
        """Return log p and log (1 - p), [K, D]."""
        logsigmoid = torch.nn.functional.logsigmoid
        return logsigmoid(self.logits), logsigmoid(-self.logits)

    def _joint(
        self, x_t: Tensor, log_snr: Tensor, told: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x_0i = 1, x_ti | k) and the same for x_0i = 0, [B, K, D]; log p(k, x_t) [B, K].

        What was seen multiplies both, up to a constant.
        """
        log_snr, rho = log_snr.double()[:, None, None], self.config.base_rate
        signal, noise = log_snr.sigmoid(), (-log_snr).sigmoid()
        x, tiny = x_t.double()[:, None], torch.finfo(torch.float64).tiny
        # q(x_t | x_0 = 1) and q(x_t | x_0 = 0)
        of_one = torch.where(x > 0.5, signal + rho * noise, (1 - rho) * noise)
        of_zero = torch.where(x > 0.5, rho * noise, signal + (1 - rho) * noise)
        if told is not None:
            value = told[0].double()[:, None]  # +-(1 - 2 flip), 0 where unknown
            of_one, of_zero = of_one * (1 + value), of_zero * (1 - value)
        log_p, log_q = self._logs()
        ones = log_p + of_one.clamp_min(tiny).log()
        zeros = log_q + of_zero.clamp_min(tiny).log()
        return ones, zeros, self.weights.log() + torch.logaddexp(ones, zeros).sum(2)
