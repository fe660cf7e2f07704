"""The exact network for binary data drawn from a finite set of patterns.

P(x_0 = 1 | x_t) = sum_k p(k | x_t) pattern_k
"""

from typing import ClassVar, Literal, Self, final

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from diffusion.networks.mixture import Mixture, MixtureConfig, check_components, split_seen
from diffusion.noise import Noise

#: Stands for log 0: far below any log-probability, and gives 0 when multiplied by a count of 0.
_LOG_ZERO = -1e6
#: Logits are clamped to this, so that they are finite.
_LOGIT_LIMIT = 30.0


class BitPatternsConfig(MixtureConfig):
    """The configuration of a `BitPatterns`; `base_rate` is the process's rho."""

    reads: ClassVar[tuple[str, str | None] | None] = ("x_0", None)
    kind: Literal["bit-patterns"] = "bit-patterns"
    base_rate: float = Field(default=0.5, gt=0.0, lt=1.0)

    @property
    def outputs(self) -> Literal[1]:
        """One output per element: a logit."""
        return 1


@final
class BitPatterns(Mixture):
    """sum_k w_k [x_0 = pattern_k], under P(x_t = 1 | x_0) = x_0 alpha_bar + rho (1 - alpha_bar)."""

    patterns: Tensor

    def __init__(self, config: BitPatternsConfig) -> None:
        super().__init__(config.components)
        self.config = config
        empty = torch.zeros(config.components, config.features, dtype=torch.float64)
        self.register_buffer("patterns", empty)

    @classmethod
    def from_values(cls, weights: Tensor, patterns: Tensor, base_rate: float = 0.5) -> Self:
        """Build the mixture of the given patterns.

        Args:
            weights: [K], positive, sum 1.
            patterns: [K, D], zeros and ones.
            base_rate: the process's rho.

        Raises:
            ValueError: mismatched shapes, weights off the simplex, or values other than 0 and 1.
        """
        K, D = len(weights), patterns.shape[-1]
        check_components(weights, patterns, (K, D))
        if not bool(((patterns == 0) | (patterns == 1)).all()):
            raise ValueError("a pattern holds a value other than 0 and 1: write bits")
        mixture = cls(BitPatternsConfig(components=K, features=D, base_rate=base_rate))
        mixture.weights.copy_(weights / weights.sum())
        mixture.patterns.copy_(patterns)
        return mixture

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        """Return the logits of P(x_0 = 1 | x_t), clamped to +-30, [B, D] in the dtype of x_t.

        An impossible x_t (alpha_bar = 1, matching no pattern) is treated as its nearest patterns.

        Args:
            x_t: bits [B, D].
            condition: log-SNR, [B], infinite at alpha_bar = 0 and 1.
        """
        x, told = split_seen(x_t, self.config.features)
        log_joint = self._log_joint(x, condition[0])
        if told is not None:
            flip = (1 - told[1].double()) / 2
            log_joint = log_joint + self._log_seen(told[0].double(), flip)
        p = log_joint.softmax(1)
        logits = (p @ self.patterns).log() - (p @ (1 - self.patterns)).log()
        return logits.clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT).to(x_t.dtype)

    def probabilities(self, x_t: Tensor, log_snr: Tensor) -> Tensor:
        """Return P(x_0 = 1 | x_t) without clamping, float64 [B, D]."""
        return self.posterior_weights(x_t, log_snr) @ self.patterns

    def posterior_weights(self, x_t: Tensor, log_snr: Tensor) -> Tensor:
        """Return P(x_0 = pattern_k | x_t), float64 [B, K]."""
        return self._log_joint(x_t, log_snr).softmax(1)

    def marginal_log_prob(self, x_t: Tensor, log_snr: Tensor) -> Tensor:
        """Return log q(x_t), nats, float64 [B]; -inf where x_t is impossible."""
        found = self._log_joint(x_t, log_snr).logsumexp(1)
        return found.where(found > _LOG_ZERO / 2, -torch.inf)

    def log_prob(self, x_0: Tensor) -> Tensor:
        """Return log p(x_0), nats, float64 [B]; -inf where x_0 matches no pattern."""
        return self.marginal_log_prob(
            x_0, torch.full_like(x_0[:, 0], torch.inf, dtype=torch.float64)
        )

    def sample(self, noise: Noise) -> Tensor:
        """Draw from p(x_0) once per row of the noise, float32 [B, D]."""
        return self.patterns[self.choose(noise.uniform((1,))[:, 0])].float()

    def mean(self) -> Tensor:
        """Return P(x_0 = 1), float64 [D]."""
        return self.weights @ self.patterns

    def _log_seen(self, value: Tensor, flip: Tensor) -> Tensor:
        """Return log p(y | pattern_k) up to a constant, [B, K]; value is +-(1 - 2 flip)."""
        agrees, differs = (-flip).log1p(), flip.log().clamp_min(_LOG_ZERO)
        ones = torch.where(value > 0, agrees, torch.where(value < 0, differs, 0.0))
        zeros = torch.where(value < 0, agrees, torch.where(value > 0, differs, 0.0))
        return ones @ self.patterns.mT + zeros @ (1 - self.patterns).mT

    def _log_joint(self, x_t: Tensor, log_snr: Tensor) -> Tensor:
        """Return log p(k) q(x_t | pattern_k), [B, K], from the counts of each pair of bits."""
        x, log_snr, rho = x_t.double(), log_snr.double()[:, None], self.config.base_rate
        signal, noise = log_snr.sigmoid(), (-log_snr).sigmoid()
        log_joint = self.weights.log()
        for bits, patterns, p in (
            (x, self.patterns, signal + rho * noise),
            (1 - x, self.patterns, (1 - rho) * noise),
            (x, 1 - self.patterns, rho * noise),
            (1 - x, 1 - self.patterns, signal + (1 - rho) * noise),
        ):
            log_joint = log_joint + (bits @ patterns.mT) * p.log().clamp_min(_LOG_ZERO)
        return log_joint
