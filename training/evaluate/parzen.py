"""Score samples by the Parzen-window log-likelihood of test data.

    log p(x) = log (1 / N) sum_n N(x; c_n, sigma^2 I),    x and c_n in [0, 1]^D, nats

The protocol is that of Breuleux, Bengio and Vincent (2010) and Goodfellow et al. (2014): c_n are
N = 10,000 samples of the model, sigma is the best on `valid` from a logarithmic grid, and the mean
over `test` is reported with its standard error over data. Sohl-Dickstein et al. (2015, Table 2)
report it in bits.

It is kept only to reproduce that table: it says little about the likelihood, and models can score
better than the true data distribution (Theis, van den Oord and Bethge 2016). Ours do when chains
stop early at a step t and return E[x_0 | x_t]: an average of the digits that x_t may become lies
nearer to any one of them than another digit does. Samples are rounded to the data's levels, as
/sample serves them.
"""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.samplers import Sampler, sample
from diffusion.space import Space
from training.data.dataset import Dataset, checksum, stream_seed
from training.progress import progress_bar, steps_made

#: Every second value is from Goodfellow et al.'s grid, np.logspace(-1, 0, 10).
BANDWIDTHS = tuple(10.0 ** (-1.0 + i / 18) for i in range(19))
ROWS = 256  # test rows per batch: 20 MB of distances to 10,000 samples
BLOCK = 250  # samples per saved file


class ParzenScore(BaseModel):
    """A score on a split, in nats; `bits` and `bits_error` are the same in bits.

    Attributes:
        centres: N, the number of samples that represent the model.
        bandwidth: sigma, for data in [0, 1].
        valid: mean log-likelihood of `valid` at that sigma, nats.
        nats, error: mean log-likelihood of `test`, and its standard error over data.
        data: number of test examples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    centres: int = Field(ge=1)
    bandwidth: float
    valid: float
    nats: float
    error: float
    bits: float
    bits_error: float
    data: int

    @classmethod
    def of(cls, values: Tensor, *, centres: int, bandwidth: float, valid: float) -> Self:
        """Make the score from log-likelihoods [N] of test data, in nats."""
        nats, error = float(values.mean()), float(values.std()) / math.sqrt(len(values))
        bit = math.log(2)
        return cls(
            centres=centres,
            bandwidth=bandwidth,
            valid=valid,
            nats=nats,
            error=error,
            bits=nats / bit,
            bits_error=error / bit,
            data=len(values),
        )


def to_unit(space: Space, x: Tensor) -> Tensor:
    """Scale data [N, *shape] to float64 [N, D] in [0, 1].

    Raises:
        ValueError: the data have no greatest value.
    """
    return x.flatten(1).double() / greatest(space)


def greatest(space: Space) -> int:
    """Return the greatest value of an element: 1 for binary data, 255 for 8-bit images."""
    if space.greatest is None:
        raise ValueError(
            "the Parzen score needs data in [0, 1]: bits or images with levels, not real vectors"
        )
    return (space.levels or 2) - 1


def log_density(
    x: Tensor,
    centres: Tensor,
    bandwidths: Tensor,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Compute log p(x) in nats at each bandwidth, float64 [N, len(bandwidths)].

    Uses float64, because |x|^2 + |c|^2 - 2 x.c cancels when x is near c.

    Args:
        x: [N, D].
        centres: [M, D].
        bandwidths: [B], above 0.
        progress: called with the number of rows just done.
    """
    x, centres, bandwidths = x.double(), centres.double(), bandwidths.double()
    norm = centres.square().sum(1)
    constant = math.log(len(centres)) + 0.5 * x.shape[1] * torch.log(
        2 * math.pi * bandwidths.square()
    )
    parts = []
    for rows in x.split(ROWS):
        square = rows.square().sum(1, keepdim=True) + norm - 2 * rows @ centres.T
        square = square.clamp_(min=0)
        each = [torch.logsumexp(square / (-2 * b**2), 1) for b in bandwidths.tolist()]
        parts.append(torch.stack(each, 1) - constant)
        if progress is not None:
            progress(len(rows))
    return torch.cat(parts)


