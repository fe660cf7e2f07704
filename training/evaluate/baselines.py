"""Compare a model with simple densities, and decide whether it is ready for use.

    gain_n = K_n - log p_simple(x_n),    standard error of their mean = std(gain_n) / sqrt(N)

Each density is fitted to `train` and `valid` and measured on the same `test` rows as the model, in
nats of the data's own convention and units. A model is not ready if K - L_null is below 0, or if a
simple density is better by more than two standard errors and by more than `MARGIN`.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from diffusion.checkpoint import Baseline, Metadata
from diffusion.networks import TableMixture
from diffusion.space import Space
from diffusion.table import TableSpace
from training import densities, mixture
from training.config import FitConfig
from training.data import Dataset

LARGEST = 3000
"""The most rows that the BIC mixture and the kernel density are fitted to."""
WIDEST = 100
"""The most columns for those two, which are slow and poor in high dimension."""
PIXELS = 4096
"""The most elements of an image for which a Gaussian is fitted."""
BANDWIDTHS = 10.0 ** torch.linspace(-1.5, 0.5, 13)

LogProb = Callable[[Tensor], Tensor]


def compare(config: FitConfig, dataset: Dataset, rows: Tensor, values: Tensor) -> list[Baseline]:
    """Fit and measure the baselines of a fit, best first.

    Args:
        config: of the fit; its base, if any, is one of the baselines.
        dataset: its `train` and `valid` are the training rows.
        rows: held out, data units [N, *event].
        values: the model's bounds on those rows in the data's own convention, nats [N].
    """
    convention = dataset.space.default_convention
    found = []
    for name, log_prob in _fitted(config, dataset).items():
        each = log_prob(rows).double().cpu()
        gain = values.double().cpu() - each
        found.append(
            Baseline(
                name=name,
                convention=convention,
                count=len(gain),
                bound=float(each.mean()),
                gain=float(gain.mean()),
                standard_error=float(gain.std()) / math.sqrt(len(gain)),
            )
        )
    return sorted(found, key=lambda baseline: -baseline.bound)


def _fitted(config: FitConfig, dataset: Dataset) -> dict[str, LogProb]:
    """Fit log-densities or log-probabilities of rows in data units, by name."""
    if isinstance(dataset.space, TableSpace):
        return _of_tables(config, dataset, dataset.space)
    kinds = {"image": _of_images, "vector": _of_vectors, "bits": _of_bits}
    space, found = dataset.space, kinds[dataset.space.kind](config, dataset)

    def in_data_units(log_prob: LogProb, rows: Tensor) -> Tensor:
        z = space.to_model(rows)
        each = log_prob(z).double().cpu()
        dense = space.default_convention == "density"
        return each + space.log_jacobian_of(z).cpu() if dense else each

    return {name: partial(in_data_units, log_prob) for name, log_prob in found.items()}


def _of_tables(config: FitConfig, dataset: Dataset, space: TableSpace) -> dict[str, LogProb]:
    rows = densities.known(dataset)
    cells = mixture.Cells.of(space, rows, [[1 / size] * size for size in space.blocks.sizes])

    def measure(choice: mixture.Choice) -> LogProb:
        return partial(_of_cells, mixture.fit(cells, choice), space)

    start = mixture.Choice(shrinkage=config.base.shrinkage)
    found = {
        "independent columns": measure(mixture.Choice(shrinkage=1.0)),
        "one Gaussian, categories apart": measure(start),
    }
    of_fit = densities.base(config, space, rows)
    if isinstance(of_fit, TableMixture) and of_fit.config.components > 1:
        name = f"the fit's base: {of_fit.config.components} classes, by cross-validation"
        found[name] = partial(_of_cells, of_fit, space)
    return found


def _of_cells(of: TableMixture, space: TableSpace, rows: Tensor) -> Tensor:
    """The log-density of reals and log-mass of cells and categories, data units, nats [N]."""
    cells = mixture.Cells.of(space, rows, of.config.base)
    return of.log_prob(cells.z, cells.known) + mixture.in_data_units(space, rows)


def _of_vectors(config: FitConfig, dataset: Dataset) -> dict[str, LogProb]:
    rows = dataset.space.to_model(densities.known(dataset))
    found = _base(config, dataset, "Gaussians")
    found["independent Gaussian columns"] = densities.independent(rows).log_prob
    found["one Gaussian"] = densities.gaussian(rows, shrunk=False).log_prob
    found["one Gaussian, shrunk"] = densities.gaussian(rows, shrunk=True).log_prob
    if dataset.space.dims <= WIDEST:
        found["a Gaussian mixture, by BIC"] = _by_bic(rows[:LARGEST])
        found["a kernel density, by cross-validation"] = _kernels(rows[:LARGEST])
    return found


def _of_bits(config: FitConfig, dataset: Dataset) -> dict[str, LogProb]:
    rows = dataset.space.to_model(densities.known(dataset))
    found = _base(config, dataset, "independent bits")
    found["independent columns"] = densities.fit(rows, densities.Choice(1), 0.5).log_prob
    return found


def _base(config: FitConfig, dataset: Dataset, kind: str) -> dict[str, LogProb]:
    """The density that the fit starts from, if it is none of the other baselines."""
    base = densities.base(config, dataset.space, densities.known(dataset))
    if base is None or base.config.components == 1:
        return {}
    name = f"the fit's base: {base.config.components} {kind}, by cross-validation"
    return {name: base.log_prob}


def _by_bic(rows: Tensor) -> LogProb:
    from sklearn.mixture import GaussianMixture  # a second to import

    data = rows.double().numpy()
    tried = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # if a fit did not converge, its BIC shows it
        for components in range(1, 1 + min(8, len(rows) // 10)):
            for kind in ("full", "diag"):
                model = GaussianMixture(
                    n_components=components,
                    covariance_type=kind,
                    reg_covar=densities.FLOOR,
                    random_state=0,
                )
                tried.append(model.fit(data))
    best = min(tried, key=lambda model: float(model.bic(data)))
    return lambda x: torch.from_numpy(best.score_samples(x.double().numpy()))


def _kernels(rows: Tensor) -> LogProb:
    """Gaussian kernels in whitened coordinates, with the bandwidth chosen by cross-validation."""
    rows = rows.double()
    whole = densities.gaussian(rows, shrunk=True)
    white = (whole.axes[0] / whole.variances[0].sqrt()).double()  # columns [D, D]
    shrink = -0.5 * float(whole.variances.log().sum())
    centres = rows @ white
    dims = rows.shape[1]

    def log_prob(x: Tensor, of: Tensor, width: float) -> Tensor:
        squares = torch.cdist(x, of).square()
        norm = dims * math.log(width * math.sqrt(2 * math.pi)) + math.log(len(of))
        return (-0.5 * squares / width**2).logsumexp(1) - norm

    def score(width: float) -> float:
        fold = torch.arange(len(centres)) % densities.FOLDS
        parts = (log_prob(centres[fold == f], centres[fold != f], width) for f in fold.unique())
        return float(sum(part.sum() for part in parts))

    best = max(BANDWIDTHS.tolist(), key=score)
    return lambda x: log_prob(x.double() @ white, centres, best) + shrink


def _of_images(_: FitConfig, dataset: Dataset) -> dict[str, LogProb]:
    """Independent pixels with a histogram per channel, and one Gaussian of dequantised pixels."""
    train, space = torch.cat((dataset.train, dataset.valid)), dataset.space
    assert space.levels is not None  # images have levels
    channels, levels = space.shape[0], space.levels
    pixels = train.movedim(1, 0).flatten(1).long()
    counts = torch.stack([row.bincount(minlength=levels) for row in pixels]).double() + 0.5
    logs = (counts / counts.sum(1, keepdim=True)).log()

    def histogram(x: Tensor) -> Tensor:
        level = space.to_data(x).long().flatten(2)
        each = [logs[c][level[:, c]].sum(1) for c in range(channels)]
        return torch.stack(each).sum(0)

    found: dict[str, LogProb] = {"independent pixels, a histogram a channel": histogram}
    if space.dims <= PIXELS:
        found["one Gaussian of all pixels, shrunk"] = _pixels(train[:LARGEST], space)
    return found


def _pixels(train: Tensor, space: Space) -> LogProb:
    """E_u log N(x + u), u uniform over a level: a lower bound on the levels' log-probability."""
    from sklearn.covariance import ledoit_wolf  # a second to import

    generator = torch.Generator().manual_seed(0)

    def levels(x: Tensor) -> Tensor:
        u = torch.rand(x.shape, generator=generator, dtype=torch.float64)
        return (x.double() + u - 0.5).flatten(1)

    rows = levels(train)
    mean = rows.mean(0)
    covariance = torch.from_numpy(ledoit_wolf((rows - mean).numpy(), assume_centered=True)[0])
    factor = torch.linalg.cholesky(covariance + torch.eye(len(mean)) / 12)
    normal = torch.distributions.MultivariateNormal(mean, scale_tril=factor)
    return lambda x: normal.log_prob(levels(space.to_data(x)))


