"""The exact network for real data drawn from a mixture of Gaussians.

E[x_0 | x_t]   = sum_k p(k | x_t) E[x_0 | x_t, k]
Cov[x_0 | x_t] = sum_k p(k | x_t) (Cov[x_0 | x_t, k] + (E_k - E)(E_k - E)^T)
"""

import math
from typing import ClassVar, Literal, Self, final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.networks.mixture import Mixture, MixtureConfig, check_components, split_seen
from diffusion.noise import Noise

_LOG_2PI = math.log(2.0 * math.pi)
#: The largest share that a network is told: a variance of 1e-9 where y is exact.
SURE = 1 - 1e-9
#: The least variance and noise, and the least precision, of an element that nothing is known of.
_LEAST, _FAINT = 1e-12, 1e-8
#: Numbers in the matrices of the rows that are told at a time.
_CACHED = 1 << 17


class GaussianMixtureConfig(MixtureConfig):
    """The configuration of a `GaussianMixture`."""

    reads: ClassVar[tuple[str, str | None] | None] = ("x_0", "moment")
    kind: Literal["gaussian-mixture"] = "gaussian-mixture"

    @property
    def outputs(self) -> Literal[2]:
        """Two outputs per element: mean and variance part."""
        return 2


@final
class GaussianMixture(Mixture):
    """sum_k w_k N(x_0; mu_k, U_k diag(l_k) U_k^T), under x_t = sqrt(alpha_bar) x_0 + noise.

    Covariances are stored as eigenvectors `axes` [K, D, D] (columns) and eigenvalues `variances`
    [K, D], because adding isotropic noise changes only the eigenvalues.
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
        """Build the mixture of the given components.

        Args:
            weights: [K], positive, sum 1.
            means: [K, D].
            covariances: [K, D, D], symmetric, positive definite.

        Raises:
            ValueError: mismatched shapes, weights off the simplex, or an invalid covariance.
        """
        K, D = len(weights), means.shape[-1]
        check_components(weights, means, (K, D))
        check_components(weights, covariances, (K, D, D))
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
        """The covariance of each component, float64 [K, D, D]."""
        return (self.axes * self.variances[:, None, :]) @ self.axes.mT

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        """Return E[x_0 | x_t] and log(Var(x_0 | x_t) / (1 - alpha_bar)), elementwise.

        Args:
            x_t: [B, D].
            condition: log-SNR, [B], infinite at alpha_bar = 0 and 1.

        Returns:
            [B, 2 D] in the dtype of x_t: the mean, then the log-ratio, which is always finite.
        """
        x_t, told = split_seen(x_t, self.config.features)
        time = condition[0].double()[:, None]
        plain = self._plain(x_t, time)
        if told is None:
            return plain
        time, (value, share, _) = time.expand(len(x_t), 1), told
        rows = share.any(1)
        if x_t.is_cuda:  # reading which rows are told would wait for the device
            return torch.where(rows[:, None], self._told(x_t, time, value, share), plain)
        # A few rows at a time, so that their matrices stay in the processor's cache.
        for some in rows.nonzero()[:, 0].split(max(1, _CACHED // self.axes.numel())):
            plain[some] = self._told(x_t[some], time[some], value[some], share[some])
        return plain

    def _plain(self, x_t: Tensor, time: Tensor) -> Tensor:
        """Return what `given` does of rows that are told nothing, at log-SNR [B, 1]."""
        signal, noise = time.sigmoid(), (-time).sigmoid()
        log_joint, r, total = self.project(x_t, signal.sqrt(), noise)
        p = log_joint.softmax(1)[:, :, None]  # [B, K, 1]
        means = self._means(signal.sqrt(), r, total)
        mean = (p * means).sum(1)
        # Var(x_0 | x_t, k) / noise, written without dividing by the noise, which may be 0:
        within = torch.einsum("kij,bkj->bki", self.axes.square(), self.variances / total)
        within = (p * within).sum(1)
        # Between components, use E_k - E = -(noise / sqrt(signal)) (score_k - score) at high
        # signal, and E_k - E directly at low signal.
        scores = torch.einsum("kij,bkj->bki", self.axes, r / total)
        spread_scores = (p * (scores - (p * scores).sum(1, keepdim=True)).square()).sum(1)
        spread_means = (p * (means - mean[:, None]).square()).sum(1)
        much = spread_scores * noise / signal.clamp_min(0.5)
        between = torch.where(signal >= 0.5, much, spread_means / noise.clamp_min(0.5))
        return torch.cat([mean, (within + between).log()], dim=1).to(x_t.dtype)

    def _told(self, x_t: Tensor, time: Tensor, value: Tensor, share: Tensor) -> Tensor:
        """Return E[x_0 | x_t, y] and log(Var(x_0 | x_t, y) / (1 - alpha_bar)), as `given` does.

        x_t and y are one observation of each element, with the sum P of their precisions and the
        mean of both, m (`conditioned`). Rows that are all told alike at the same time share one P,
        on a CPU.

        Args:
            x_t: [B, D].
            time: log-SNR, [B, 1].
            value: what a network is told first (`Normal.told`), [B, D].
            share: what it is told next, [B, D].
        """
        if not x_t.is_cuda and bool((time == time[:1]).all() & (share == share[:1]).all()):
            time, share = time[:1], share[:1]
        share = share.double().clamp(max=SURE)
        signal, noise = time.sigmoid(), (-time).sigmoid().clamp_min(_LEAST)
        seen = share / (1 - share)
        pulled = signal.sqrt() / noise * x_t.double() + value.double() * (1 + seen)
        log_joint, means, within = self.conditioned(signal / noise + seen, pulled)
        p = log_joint.softmax(1)[:, :, None]
        mean = (p * means).sum(1)
        var = (p * (within + (means - mean[:, None]).square())).sum(1)
        log_var = var.clamp_min(_LEAST).log() - noise.log()
        return torch.cat([mean, log_var], dim=1).to(x_t.dtype)

    def conditioned(
        self, precision: Tensor, pulled: Tensor, covariances: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Condition each component on m = x_0 + noise of precision P, element by element.

        Args:
            precision: P, float64 [B or 1, D]; 0 for what is not known.
            pulled: P m, float64 [B, D].
            covariances: `covariances`, where they are at hand.

        With s = sqrt(P) and S = diag(s) C diag(s) + 1, component k has mean = mu_k + (1 - S^-1) s
        (m - mu_k) / s and variances (1 - diag(S^-1)) / P. S does not depend on m.

        Returns:
            log p(k) + log p(m | k) up to what the components have in common, [B, K], and the means
            [B, K, D] and variances [B or 1, K, D] of x_0.
        """
        precision = precision.clamp_min(_FAINT)
        root = precision.sqrt()[:, None]  # [B or 1, 1, D]
        inner = root[..., None] * (self.covariances if covariances is None else covariances)
        inner = inner.mul_(root[:, :, None])
        inner.diagonal(dim1=2, dim2=3).add_(1)
        inner = torch.linalg.cholesky(inner)  # [B or 1, K, D, D]
        log_det = 2 * inner.diagonal(dim1=2, dim2=3).log().sum(2)
        inverse = torch.cholesky_inverse(inner)
        within = (1 - inverse.diagonal(dim1=2, dim2=3)).clamp_min(0) / precision[:, None]
        # s (m - mu) = (pulled - P mu) / s
        off = (pulled[:, None] - precision[:, None] * self.means) / root
        solved = (inverse @ off[..., None])[..., 0]
        means = self.means + (off - solved) / root
        return self.weights.log() - 0.5 * ((off * solved).sum(2) + log_det), means, within

    def conditioned_evenly(
        self, precision: Tensor, pulled: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Do what `conditioned` does where a row's P is the same of all its elements.

        S = P C + 1 has the axes of C, so that no matrix is factored.

        Args:
            precision: P, float64 [B, 1].
            pulled: P m, float64 [B, D].

        Returns:
            As `conditioned`, variances [B, K, D].
        """
        P = precision.clamp_min(_FAINT)[:, :, None]  # [B, 1, 1]
        total = P * self.variances + 1
        off = torch.einsum("kij,bki->bkj", self.axes, pulled[:, None] - P * self.means)
        moved = torch.einsum("kij,bkj->bki", self.axes, self.variances / total * off)
        within = torch.einsum("kij,bkj->bki", self.axes.square(), self.variances / total)
        square = (off.square() / (P * total)).sum(2)
        log_joint = self.weights.log() - 0.5 * (square + total.log().sum(2))
        return log_joint, self.means + moved, within

    def log_prob(self, x_0: Tensor) -> Tensor:
        """Return log p(x_0), nats, float64 [B]."""
        return self.marginal_log_prob(x_0, torch.full_like(x_0[:, 0], torch.inf))

    def marginal_log_prob(self, x_t: Tensor, log_snr: Tensor) -> Tensor:
        """Return log q(x_t), nats, float64 [B]; log_snr [B]."""
        log_snr = log_snr.double()[:, None]
        return self.project(x_t, log_snr.sigmoid().sqrt(), (-log_snr).sigmoid())[0].logsumexp(1)

    def sample(self, noise: Noise) -> Tensor:
        """Draw from p(x_0) once per row of the noise, float32 [B, D]."""
        # Two calls would return the same numbers, so make one; its last column picks the component.
        normal = noise.normal((self.config.features + 1,)).double()
        k = self.choose(torch.special.ndtr(normal[:, -1]))
        scaled = self.variances[k].sqrt() * normal[:, :-1]
        return (self.means[k] + torch.einsum("bij,bj->bi", self.axes[k], scaled)).float()

    def mean(self) -> Tensor:
        """Return E[x_0], float64 [D]."""
        return self.weights @ self.means

    def covariance(self) -> Tensor:
        """Return Cov[x_0], float64 [D, D]."""
        off = self.means - self.mean()
        spread = self.covariances + off[:, :, None] * off[:, None, :]
        return torch.einsum("k,kij->ij", self.weights, spread)

    def posterior(self, matrix: Tensor, y: Tensor, var: Tensor) -> tuple[Self, float]:
        """Return p(x_0 | y), again a mixture, and log p(y) in nats, for y = A x_0 + noise.

        Args:
            matrix: A, [M, D].
            y: [M].
            var: variances of the noise, [M], above 0.
        """
        matrix, covariances = matrix.double(), self.covariances
        total = matrix @ covariances @ matrix.mT + torch.diag(var.double())
        off = y.double() - self.means @ matrix.mT
        gain = torch.linalg.solve(total, matrix @ covariances).mT
        marginal = torch.distributions.MultivariateNormal(torch.zeros_like(off), total)
        log_joint = self.weights.log() + marginal.log_prob(off)
        means = self.means + (gain @ off[:, :, None])[:, :, 0]
        kept = covariances - gain @ matrix @ covariances
        # Keep the weight of a component that y excludes above 0.
        weights = log_joint.softmax(0).clamp_min(1e-300)
        found = self.from_values(weights, means, (kept + kept.mT) / 2)
        return found, float(log_joint.logsumexp(0))

    def project(self, x: Tensor, scale: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate x = scale x_0 + sqrt(var) n under each component; scale and var [B, 1].

        Returns log p(k) p(x | k) [B, K]; then, in the component's axes, x - scale mu_k and its
        variance, both [B, K, D].
        """
        off = x.double()[:, None] - scale[:, :, None] * self.means
        r = torch.einsum("kij,bki->bkj", self.axes, off)
        total = scale.square()[:, :, None] * self.variances + var[:, :, None]
        log_normal = -0.5 * (r.square() / total + total.log() + _LOG_2PI).sum(2)
        return self.weights.log() + log_normal, r, total

    def _means(self, scale: Tensor, r: Tensor, total: Tensor) -> Tensor:
        """Return E[x_0 | x, k] = mu_k + U (scale l / total) r, [B, K, D]."""
        gain = scale[:, :, None] * self.variances / total
        return self.means + torch.einsum("kij,bkj->bki", self.axes, gain * r)
