"""Build oracles: models in closed form whose parameters are given in their configuration.

    values  ->  network in closed form  ->  artefact

Their exact likelihood, posterior and evidence can be compared with the served ones.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.noise import Stream, counter_noise
from diffusion.process import ProcessConfig
from diffusion.profile import ProfileConfig
from diffusion.space import DataSpace
from training.config import ConfigError, EvaluationConfig, Frozen, read
from training.data.dataset import Dataset, checksum


class GaussianMixtureValues(Frozen):
    """A Gaussian mixture, sum_k weights_k N(means_k, covariances_k), in model units."""

    kind: Literal["gaussian-mixture"]
    weights: tuple[float, ...]
    means: tuple[tuple[float, ...], ...]
    covariances: tuple[tuple[tuple[float, ...], ...], ...]

    def model(self, config: "OracleConfig") -> DiffusionModel:
        """Build the mixture's model with the configuration's process and units."""
        weights, means, covariances = (
            torch.tensor(value, dtype=torch.float64)
            for value in (self.weights, self.means, self.covariances)
        )
        space = DataSpace(
            kind="vector",
            shape=(means.shape[1],),
            shift=config.shift or 0.0,
            scale=config.scale or 1.0,
        )
        mixture = GaussianMixture.from_values(weights, means, covariances)
        return DiffusionModel(config.process.build(), mixture, space, "x_0", "moment")


class BitPatternsValues(Frozen):
    """Bit patterns, as strings of 0 and 1, with their probabilities."""

    kind: Literal["bit-patterns"]
    weights: tuple[float, ...]
    patterns: tuple[str, ...]

    def model(self, config: "OracleConfig") -> DiffusionModel:
        """Build the patterns' model with the configuration's process."""
        rate = getattr(config.process, "base_rate", None)
        if rate is None:
            raise ValueError("bit patterns need a process of kind 'binomial'")
        rows = [[float(bit) for bit in pattern] for pattern in self.patterns]
        patterns = torch.tensor(rows, dtype=torch.float64)
        weights = torch.tensor(self.weights, dtype=torch.float64)
        bits = BitPatterns.from_values(weights, patterns, rate)
        space = DataSpace(kind="bits", shape=(patterns.shape[1],))
        return DiffusionModel(config.process.build(), bits, space, "x_0", None)


class OracleConfig(Frozen):
    """The configuration of an oracle: its values, process and units."""

    name: str
    title: str
    process: ProcessConfig
    values: Annotated[GaussianMixtureValues | BitPatternsValues, Field(discriminator="kind")]
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    rows: int = Field(default=10_000, gt=0)
    seed: int = Field(default=0, ge=0)
    evaluation: EvaluationConfig = EvaluationConfig()
    profile: ProfileConfig = ProfileConfig()


def is_oracle(name: str) -> bool:
    """Whether a configuration describes an oracle: it has `values` and no `data`."""
    return "values" in read(name)


def load(name: str) -> OracleConfig:
    """Load the configuration of an oracle.

    Raises:
        ConfigError: no such file, invalid TOML, or keys and values that do not fit.
    """
    try:
        return OracleConfig.model_validate(read(name))
    except ValidationError as error:
        raise ConfigError(f"configuration {name}: {error}") from error


def build(config: OracleConfig) -> DiffusionModel:
    """Build the model that an oracle's configuration describes.

    Raises:
        ConfigError: the values do not fit each other or the process.
    """
    try:
        return config.values.model(config)
    except ValueError as error:
        raise ConfigError(f"configuration {config.name}: {error}") from error


def dataset(config: OracleConfig, model: DiffusionModel) -> Dataset:
    """Draw three disjoint splits from the oracle, with its exact density and entropy."""
    mixture, space = model.network, model.space
    assert isinstance(mixture, GaussianMixture | BitPatterns)  # all that `build` makes

    def rows(first: int, count: int) -> Tensor:
        place = torch.arange(first, first + count)
        return space.to_data(mixture.sample(counter_noise(config.seed, place, 0, Stream.DATA)))

    def log_density(x: Tensor) -> Tensor:
        nats: Tensor = mixture.log_prob(space.to_model(x))
        return nats + space.log_jacobian()

    test = rows(0, config.rows)
    if isinstance(mixture, BitPatterns):
        entropy = (-float((mixture.weights * mixture.weights.log()).sum()), 0.0)
    else:
        values = -log_density(rows(3 * config.rows, 100_000))
        entropy = (float(values.mean()), float(values.std()) / len(values) ** 0.5)
    return Dataset(
        name=config.name,
        space=space,
        train=rows(config.rows, config.rows),
        valid=rows(2 * config.rows, config.rows),
        test=test,
        checksum=checksum(*(buffer.detach() for buffer in mixture.buffers())),
        entropy=entropy,
        log_density=log_density,
    )
