"""Fit Gaussian mixtures of patches as peer models: densities of whole grey images.

    tiles:    log p(x) = sum over tiles of log p(tile),   a mixture over side^2 pixels
    causal:   log p(x) = sum over pixels i of log p(x_i, N_i) - log p(N_i),   a mixture over a pixel
              and its causal neighbours: `above` rows of 2 beside + 1, and `beside` on its left

Both are normalised. Tiles are independent. The causal model is a mixture of conditional Gaussians
whose weights depend on the neighbours, as in MCGSM (Theis, Hosseini and Bethge 2012), but fitted by
the joint likelihood (expectation-maximisation, scikit-learn) and with full covariances instead of
scale mixtures. Neighbours beyond the border are integrated out.

Units. Levels x are dequantised, z = (x + u - 1/2 - mean) / s with u ~ U[0, 1) (Uria, Murray and
Larochelle 2013) and s^2 = Var(x) + 1/12 of `train`, so that z has unit variance. In bits per pixel

    K = E log2 p(z),   K - L_null with L_null = -1/2 log2(2 pi e),   bits/dim <= log2 s - K

where the last holds because P(x) = E_u of the density over x's cell, and log is concave.
Conversely, a model of levels defines a density constant over each cell, whose K is exactly
log2 s - bits/dim; this converts the discretised bound of a diffusion model for comparison. Levels
have no density, so the paper's own bound would be infinite without its fixed last step.
"""

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from diffusion.checkpoint import Metadata
from diffusion.networks import GaussianMixture
from diffusion.noise import Stream, counter_noise
from training.data import DataError, Dataset
from training.data.dataset import split_seed
from training.progress import progress_bar

L_NULL = -0.5 * math.log2(2 * math.pi * math.e)
ITERATIONS = 10  # per update of the progress bar
FLOOR = 1e-6  # added to variances; dequantisation alone gives 1e-5 or more


class PeerConfig(BaseModel):
    """The sizes of the two mixtures and their fits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    components: int = Field(64, gt=0, description="of each mixture")
    tile: int = Field(8, gt=0, description="side of a tile")
    above: int = Field(3, ge=0, description="rows of neighbours above a pixel")
    beside: int = Field(3, ge=0, description="columns of neighbours on either side")
    patches: int = Field(50_000, gt=0, description="of train that a mixture is fitted to")
    iterations: int = Field(60, gt=0, description="of expectation-maximisation, at most")
    seed: int = Field(0, ge=0, description="of patches, dequantisation and the first guess")


class Measured(BaseModel):
    """A model's mean score on test images, in bits per pixel.

    Attributes:
        model: its name.
        K: log-density at unit variance.
        gain: K - L_null.
        bits_per_dim: upper bound for the exact levels.
        error: standard error of each of the three, over test data.
        data: number of test images.
        parameters: number of fitted parameters, if counted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    K: float
    gain: float
    bits_per_dim: float
    error: float
    data: int
    parameters: int | None = None


def measured(
    model: str,
    bits_per_dim: float,
    error: float,
    scale: float,
    data: int,
    parameters: int | None = None,
) -> Measured:
    """Derive the three scores from bits/dim; `scale` is s, in levels."""
    K = math.log2(scale) - bits_per_dim
    return Measured(
        model=model,
        K=K,
        gain=K - L_NULL,
        bits_per_dim=bits_per_dim,
        error=error,
        data=data,
        parameters=parameters,
    )


def unit_scale(dataset: Dataset) -> tuple[float, float]:
    """Compute (mean, s) of dequantised `train`, in levels.

    Raises:
        DataError: the data are not images with levels.
    """
    space = dataset.space
    if len(space.shape) != 3 or space.levels is None:
        raise DataError(
            f"the units need images of levels; {dataset.name} is {space.kind} of shape "
            f"{list(space.shape)}"
        )
    share = torch.bincount(dataset.train.flatten(), minlength=space.levels).double()
    share /= share.sum()
    level = torch.arange(len(share), dtype=torch.float64)
    mean = float(share @ level)
    return mean, math.sqrt(float(share @ (level - mean) ** 2) + 1 / 12)


def dequantised(x: Tensor, mean: float, scale: float, seed: int) -> Tensor:
    """Compute z from levels, both [N, height, width]; float64."""
    # Not Stream.DATA: generated data have used it with the same seed.
    u = counter_noise(seed, torch.arange(len(x)), 0, Stream.TERM).uniform(x.shape[1:])
    return (x.double() + u - 0.5 - mean) / scale


def windows(x: Tensor, height: int, width: int, count: int, seed: int) -> Tensor:
    """Cut `count` windows from images [N, H, W] at uniform positions, [count, height, width]."""
    every = x.unfold(1, height, 1).unfold(2, width, 1)
    u = counter_noise(seed, torch.arange(count), 1, Stream.TERM).uniform((3,)).double()
    n, i, j = (u * torch.tensor(every.shape[:3])).long().unbind(1)
    return every[n, i, j]


