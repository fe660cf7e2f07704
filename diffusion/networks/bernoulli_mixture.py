"""A mixture of independent bits, the simplest density of bits that knows of classes, with

P(x_0i = 1 | x_t) = sum_k p(k | x_t) P(x_0i = 1 | x_ti, k)

One component is independent columns. Its bits are not all 0 and 1 as `bit_patterns` has them.
"""

from typing import ClassVar, Literal, Self, final

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from diffusion.networks.mixture import Mixture, MixtureConfig, check_components

#: Logits are kept this far from certainty, so that they are finite.
_LOGIT_LIMIT = 30.0


class BernoulliMixtureConfig(MixtureConfig):
    """What a `BernoulliMixture` is built from; `base_rate` is the process's rho."""

    reads: ClassVar[tuple[str, str | None] | None] = ("x_0", None)
    kind: Literal["bernoulli-mixture"] = "bernoulli-mixture"
    base_rate: float = Field(default=0.5, gt=0.0, lt=1.0)

    @property
    def outputs(self) -> Literal[1]:
        """Logits."""
        return 1


@final
class BernoulliMixture(Mixture):
    """sum_k w_k prod_i B(x_0i; p_ki), under P(x_t = 1 | x_0) = x_0 alpha_bar + rho (1 - alpha_bar).

    The logits of p are kept, `logits` [K, D].
    """

    logits: Tensor

    def __init__(self, config: BernoulliMixtureConfig) -> None:
        super().__init__(config.components)
        self.config = config
        shape = (config.components, config.features)
        self.register_buffer("logits", torch.zeros(shape, dtype=torch.float64))

    @classmethod
    def from_values(cls, weights: Tensor, probabilities: Tensor, base_rate: float = 0.5) -> Self:
        """The mixture of given components.

        Args:
            weights: [K], positive, sum 1.
            probabilities: P(x_0i = 1 | k), within (0, 1), [K, D].
            base_rate: rho, the process's.

        Raises:
            ValueError: shapes that do not fit, weights off the simplex, a probability of 0 or 1.
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
        """Logits of P(x_0 = 1 | x_t), kept within +-30, [B, D] in the dtype of x_t.

        Args:
            x_t: bits [B, D].
            condition: log-SNR, [B], infinite at alpha_bar = 0 and 1.
        """
        ones, zeros, log_joint = self._joint(x_t, condition[0])
        p = log_joint.log_softmax(1)[:, :, None]
        each = torch.logaddexp(ones, zeros)
        logits = (p + ones - each).logsumexp(1) - (p + zeros - each).logsumexp(1)
        return logits.clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT).to(x_t.dtype)

    def log_prob(self, x_0: Tensor) -> Tensor:
        """log p(x_0), nats, float64 [B]."""
        x = x_0.double()
        log_p, log_q = self._logs()
        log_joint: Tensor = self.weights.log() + x @ log_p.mT + (1 - x) @ log_q.mT
        return log_joint.logsumexp(1)

    def _logs(self) -> tuple[Tensor, Tensor]:
        """log p and log (1 - p), [K, D]."""
        logsigmoid = torch.nn.functional.logsigmoid
        return logsigmoid(self.logits), logsigmoid(-self.logits)

    def _joint(self, x_t: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x_0i = 1, x_ti | k), the same of x_0i = 0, [B, K, D], and log p(k, x_t) [B, K]."""
        log_snr, rho = log_snr.double()[:, None, None], self.config.base_rate
        signal, noise = log_snr.sigmoid(), (-log_snr).sigmoid()
        x, tiny = x_t.double()[:, None], torch.finfo(torch.float64).tiny
        # q(x_t | x_0 = 1) and q(x_t | x_0 = 0)
        of_one = torch.where(x > 0.5, signal + rho * noise, (1 - rho) * noise)
        of_zero = torch.where(x > 0.5, rho * noise, signal + (1 - rho) * noise)
        log_p, log_q = self._logs()
        ones = log_p + of_one.clamp_min(tiny).log()
        zeros = log_q + of_zero.clamp_min(tiny).log()
        return ones, zeros, self.weights.log() + torch.logaddexp(ones, zeros).sum(2)
