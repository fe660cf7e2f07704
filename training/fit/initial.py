"""Build the model a fit starts from: fresh weights, or those of an artefact.

A network that corrects a simple density gets one fitted to `train` alone, so that both are judged
on rows that neither has seen.
"""

from pathlib import Path

import torch
from torch import nn

from diffusion.checkpoint import load
from diffusion.model import DiffusionModel
from diffusion.networks import RBF, Corrected, build
from training import densities
from training.config import ConfigError, FitConfig, find_artefact
from training.data.dataset import Dataset, stream_seed

MODELS = Path("models")
PLACING = 2000
"""Training rows used to place basis functions."""


def build_model(config: FitConfig, dataset: Dataset, seed: int | None = None) -> DiffusionModel:
    """Build a configuration's model with weights drawn from `seed` (default: its own)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(config.seed if seed is None else seed, "weights", 0))
        network = build(config.network)
    model = DiffusionModel(
        config.process.build(), network, dataset.space, config.prediction, config.fitted_variance
    )
    train = dataset.space.to_model(dataset.train[: densities.MOST])
    if isinstance(network, RBF):
        network.place(train[:PLACING])
    density = densities.base(config, train)
    if density is not None:
        assert isinstance(network, Corrected)  # as the configuration says
        network.place(density)
    return model


def refit_base(network: nn.Module, config: FitConfig, dataset: Dataset) -> None:
    """Refit the simple density to `train` and `valid`, for a network that corrects nothing."""
    density = densities.base(config, densities.known(dataset))
    if density is not None:
        assert isinstance(network, Corrected)  # as the configuration says
        network.place(density.to(next(network.buffers()).device))


def take_weights(network: nn.Module, config: FitConfig) -> None:
    """Load the weights of `config.initial` into a network.

    Network and prediction must match the artefact's. The process may differ if the network's clock
    is log SNR, which means the same noise level under every schedule.

    Raises:
        ConfigError: the artefact is missing, or its network, prediction or clock differs.
    """
    name = str(config.initial)
    path = find_artefact(name, MODELS)
    if not path.is_file():
        raise ConfigError(
            f"initial = {name!r}: there is no {path}; name a folder of {MODELS}/ or a .safetensors"
        )
    model, found = load(path)
    for what in ("network", "prediction"):
        came, wanted = getattr(config, what), getattr(found, what)
        if came != wanted:
            raise ConfigError(
                f"initial = {name!r} has {what} {wanted}, this configuration {came}: "
                "weights fit only where they are the same"
            )
    clock = getattr(config.network, "clock", "step")
    if clock != "log_snr" and config.process != found.process:
        raise ConfigError(
            f"initial = {name!r} was fitted under process {found.process}, and its network reads "
            f"the step's number, which means other noise under {config.process}: keep the process"
        )
    network.load_state_dict(model.network.state_dict())