MARGIN = 0.05
"""Bits per element by which a simple density may be better: the most that finite T loses."""


@dataclass(frozen=True)
class Verdict:
    """Whether a model is ready for use, and why.

    Attributes:
        ready: whether there is no reason against the model.
        reasons: the reasons against it, or the comparison that it passed.
    """

    ready: bool
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        head = "ready" if self.ready else "NOT READY"
        return "\n".join(f"{head}: {reason}" for reason in self.reasons)


def verdict(metadata: Metadata) -> Verdict | None:
    """Judge a model; None if it was not evaluated on `test` in its own convention."""
    convention = metadata.space.default_convention
    found = [
        e
        for e in metadata.evaluation
        if e.whole and e.split == "test" and e.convention == convention
    ]
    if not found:
        return None
    own, bit = found[-1], math.log(2)
    against = []
    if own.bound < own.null:
        against.append(
            f"K - L_null is {(own.bound - own.null) / bit:.4g} bits on held-out rows: pure noise "
            "describes them better than the model does; give it more data"
        )
    for b in metadata.baselines:
        lead = -b.gain / bit
        if lead > max(2 * b.standard_error / bit, MARGIN * metadata.space.dims):
            against.append(
                f"{b.name}, is better by {lead:.4g} ± {b.standard_error / bit:.2g} bits a held-out "
                "row: use that, or give the model more data"
            )
    if against:
        return Verdict(False, tuple(against))
    if not metadata.baselines:
        return Verdict(True, (f"K - L_null is {(own.bound - own.null) / bit:.4g} bits",))
    best = max(metadata.baselines, key=lambda b: b.bound)
    gain, error = best.gain / bit, best.standard_error / bit
    than = "better than" if gain > 2 * error else "within the error of"
    return Verdict(
        True,
        (
            f"{than} the best simple density ({best.name}): {gain:+.4g} ± {error:.2g} bits a row, "
            f"on {best.count} held-out rows",
        ),
    )


def beside(metadata: Metadata) -> str:
    """Format the baselines as a Markdown table, in bits."""
    lines = [
        "| simple density | rows | log2 density a row | the model's gain | standard error |",
        "|---|---|---|---|---|",
    ]
    bit = math.log(2)
    lines += [
        f"| {b.name} | {b.count} | {b.bound / bit:.4f} | {b.gain / bit:+.4f} "
        f"| {b.standard_error / bit:.4f} |"
        for b in metadata.baselines
    ]
    return "\n".join(lines)
