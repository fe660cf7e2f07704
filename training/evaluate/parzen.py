"""The Parzen-window log-likelihood: samples, each widened into a Gaussian, held against test data.

    log p(x) = log (1 / N) sum_n N(x; c_n, sigma^2 I),    x and c_n in [0, 1]^D, nats

by the protocol of its time (Breuleux, Bengio and Vincent 2010; Goodfellow et al. 2014): c_n are
N = 10,000 samples of the model, sigma is the one of a logarithmic grid that is best on `valid`, and
the mean over `test` is reported with its standard error over data. Sohl-Dickstein et al. (2015,
Table 2) report it in bits.

It is kept to reproduce that table and for nothing else: it says little about the likelihood, and
models can score better than the very distribution that the data came from (Theis, van den Oord and
Bethge 2016). So do ours: where chains are stopped at a step t and E[x_0 | x_t] stands for what they
would have come to, an average of the digits that x_t may become lies nearer to any one of them than
another digit does. Samples are rounded to the data's levels, as /sample serves them.
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
from diffusion.space import DataSpace
from training.data.dataset import Dataset, checksum, stream_seed
from training.progress import progress_bar, steps_made

#: Every other one is Goodfellow et al.'s, np.logspace(-1, 0, 10).
BANDWIDTHS = tuple(10.0 ** (-1.0 + i / 18) for i in range(19))
ROWS = 256  # of test data at once: 20 MB of distances to 10,000 samples
BLOCK = 250  # samples drawn and saved at once


class ParzenScore(BaseModel):
    """A score on a split, in nats; `bits` and `bits_error` are the same in bits.

    Attributes:
        centres: N, how many samples stand for the model.
        bandwidth: sigma, for data in [0, 1].
        valid: mean log-likelihood of `valid` at that sigma.
        nats, error: mean log-likelihood of `test`, and its standard error over data.
        data: how many test data.
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
        """The score of log-likelihoods [N] of test data."""
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


def to_unit(space: DataSpace, x: Tensor) -> Tensor:
    """Data [N, *shape] as float64 [N, D] in [0, 1].

    Raises:
        ValueError: data that have no greatest value.
    """
    return x.flatten(1).double() / greatest(space)


def greatest(space: DataSpace) -> int:
    """The greatest value of an element: 1 of bits, 255 of 8-bit images."""
    if space.greatest is None:
        raise ValueError(
            "the Parzen score is of data in [0, 1]: it needs bits or images with levels, not real "
            "vectors"
        )
    return (space.levels or 2) - 1


def log_density(
    x: Tensor,
    centres: Tensor,
    bandwidths: Tensor,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """log p(x) in nats at each bandwidth, float64 [N, len(bandwidths)].

    |x - c|^2 = |x|^2 + |c|^2 - 2 x.c cancels where x is near c: float64 throughout.

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
    """The score of samples `centres` [M, D]; valid and test are [N, D], all in [0, 1].

    Raises:
        ValueError: the best bandwidth is an end of the grid, so that a better one lies beyond it.
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
    """The score of rows [M, *shape] in data units, by a data set's `valid` and `test`."""
    rows = (drawn, dataset.valid, dataset.test)
    centres, valid, test = (to_unit(dataset.space, x) for x in rows)
    return score(centres, valid, test)


def of_data(dataset: Dataset, count: int) -> ParzenScore:
    """The score of the first `count` rows of `train` in the samples' place."""
    return of_samples(dataset, dataset.train[:count])


class ModelScore(ParzenScore):
    """The score of a model's samples; `sampler`, `seed` and `stop` say which."""

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
    """The score of `count` samples of a model, kept in `folder` (`samples`)."""
    drawn = samples(model, count, sampler=sampler, seed=seed, folder=folder, stop=stop)
    found = of_samples(dataset, drawn)
    return ModelScore(**found.model_dump(), sampler=sampler, seed=seed, stop=stop)


def run_folder(
    folder: Path, model: DiffusionModel, sampler: Sampler, seed: int, stop: int = 0
) -> Path:
    """Where the samples of this model by this sampler and seed are kept, and no others.

    A model is its variance and its tensors: what was measured of it does not move its samples.
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
    """`count` samples in data units, [count, *shape], drawn BLOCK at a time and kept in `folder`.

    A block is a function of (model, sampler, seed, stop, its number), so that what is there already
    is read: a run that was cut off goes on, and more samples begin with those drawn before.

    Args:
        model: the model.
        count: how many.
        sampler: its steps.
        seed: of the noise.
        folder: where they are kept.
        stop: where chains stop, as of `sample`.

    Raises:
        ValueError: a model whose samples have no score.
    """
    greatest(model.space)  # before the work, not after it
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
