"""Build the model a fit starts from: fresh weights, or those of an artefact.

A network that corrects a simple density gets one fitted to `train` alone, so that both are judged
on rows that neither has seen.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.checkpoint import Provenance, load
from diffusion.model import DiffusionModel
from diffusion.networks import RBF, Corrected, TableMixture, TableNetwork, build
from training import densities
from training.config import ConfigError, FitConfig, find_artefact, path_of
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
    if isinstance(network, RBF):
        network.place(dataset.space.to_model(dataset.train[:PLACING]))
    _place(network, densities.base(config, dataset.space, dataset.train))
    return model


def refit_base(network: nn.Module, config: FitConfig, dataset: Dataset) -> None:
    """Refit the simple density to `train` and `valid`, for a network that corrects nothing."""
    density = densities.base(config, dataset.space, densities.known(dataset))
    if density is not None:
        _place(network, density.to(next(network.buffers()).device))


def _place(network: nn.Module, density: densities.Density | None) -> None:
    """Set the density that a network corrects, if it corrects one."""
    if isinstance(density, TableMixture):
        assert isinstance(network, TableNetwork)  # as the configuration says
        network.place(density)
    elif density is not None:
        assert isinstance(network, Corrected)  # likewise
        network.place(density)


def take_weights(network: nn.Module, config: FitConfig) -> Provenance | None:
    """Load the weights of `config.initial` into a network.

    Network and prediction must match the artefact's, except that the network may also be told what
    was seen: the weights of these inputs, which come last, start from zero, so that the network
    answers as before, at x_t and what was seen as one (`Output.fused`). The process may differ if
    the network's clock is log SNR, which means the same noise level under every schedule.

    Returns:
        The artefact's provenance if the network is told what the artefact's is not; else None.

    Raises:
        ConfigError: the artefact is missing, or its network, prediction or clock differs.
    """
    name = str(config.initial)
    path = find_artefact(name, MODELS)
    if not path.is_file():
        made = f"make it first (`python -m training fit {name}`, then `export {name}`)"
        fix = made if path_of(name).is_file() else f"name a folder of {MODELS}/ or a .safetensors"
        raise ConfigError(f"initial = {name!r}: there is no {path}; {fix}")
    model, found = load(path)
    extended = config.network != found.network and config.network == found.network.conditioned()
    if config.network != found.network and not extended:
        there, here = found.network.model_dump(), config.network.model_dump()
        raise ConfigError(
            f"initial = {name!r} has another network ({_difference(there, here)}): weights fit "
            "only where they are the same, except that conditional = true may be added"
        )
    if config.prediction != found.prediction:
        raise ConfigError(
            f"initial = {name!r} has prediction {found.prediction}, this configuration "
            f"{config.prediction}: weights fit only where they are the same"
        )
    clock = getattr(config.network, "clock", "step")
    if clock != "log_snr" and config.process != found.process:
        raise ConfigError(
            f"initial = {name!r} was fitted under process {found.process}, and its network reads "
            f"the step's number, which means other noise under {config.process}: keep the process"
        )
    taken, own = model.network.state_dict(), network.state_dict()
    odd = [key for key in own.keys() | taken.keys() if not _widens(taken.get(key), own.get(key))]
    if odd:
        raise ConfigError(
            f"initial = {name!r}: what a network is told must be further columns of weights that "
            f"it has untold, and {', '.join(sorted(odd))} are not: fit it from fresh weights"
        )
    network.load_state_dict({key: _widened(taken[key], to) for key, to in own.items()})
    return found.training if extended else None


def _widens(weight: Tensor | None, to: Tensor | None) -> bool:
    """Whether a tensor is as another, but for further inputs, its second axis."""
    if weight is None or to is None or weight.ndim != to.ndim:
        return False
    axes = [axis for axis in range(to.ndim) if weight.shape[axis] != to.shape[axis]]
    return not axes or (axes == [1] and weight.shape[1] < to.shape[1])


def _widened(weight: Tensor, to: Tensor) -> Tensor:
    """Append zeros for the further inputs."""
    if weight.shape == to.shape:
        return weight
    missing = to.shape[1] - weight.shape[1]
    return torch.cat((weight, weight.new_zeros(len(to), missing, *to.shape[2:])), 1)


def _difference(there: Mapping[str, Any], here: Mapping[str, Any], of: str = "") -> str:
    """Say which settings differ."""
    found = []
    for key in dict.fromkeys((*there, *here)):
        a, b = there.get(key), here.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found.append(_difference(a, b, f"{of}{key}."))
        elif a != b:
            found.append(f"{of}{key}: {a} there, {b} here")
    return "; ".join(filter(None, found))
