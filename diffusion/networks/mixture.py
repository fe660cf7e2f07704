"""Oracles: models whose reverse process is known in closed form.

With alpha_bar = sigmoid(log_snr), responsibilities p(k | x_t) and the components' own posteriors,

    E[x_0 | x_t]   = sum_k p(k | x_t) E[x_0 | x_t, k]
    Cov[x_0 | x_t] = sum_k p(k | x_t) (Cov[x_0 | x_t, k] + (E_k - E)(E_k - E)^T)

for a mixture of Gaussians, and P(x_0 = 1 | x_t) = sum_k p(k | x_t) pattern_k for a mixture of bit
patterns under the binomial process. They are networks like any other, so that all likelihoods,
posteriors and evidences can be held against the exact answer.
"""

import math
from abc import ABC
from collections.abc import Callable
from typing import Literal, Self, final

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn
from typing_extensions import override

from diffusion.networks.embedding import Clock
from diffusion.noise import Noise

_LOG_2PI = math.log(2.0 * math.pi)
#: Stands for log 0: far below any log-probability, and 0 when multiplied by a count of 0.
_LOG_ZERO = -1e6
#: P(x_0 = 1 | x_t) is kept this many nats from certainty, so that logits are finite.
_LOGIT_LIMIT = 30.0


class _MixtureConfig(BaseModel):
    """A mixture's sizes; its values are tensors of the artefact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    components: PositiveInt
    features: PositiveInt


class GaussianMixtureConfig(_MixtureConfig):
    """What a `GaussianMixture` is built from."""

    kind: Literal["gaussian-mixture"] = "gaussian-mixture"

    @property
    def outputs(self) -> Literal[2]:
        """Mean and variance part."""
        return 2


class BitPatternsConfig(_MixtureConfig):
    """What a `BitPatterns` is built from; `base_rate` is the process's rho."""

    kind: Literal["bit-patterns"] = "bit-patterns"
    base_rate: float = Field(default=0.5, gt=0.0, lt=1.0)

    @property
    def outputs(self) -> Literal[1]:
        """Logits."""
        return 1


class Mixture(nn.Module, ABC):
    """sum_k weights_k p(x_0 | k), with buffers in float64 whatever the module is cast to."""

    clock: Clock = "log_snr"
    weights: Tensor

    def __init__(self, components: int) -> None:
        super().__init__()
        uniform = torch.full((components,), 1.0 / components, dtype=torch.float64)
        self.register_buffer("weights", uniform)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # .float() and .bfloat16() come through here as .to(device) does: only the device is obeyed.
        super()._apply(lambda x: x.to(fn(x).device), recurse)  # type: ignore[no-untyped-call]
        return self

    def _choose(self, uniform: Tensor) -> Tensor:
        """The component of each uniform number, int64 [B]."""
        edges = self.weights.cumsum(0)[:-1]
        return torch.searchsorted(edges, uniform.double(), right=True)


