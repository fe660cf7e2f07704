"""Simple densities of tables: what a fit starts from, chosen by cross-validation in seconds.

Reals, in model units (unit variance): a mixture of Gaussians by variational Bayes (scikit-learn),
whose covariances have an inverse Wishart prior,

    Sigma_k = (N_k S_k + nu_0 prior S) / (N_k + nu_0 + ...),    nu_0 = D + 2

around `prior` times the data's own covariance S; one component is a Gaussian, shrunk as far as
Ledoit and Wolf (2004) find best where that is better. Bits: a mixture of independent bits by
expectation-maximisation, each with half a pseudo-count for a one and for a zero.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.networks import BernoulliMixture, GaussianMixture

FOLDS = 5
COMPONENTS = (1, 2, 3, 5, 8, 12, 20)
PRIORS = (1.0, 0.3, 0.1)
LARGEST = 3000
"""Rows that a choice is made on; more tell it no better and take longer."""
WIDEST = 100
"""Columns beyond which one Gaussian is not taken apart into several."""
_FLOOR = 1e-6  # added to variances of columns of unit variance: a direction without any has a density

Density = GaussianMixture | BernoulliMixture


@dataclass(frozen=True)
class Choice:
    """Which simple density: its components, and how wide its prior is (reals; 0: Ledoit-Wolf)."""

    components: int
    prior: float = 0.0


def fit(rows: Tensor, choice: Choice, base_rate: float | None = None) -> Density:
    """The density of a choice, fitted to rows [N, D] in model units.

    Args:
        rows: that it is fitted to.
        choice: which.
        base_rate: of the binomial process, of bits; None for reals.
    """
    if base_rate is not None:
        return _bits(rows.double(), choice.components, base_rate)
    if choice.prior == 0:
        return gaussian(rows, shrunk=True)
    return _mixture(rows.double(), choice.components, choice.prior)


def choose(rows: Tensor, bits: bool) -> Choice:
    """The choice with the greatest log-density of rows that it was not fitted to, 5 folds."""
    rows = rows[:LARGEST]
    rate = 0.5 if bits else None
    folds = min(FOLDS, len(rows))

    def score(choice: Choice) -> float:
        total = 0.0
        for fold in range(folds):
            out = torch.arange(len(rows)) % folds == fold
            total += float(fit(rows[~out], choice, rate).log_prob(rows[out]).sum())
        return total / len(rows)

    if bits:
        return _climb([Choice(k) for k in COMPONENTS], len(rows), score)[0]
    found = [(c, score(c)) for c in (Choice(1), Choice(1, 1.0))]
    if rows.shape[1] <= WIDEST:
        for prior in PRIORS:
            found.append(_climb([Choice(k, prior) for k in COMPONENTS[1:]], len(rows), score))
    return max(found, key=lambda pair: pair[1])[0]


def _climb(
    choices: Sequence[Choice], rows: int, score: Callable[[Choice], float]
) -> tuple[Choice, float]:
    """The best of choices in order of size, tried until the score has fallen twice."""
    found: list[tuple[Choice, float]] = []
    for choice in choices:
        if found and choice.components > rows // 10:
            break
        found.append((choice, score(choice)))
        if len(found) > 2 and found[-1][1] < found[-2][1] < found[-3][1]:
            break
    return max(found, key=lambda pair: pair[1])


def gaussian(rows: Tensor, *, shrunk: bool) -> GaussianMixture:
    """One Gaussian by maximum likelihood, or shrunk as Ledoit and Wolf do."""
    rows = rows.double()
    covariance = rows.mT.cov(correction=0).reshape(rows.shape[1], rows.shape[1])
    if shrunk:
        from sklearn.covariance import ledoit_wolf_shrinkage  # a second to import

        share = float(ledoit_wolf_shrinkage(rows.numpy()))
        target = covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
        covariance = (1 - share) * covariance + share * target
    return _gaussians(torch.ones(1), rows.mean(0)[None], covariance[None])


def independent(rows: Tensor) -> GaussianMixture:
    """One Gaussian a column, by maximum likelihood."""
    rows = rows.double()
    return _gaussians(torch.ones(1), rows.mean(0)[None], rows.var(0, correction=0).diag()[None])


def _gaussians(weights: Tensor, means: Tensor, covariances: Tensor) -> GaussianMixture:
    """The mixture, its covariances symmetric and above the floor."""
    eye = torch.eye(means.shape[1], dtype=torch.float64)
    whole = (covariances + covariances.mT) / 2 + _FLOOR * eye
    return GaussianMixture.from_values(weights.clamp_min(1e-12), means, whole)


def _mixture(rows: Tensor, components: int, prior: float) -> GaussianMixture:
    from sklearn.mixture import BayesianGaussianMixture  # a second to import

    dims = rows.shape[1]
    covariance = rows.mT.cov(correction=0).reshape(dims, dims)
    covariance = covariance + _FLOOR * torch.eye(dims, dtype=torch.float64)
    model = BayesianGaussianMixture(
        n_components=components,
        weight_concentration_prior_type="dirichlet_distribution",
        mean_precision_prior=0.1,
        degrees_of_freedom_prior=dims + 2,
        covariance_prior=(prior * (dims + 2) * covariance).numpy(),
        reg_covar=_FLOOR,
        max_iter=200,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged, fewer different rows than components
        model.fit(rows.numpy())
    values = (torch.from_numpy(x) for x in (model.weights_, model.means_, model.covariances_))
    return _gaussians(*values)


def _bits(rows: Tensor, components: int, base_rate: float) -> BernoulliMixture:
    """The best of a few starts of expectation-maximisation."""
    found = [_climbed(rows, components, seed) for seed in range(1 if components == 1 else 4)]
    best = max(found, key=lambda model: float(model.log_prob(rows).sum()))
    return BernoulliMixture.from_values(best.weights, best.logits.sigmoid(), base_rate)


def _climbed(rows: Tensor, components: int, seed: int) -> BernoulliMixture:
    generator = torch.Generator().manual_seed(seed)
    share = rows.new_empty(len(rows), components).uniform_(generator=generator)
    share = (4 * share).softmax(1)
    before = -math.inf
    for _ in range(200):
        count = share.sum(0)
        # A class of one row is no surer of its bits than half a count each way makes it.
        p = (share.mT @ rows + 0.5) / (count[:, None] + 1.0)
        weights = (count + 0.5) / (count + 0.5).sum()
        model = BernoulliMixture.from_values(weights, p)
        log_joint = weights.log() + rows @ p.log().mT + (1 - rows) @ (-p).log1p().mT
        now = float(log_joint.logsumexp(1).mean())
        if now - before < 1e-5:
            break
        before, share = now, log_joint.softmax(1)
    return model