def score(
    centres: Tensor,
    valid: Tensor,
    test: Tensor,
    *,
    bandwidths: tuple[float, ...] = BANDWIDTHS,
) -> ParzenScore:
    """Score the samples `centres` [M, D] on valid and test [N, D], all in [0, 1].

    Raises:
        ValueError: the best bandwidth is an end of the grid, so a better one may lie beyond it.
    """
    grid = torch.tensor(bandwidths, dtype=torch.float64)
    total = len(valid) + len(test)
    with progress_bar(total, "example", "Parzen") as bar:
        means = log_density(valid, centres, grid, bar.update).mean(0)
        best = int(means.argmax())
        if best in (0, len(grid) - 1):
            raise ValueError(
                f"the best bandwidth, {bandwidths[best]:.3g}, is an end of the grid "
                f"{bandwidths[0]:.3g}..{bandwidths[-1]:.3g}: these samples need a wider one"
            )
        values = log_density(test, centres, grid[best : best + 1], bar.update)[:, 0]
    return ParzenScore.of(
        values, centres=len(centres), bandwidth=bandwidths[best], valid=float(means[best])
    )


def of_samples(dataset: Dataset, drawn: Tensor) -> ParzenScore:
    """Score samples [M, *shape] in data units on a data set's `valid` and `test`."""
    rows = (drawn, dataset.valid, dataset.test)
    centres, valid, test = (to_unit(dataset.space, x) for x in rows)
    return score(centres, valid, test)


def of_data(dataset: Dataset, count: int) -> ParzenScore:
    """Score the first `count` rows of `train` as if they were samples."""
    return of_samples(dataset, dataset.train[:count])


class ModelScore(ParzenScore):
    """The score of a model's samples, drawn with `sampler`, `seed` and `stop`."""

    sampler: Sampler
    seed: int
    stop: int = 0


def of_model(
    model: DiffusionModel,
    dataset: Dataset,
    count: int,
    *,
    sampler: Sampler,
    seed: int,
    folder: Path,
    stop: int = 0,
) -> ModelScore:
    """Score `count` samples of a model, kept in `folder` (see `samples`)."""
    drawn = samples(model, count, sampler=sampler, seed=seed, folder=folder, stop=stop)
    found = of_samples(dataset, drawn)
    return ModelScore(**found.model_dump(), sampler=sampler, seed=seed, stop=stop)


def run_folder(
    folder: Path, model: DiffusionModel, sampler: Sampler, seed: int, stop: int = 0
) -> Path:
    """Return the folder for samples of exactly this model, sampler, seed and stop.

    The model is identified by its variance and tensors, which alone determine its samples.
    """
    tensors = checksum(*(tensor.cpu() for tensor in model.state_dict().values()))
    asked = f"{model.variance} {tensors} {sampler!r} {seed}" + (f" {stop}" if stop else "")
    return folder / f"{sampler.name}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"


def samples(
    model: DiffusionModel,
    count: int,
    *,
    sampler: Sampler,
    seed: int,
    folder: Path,
    stop: int = 0,
) -> Tensor:
    """Draw `count` samples in data units, [count, *shape], and keep them in `folder`.

    Each block of BLOCK samples is a function of (model, sampler, seed, stop, block number), so
    existing blocks are read and an interrupted run resumes.

    Args:
        model: the model.
        count: number of samples.
        sampler: determines the steps.
        seed: of the noise.
        folder: of the saved blocks.
        stop: the step at which chains stop, as in `sample`.

    Raises:
        ValueError: samples of this model cannot be scored.
    """
    greatest(model.space)  # fail before the work
    folder.mkdir(parents=True, exist_ok=True)
    work = BLOCK * sampler.plan(model).until(stop)
    blocks = []
    with progress_bar(-(-count // BLOCK) * work, "evaluation", "samples") as bar:
        for number in range(-(-count // BLOCK)):
            path = folder / f"{number:05}.safetensors"
            if not path.exists():
                drawn = sample(
                    model,
                    BLOCK,
                    seed=stream_seed(seed, "parzen", number),
                    sampler=sampler,
                    stop=stop,
                    progress=steps_made(bar, number * work, BLOCK),
                )
                partial = path.with_suffix(".part")
                save_file({"samples": model.space.to_data(drawn).cpu()}, partial)
                partial.replace(path)
            blocks.append(load_file(path)["samples"])
            bar.update((number + 1) * work - bar.n)
    return torch.cat(blocks)[:count]
