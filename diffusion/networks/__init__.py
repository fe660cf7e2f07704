"""Networks: one file each, one configuration each, and `build`, which makes one from the other.

    forward(x_t [B, *event], time [B]) -> [B, outputs * event[0], *event[1:]]

`clock` says what `time` is: t - 1 ("step"), or log(alpha_bar / (1 - alpha_bar)) ("log_snr").
"""

from typing import Annotated

from pydantic import Field

from diffusion.networks.base import Network
from diffusion.networks.bit_patterns import BitPatterns, BitPatternsConfig
from diffusion.networks.dense import MLP, RBF, MLPConfig, RBFConfig
from diffusion.networks.gaussian_mixture import GaussianMixture, GaussianMixtureConfig
from diffusion.networks.multiscale import Multiscale, MultiscaleConfig
from diffusion.networks.unet import UNet, UNetConfig

#: A network's configuration, told apart by `kind`.
NetworkConfig = Annotated[
    MLPConfig
    | RBFConfig
    | MultiscaleConfig
    | UNetConfig
    | GaussianMixtureConfig
    | BitPatternsConfig,
    Field(discriminator="kind"),
]

__all__ = [
    "MLP",
    "RBF",
    "BitPatterns",
    "BitPatternsConfig",
    "GaussianMixture",
    "GaussianMixtureConfig",
    "MLPConfig",
    "Multiscale",
    "MultiscaleConfig",
    "Network",
    "NetworkConfig",
    "RBFConfig",
    "UNet",
    "UNetConfig",
    "build",
]


def build(config: NetworkConfig) -> Network:
    """Build the network that a configuration describes, with fresh weights.

    Args:
        config: one of the six configurations.
    """
    match config:
        case MLPConfig():
            return MLP(config)
        case RBFConfig():
            return RBF(config)
        case MultiscaleConfig():
            return Multiscale(config)
        case UNetConfig():
            return UNet(config)
        case GaussianMixtureConfig():
            return GaussianMixture(config)
        case BitPatternsConfig():
            return BitPatterns(config)
