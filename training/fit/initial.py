"""Where a fit begins that goes on from an artefact's weights, to other data or another objective.

The network and what its output means have to be the artefact's. Its process may be another one
where the network's clock is log SNR, which means the same noise under every schedule.
"""

from pathlib import Path

from torch import nn

from diffusion.checkpoint import load
from training.artefacts import find
from training.config import ConfigError, FitConfig

MODELS = Path("models")


def take_weights(network: nn.Module, config: FitConfig) -> None:
    """Put the weights of `config.initial` into a network.

    Raises:
        ConfigError: there is no such artefact, or it is of another network, prediction or clock.
    """
    name = str(config.initial)
    path = find(name, MODELS)
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
