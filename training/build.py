"""The model of a configuration, with fresh weights, before anything is fitted."""

import torch
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.networks import RBF, BernoulliMixtureConfig, Corrected, build
from training import data, densities
from training.config import FitConfig
from training.data.dataset import stream_seed

#: Rows of the training data among which basis functions are placed.
PLACING = 2000
#: And to which a simple density is fitted.
DENSITY = 20_000


def known(dataset: data.Dataset) -> Tensor:
    """The rows that a simple density is fitted to, model units: all that no report is made of.

    `valid` is among them: what stops the network is its gain over the density, and a density that
    has seen these rows only makes that gain harder.
    """
    return dataset.space.to_model(torch.cat((dataset.train, dataset.valid))[:DENSITY])


def build_model(
    config: FitConfig, dataset: data.Dataset, seed: int | None = None
) -> DiffusionModel:
    """The model of a configuration, with fresh weights drawn from the seed (default: its own)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(config.seed if seed is None else seed, "weights", 0))
        network = build(config.network)
    model = DiffusionModel(
        config.process.build(), network, dataset.space, config.prediction, config.fitted_variance
    )
    if isinstance(network, RBF):
        network.place(dataset.space.to_model(dataset.train[:PLACING]))
    if isinstance(network, Corrected):
        base = network.config.base
        rate = base.base_rate if isinstance(base, BernoulliMixtureConfig) else None
        start = config.base
        choice = densities.Choice(base.components // start.starts, start.starts, start.shrunk)
        network.place(densities.fit(known(dataset), choice, rate))
    return model