def fit(patches: Tensor, config: PeerConfig) -> GaussianMixture:
    """Fit a mixture to patches [N, D] by expectation-maximisation, starting from k-means.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture as Fitted
    except ImportError as error:
        raise DataError("the peer needs scikit-learn: pip install '.[train]'") from error
    found = Fitted(
        config.components,
        max_iter=ITERATIONS,
        reg_covar=FLOOR,
        random_state=config.seed,
        warm_start=True,
        tol=1e-4,
    )
    data = patches.numpy()
    with (
        warnings.catch_warnings(),
        progress_bar(config.iterations, "iteration", "peer") as bar,
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the loop below continues
        while bar.n < config.iterations and not getattr(found, "converged_", False):
            found.fit(data)
            bar.update(found.n_iter_)
    values = (found.weights_, found.means_, found.covariances_)
    weights, means, covariances = (torch.from_numpy(value) for value in values)
    return GaussianMixture.from_values(weights, means, (covariances + covariances.mT) / 2)


def parameters(mixture: GaussianMixture) -> int:
    """Count the free parameters: weights, means and covariances."""
    K, D = mixture.means.shape
    return K - 1 + K * D + K * D * (D + 1) // 2


def tile_log_prob(mixture: GaussianMixture, z: Tensor, side: int) -> Tensor:
    """Compute log p(z) by tiles, nats [N]; z is [N, height, width], multiples of `side`."""
    tiles = z.unfold(1, side, side).unfold(2, side, side).flatten(3)
    each = mixture.log_prob(tiles.flatten(0, 2)).view(tiles.shape[:3])
    return each.sum((1, 2))


def offsets(above: int, beside: int) -> list[tuple[int, int]]:
    """List the (down, right) offsets of a causal patch from its last pixel, in reading order."""
    return [
        (down, right)
        for down in range(-above, 1)
        for right in range(-beside, beside + 1)
        if (down, right) <= (0, 0)
    ]


def causal_log_prob(
    mixture: GaussianMixture, z: Tensor, places: Sequence[tuple[int, int]]
) -> Tensor:
    """Compute log p(z) by pixels, nats [N]; z is [N, height, width], `places` from `offsets`."""
    _, height, width = z.shape
    marginals: dict[tuple[int, ...], Callable[[Tensor], Tensor]] = {}

    def log_prob(keep: tuple[int, ...], values: Tensor) -> Tensor | float:
        if not keep:
            return 0.0
        if keep not in marginals:
            marginals[keep] = marginal(mixture, keep).log_prob
        return marginals[keep](values)

    total = z.new_zeros(len(z))
    for i in range(height):
        for j in range(width):
            there = [(i + down, j + right) for down, right in places]
            keep = tuple(k for k, (a, b) in enumerate(there) if a >= 0 and 0 <= b < width)
            values = torch.stack([z[:, there[k][0], there[k][1]] for k in keep], 1)
            total += log_prob(keep, values) - log_prob(keep[:-1], values[:, :-1])
    return total


def marginal(mixture: GaussianMixture, keep: Sequence[int]) -> GaussianMixture:
    """Return the marginal mixture over the coordinates `keep`."""
    index = torch.tensor(keep)
    covariances = mixture.covariances[:, index][:, :, index]
    return GaussianMixture.from_values(
        mixture.weights, mixture.means[:, index], (covariances + covariances.mT) / 2
    )


def compare(dataset: Dataset, config: PeerConfig, count: int | None = None) -> list[Measured]:
    """Fit both mixtures to `train` and score them on the first `count` rows of `test`.

    Raises:
        DataError: the data are not grey images with levels, or tiles do not fill their sides.
    """
    mean, scale = unit_scale(dataset)
    channels, height, width = dataset.space.shape
    if channels != 1:
        raise DataError(f"the peer is for grey images; {dataset.name} has {channels} channels")
    if height % config.tile or width % config.tile:
        raise DataError(
            f"tiles of {config.tile} do not fill {height} x {width}; give another --tile"
        )
    test = dequantised(dataset.test[:count, 0], mean, scale, split_seed(config.seed, "test"))
    places, seed = offsets(config.above, config.beside), split_seed(config.seed, "train")

    def patches(rows: int, columns: int) -> Tensor:
        levels = windows(dataset.train[:, 0], rows, columns, config.patches, seed)
        return dequantised(levels, mean, scale, seed).flatten(1)

    def one(name: str, mixture: GaussianMixture, nats: Callable[[Tensor], Tensor]) -> Measured:
        # 250 images at once, because the mixture allocates float64 [rows, components, pixels].
        each = torch.cat([nats(z) for z in test.split(250)]) / (height * width * math.log(2))
        error = float(each.std()) / math.sqrt(len(each))
        bits_per_dim = math.log2(scale) - float(each.mean())
        return measured(name, bits_per_dim, error, scale, len(each), parameters(mixture))

    tiles = fit(patches(config.tile, config.tile), config)
    box = patches(config.above + 1, 2 * config.beside + 1)
    causal = fit(box[:, : len(places)].contiguous(), config)
    K = config.components
    return [
        one(
            f"{K} Gaussians, tiles of {config.tile} x {config.tile}",
            tiles,
            lambda z: tile_log_prob(tiles, z, config.tile),
        ),
        one(
            f"{K} Gaussians, a pixel given {len(places) - 1} before it",
            causal,
            lambda z: causal_log_prob(causal, z, places),
        ),
    ]


def diffusion(metadata: Metadata, dataset: Dataset) -> Measured | None:
    """Convert a diffusion model's discretised bound to these units; None if not measured."""
    found = [e for e in metadata.evaluation if e.whole and e.convention == "discretised"]
    if not found:
        return None
    e = found[0]
    error = e.standard_error / math.log(2) / metadata.space.dims
    return measured(metadata.name, e.bits_per_dim, error, unit_scale(dataset)[1], e.count)


def table(rows: Sequence[Measured]) -> str:
    """Format the scores as a Markdown table, in bits per pixel."""
    lines = [
        "| model | K | K - L_null | bits/dim | standard error | data |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        figures = " | ".join(f"{x:.3f}" for x in (r.K, r.gain, r.bits_per_dim, r.error))
        lines.append(f"| {r.model} | {figures} | {r.data} |")
    return "\n".join(lines)