@final
class GaussianMixture(Mixture):
    """sum_k w_k N(x_0; mu_k, U_k diag(l_k) U_k^T), under x_t = sqrt(alpha_bar) x_0 + noise.

    The covariances are kept as their eigenvectors `axes` [K, D, D] (columns) and eigenvalues
    `variances` [K, D]: in each component's axes noise is added one coordinate at a time.
    """

    means: Tensor
    variances: Tensor
    axes: Tensor

    def __init__(self, config: GaussianMixtureConfig) -> None:
        super().__init__(config.components)
        self.config = config
        K, D = config.components, config.features
        self.register_buffer("means", torch.zeros(K, D, dtype=torch.float64))
        self.register_buffer("variances", torch.ones(K, D, dtype=torch.float64))
        self.register_buffer("axes", torch.eye(D, dtype=torch.float64).repeat(K, 1, 1))

    @classmethod
    def from_values(cls, weights: Tensor, means: Tensor, covariances: Tensor) -> Self:
        """The mixture of given components.

        Args:
            weights: [K], positive, sum 1.
            means: [K, D].
            covariances: [K, D, D], symmetric, positive definite.

        Raises:
            ValueError: shapes that do not fit, weights off the simplex, a covariance that is none.
        """
        K, D = len(weights), means.shape[-1]
        _check(weights, means, (K, D))
        _check(weights, covariances, (K, D, D))
        variances, axes = torch.linalg.eigh(covariances.double())
        if not torch.allclose(covariances, covariances.mT) or not bool((variances > 0).all()):
            raise ValueError(
                "covariances are symmetric with eigenvalues above 0, came a smallest one of "
                f"{variances.min().item():.3g}: write (S + S^T) / 2 and add to the diagonal"
            )
        mixture = cls(GaussianMixtureConfig(components=K, features=D))
        mixture.weights.copy_(weights / weights.sum())
        mixture.means.copy_(means)
        mixture.variances.copy_(variances)
        mixture.axes.copy_(axes)
        return mixture

    @property
    def covariances(self) -> Tensor:
        """Covariance of each component, float64 [K, D, D]."""
        return (self.axes * self.variances[:, None, :]) @ self.axes.mT

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        """E[x_0 | x_t] and log(Var(x_0 | x_t) / (1 - alpha_bar)), elementwise.

        Args:
            x_t: [B, D].
            time: log-SNR, [B], infinite at alpha_bar = 0 and 1.

        Returns:
            [B, 2 D] in the dtype of x_t: the mean, then the log-ratio, which is finite everywhere.
        """
        signal, noise = time.double().sigmoid()[:, None], (-time.double()).sigmoid()[:, None]
        log_joint, r, total = self._project(x_t, signal.sqrt(), noise)
        p = log_joint.softmax(1)[:, :, None]  # [B, K, 1]
        means = self._means(signal.sqrt(), r, total)
        mean = (p * means).sum(1)
        # Var(x_0 | x_t, k) / noise has no division by the noise, so it holds at noise 0 too:
        within = torch.einsum("kij,bkj->bki", self.axes.square(), self.variances / total)
        within = (p * within).sum(1)
        # and between components E_k - E = -(noise / sqrt(signal)) (score_k - score) where there is
        # much signal; it is taken as it stands where there is little.
        scores = torch.einsum("kij,bkj->bki", self.axes, r / total)
        spread_scores = (p * (scores - (p * scores).sum(1, keepdim=True)).square()).sum(1)
        spread_means = (p * (means - mean[:, None]).square()).sum(1)
        much = spread_scores * noise / signal.clamp_min(0.5)
        between = torch.where(signal >= 0.5, much, spread_means / noise.clamp_min(0.5))
        return torch.cat([mean, (within + between).log()], dim=1).to(x_t.dtype)

    def log_prob(self, x_0: Tensor) -> Tensor:
        """log p(x_0), nats, float64 [B]."""
        return self.marginal_log_prob(x_0, torch.full_like(x_0[:, 0], torch.inf))

    def marginal_log_prob(self, x_t: Tensor, log_snr: Tensor) -> Tensor:
        """log q(x_t), nats, float64 [B]; log_snr [B]."""
        log_snr = log_snr.double()[:, None]
        return self._project(x_t, log_snr.sigmoid().sqrt(), (-log_snr).sigmoid())[0].logsumexp(1)

    def sample(self, noise: Noise) -> Tensor:
        """Draws from p(x_0), one for each of the noise's rows, float32 [B, D]."""
        # One array, for two calls would read the same numbers; the last of it picks the component.
        normal = noise.normal((self.config.features + 1,)).double()
        k = self._choose(torch.special.ndtr(normal[:, -1]))
        scaled = self.variances[k].sqrt() * normal[:, :-1]
        return (self.means[k] + torch.einsum("bij,bj->bi", self.axes[k], scaled)).float()

    def mean(self) -> Tensor:
        """E[x_0], float64 [D]."""
        return self.weights @ self.means

    def covariance(self) -> Tensor:
        """Cov[x_0], float64 [D, D]."""
        off = self.means - self.mean()
        spread = self.covariances + off[:, :, None] * off[:, None, :]
        return torch.einsum("k,kij->ij", self.weights, spread)

    def posterior_given_noisy(self, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """E and Cov of x_0 given y = x_0 + sigma n, with n standard normal.

        y is [B, D] and sigma in model units; float64 [B, D] and [B, D, D] come back.
        """
        one = torch.ones(len(y), 1, dtype=torch.float64, device=y.device)
        log_joint, r, total = self._project(y, one, sigma**2 * one)
        p = log_joint.softmax(1)
        means = self._means(one, r, total)
        mean = torch.einsum("bk,bki->bi", p, means)
        kept = self.variances * sigma**2 / total
        within = torch.einsum("bk,kij,bkj,klj->bil", p, self.axes, kept, self.axes)
        off = means - mean[:, None]
        return mean, within + torch.einsum("bk,bki,bkj->bij", p, off, off)

    def _project(self, x: Tensor, scale: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What each component says of x = scale x_0 + sqrt(var) n; scale and var [B, 1].

        First log p(k) p(x | k) [B, K]; then, in the component's axes, x - scale mu_k and its
        variance, [B, K, D] both.
        """
        off = x.double()[:, None] - scale[:, :, None] * self.means
        r = torch.einsum("kij,bki->bkj", self.axes, off)
        total = scale.square()[:, :, None] * self.variances + var[:, :, None]
        log_normal = -0.5 * (r.square() / total + total.log() + _LOG_2PI).sum(2)
        return self.weights.log() + log_normal, r, total

    def _means(self, scale: Tensor, r: Tensor, total: Tensor) -> Tensor:
        """E[x_0 | x, k] = mu_k + U (scale l / total) r, [B, K, D]."""
        gain = scale[:, :, None] * self.variances / total
        return self.means + torch.einsum("kij,bkj->bki", self.axes, gain * r)


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
        """The mixture of given patterns.

        Args:
            weights: [K], positive, sum 1.
            patterns: [K, D], zeros and ones.
            base_rate: rho, the process's.

        Raises:
            ValueError: shapes that do not fit, weights off the simplex, values other than 0 and 1.
        """
        K, D = len(weights), patterns.shape[-1]
        _check(weights, patterns, (K, D))
        if not bool(((patterns == 0) | (patterns == 1)).all()):
            raise ValueError("a pattern holds a value other than 0 and 1: write bits")
        mixture = cls(BitPatternsConfig(components=K, features=D, base_rate=base_rate))
        mixture.weights.copy_(weights / weights.sum())
        mixture.patterns.copy_(patterns)
        return mixture

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        """Logits of P(x_0 = 1 | x_t), kept within +-30, [B, D] in the dtype of x_t.

        An x_t that cannot be (alpha_bar = 1 and no such pattern) is taken for the nearest ones.

        Args:
            x_t: bits [B, D].
            time: log-SNR, [B], infinite at alpha_bar = 0 and 1.
        """
        p = self.posterior_weights(x_t, time)
        logits = (p @ self.patterns).log() - (p @ (1 - self.patterns)).log()
        return logits.clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT).to(x_t.dtype)

    def probabilities(self, x_t: Tensor, log_snr: Tensor) -> Tensor:
        """P(x_0 = 1 | x_t) without clamping, float64 [B, D]."""
        return self.posterior_weights(x_t, log_snr) @ self.patterns

    def posterior_weights(self, x_t: Tensor, log_snr: Tensor) -> Tensor:
        """P(x_0 = pattern_k | x_t), float64 [B, K]."""
        return self._log_joint(x_t, log_snr).softmax(1)

    def marginal_log_prob(self, x_t: Tensor, log_snr: Tensor) -> Tensor:
        """log q(x_t), nats, float64 [B]; -inf where x_t cannot be."""
        found = self._log_joint(x_t, log_snr).logsumexp(1)
        return found.where(found > _LOG_ZERO / 2, -torch.inf)

    def log_prob(self, x_0: Tensor) -> Tensor:
        """log p(x_0), nats, float64 [B]; -inf where x_0 is no pattern."""
        return self.marginal_log_prob(
            x_0, torch.full_like(x_0[:, 0], torch.inf, dtype=torch.float64)
        )

    def sample(self, noise: Noise) -> Tensor:
        """Draws from p(x_0), one for each of the noise's rows, float32 [B, D]."""
        return self.patterns[self._choose(noise.uniform((1,))[:, 0])].float()

    def mean(self) -> Tensor:
        """P(x_0 = 1), float64 [D]."""
        return self.weights @ self.patterns

    def _log_joint(self, x_t: Tensor, log_snr: Tensor) -> Tensor:
        """log p(k) q(x_t | pattern_k), [B, K], from how often each pair of bits meets."""
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


def _check(weights: Tensor, values: Tensor, shape: tuple[int, ...]) -> None:
    if weights.ndim != 1 or not bool((weights > 0).all()) or abs(float(weights.sum()) - 1) > 1e-6:
        raise ValueError(
            f"weights [K] are positive and sum to 1, came {weights.tolist()}: divide by their sum"
        )
    if values.shape != shape:
        raise ValueError(
            f"for {shape[0]} weights and {shape[1]} features a tensor of shape {list(shape)} is "
            f"wanted, came {list(values.shape)}"
        )
