"""Simple densities of tables: what a fit starts from, chosen by cross-validation in seconds.

Reals, in model units (unit variance): a mixture of Gaussians by variational Bayes (scikit-learn),
whose covariances have an inverse Wishart prior around one that they share,

    Sigma_k ~ (N_k S_k + nu_0 S) / (N_k + nu_0),    nu_0 = D + 10

S by maximum likelihood of a mixture of one covariance, and the mean of several such mixtures from
different starts, which is a mixture again and better than they are. One component is a Gaussian,
shrunk as far as Ledoit and Wolf (2004) find best where that is better. Bits: a mixture of
independent bits by expectation-maximisation, with half a pseudo-count for a one and for a zero.

A choice is made by 5-fold cross-validation: the greatest log-density of rows not fitted to.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.networks import (
    BernoulliMixture,
    CorrectedConfig,
    GaussianMixture,
    TableMixture,
    TableNetworkConfig,
)
from diffusion.space import Space
from diffusion.table import TableSpace
from training import mixture
from training.config import FitConfig
from training.data import Dataset

FOLDS = 5
COMPONENTS = (1, 2, 3, 4, 5, 8, 12, 20)
STARTS = 3
LARGEST = 3000
"""Rows that a choice is made on; more tell it no better and take longer."""
WIDEST = 100
"""Columns beyond which one Gaussian is not taken apart into several."""
MOST = 20_000
"""Rows that a density is fitted to."""
FLOOR = 3e-5
"""Added to variances of columns of unit variance: a direction without any has a density.

Several times the noise of a fit's first step, which would blur what is narrower.
"""

Density = GaussianMixture | BernoulliMixture | TableMixture


@dataclass(frozen=True)
class Choice:
    """Which simple density.

    Attributes:
        components: of each start; 1 for a Gaussian or for independent bits.
        starts: mixtures whose mean is taken.
        shrunk: one Gaussian as Ledoit and Wolf shrink it.
    """

    components: int
    starts: int = 1
    shrunk: bool = False


def known(dataset: Dataset) -> Tensor:
    """All rows that are not reported on, `train` and `valid`, in data units."""
    return torch.cat((dataset.train, dataset.valid))[:MOST]


def base(config: FitConfig, space: Space, rows: Tensor) -> Density | None:
    """The density that a configuration's network corrects, fitted to rows in data units.

    None where the network corrects none.
    """
    network, start, z = config.network, config.base, space.to_model(rows[:MOST])
    if isinstance(network, TableNetworkConfig):
        size = network.base.components // start.starts
        table = mixture.Choice(size, start.starts, start.shrinkage, start.spread)
        assert isinstance(space, TableSpace)  # as its network
        return mixture.fit(mixture.Cells.of(space, rows, network.base.base), table)
    if not isinstance(network, CorrectedConfig):
        return None
    choice = Choice(network.base.components // start.starts, start.starts, start.shrunk)
    return fit(z, choice, getattr(network.base, "base_rate", None))


def fit(
    rows: Tensor, choice: Choice, base_rate: float | None = None
) -> GaussianMixture | BernoulliMixture:
    """The density of a choice, fitted to rows [N, D] in model units.

    Args:
        rows: that it is fitted to.
        choice: which.
        base_rate: of the binomial process, of bits; None for reals.
    """
    if base_rate is not None:
        return _bits(rows.double(), choice.components, base_rate)
    if choice.components == 1:
        return gaussian(rows, shrunk=choice.shrunk)
    found = [_mixture(rows.double(), choice.components, seed) for seed in range(choice.starts)]
    parts = zip(*((m.weights / len(found), m.means, m.covariances) for m in found), strict=True)
    return _gaussians(*(torch.cat(part) for part in parts))


def choose(rows: Tensor, bits: bool) -> Choice:
    """The choice with the greatest log-density of rows that it was not fitted to, 5 folds."""
    rows = rows[:LARGEST]
    rate = 0.5 if bits else None
    if bits:
        return _climb([Choice(k) for k in COMPONENTS], rows, rate)[0]
    found = [(c, score(rows, c)) for c in (Choice(1, shrunk=True), Choice(1))]
    if rows.shape[1] <= WIDEST:
        found.append(_climb([Choice(k) for k in COMPONENTS[1:]], rows, rate))
    best = max(found, key=lambda pair: pair[1])[0]
    # More starts are no better for a choice, and better for the density that is chosen.
    many = best.components > 1 and rows.shape[1] <= WIDEST // 2
    return replace(best, starts=STARTS) if many else best


def score(rows: Tensor, choice: Choice, base_rate: float | None = None) -> float:
    """The mean log-density of each of 5 folds by the other four, nats."""
    fold = torch.arange(len(rows)) % FOLDS
    total = 0.0
    for one in fold.unique():
        out = fold == one
        total += float(fit(rows[~out], choice, base_rate).log_prob(rows[out]).sum())
    return total / len(rows)


def _climb(
    choices: Sequence[Choice], rows: Tensor, base_rate: float | None
) -> tuple[Choice, float]:
    """The best of choices in order of size, tried until the score has fallen twice."""
    found: list[tuple[Choice, float]] = []
    for choice in choices:
        if found and choice.components > len(rows) // 10:
            break
        found.append((choice, score(rows, choice, base_rate)))
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
    whole = (covariances + covariances.mT) / 2 + FLOOR * eye
    return GaussianMixture.from_values(weights.clamp_min(1e-12), means, whole)


def _mixture(rows: Tensor, components: int, seed: int) -> GaussianMixture:
    from sklearn.mixture import BayesianGaussianMixture  # a second to import
    from sklearn.mixture import GaussianMixture as Tied

    freedom = rows.shape[1] + 10
    settings = {"n_components": components, "reg_covar": FLOOR, "random_state": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged, fewer different rows than components
        tied = Tied(covariance_type="tied", **settings).fit(rows.numpy())
        model = BayesianGaussianMixture(
            weight_concentration_prior_type="dirichlet_distribution",
            mean_precision_prior=0.1,
            degrees_of_freedom_prior=freedom,
            covariance_prior=freedom * tied.covariances_,
            max_iter=200,
            **settings,
        ).fit(rows.numpy())
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
