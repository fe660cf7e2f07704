"""The networks, one per file, each built by `build` from its own configuration.

    forward(x_t [B, *event], time [B]) -> [B, outputs * event[0], *event[1:]]

`clock` says what `time` is: t - 1 ("step"), or log(alpha_bar / (1 - alpha_bar)) ("log_snr").
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from diffusion.networks.base import SEEN, Network, with_seen
from diffusion.networks.bernoulli_mixture import BernoulliMixture, BernoulliMixtureConfig
from diffusion.networks.bit_patterns import BitPatterns, BitPatternsConfig
from diffusion.networks.corrected import Corrected, CorrectedConfig
from diffusion.networks.dense import MLP, RBF, MLPConfig, RBFConfig
from diffusion.networks.gaussian_mixture import GaussianMixture, GaussianMixtureConfig
from diffusion.networks.installed import Installed, InstalledConfig
from diffusion.networks.multiscale import Multiscale, MultiscaleConfig
from diffusion.networks.table import TableNetwork, TableNetworkConfig
from diffusion.networks.table_mixture import TableMixture, TableMixtureConfig
from diffusion.networks.unet import UNet, UNetConfig

_KINDS = (
    "mlp",
    "rbf",
    "corrected",
    "multiscale",
    "unet",
    "gaussian-mixture",
    "bernoulli-mixture",
    "bit-patterns",
    "table",
    "table-mixture",
)


def _whose(value: Any) -> str | None:  # noqa: ANN401  (whatever a document holds)
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return kind if kind is None or kind in _KINDS else "installed"


#: A network's configuration, selected by `kind`: one of ours, or an installed package's.
NetworkConfig = Annotated[
    Annotated[MLPConfig, Tag("mlp")]
    | Annotated[RBFConfig, Tag("rbf")]
    | Annotated[CorrectedConfig, Tag("corrected")]
    | Annotated[MultiscaleConfig, Tag("multiscale")]
    | Annotated[UNetConfig, Tag("unet")]
    | Annotated[GaussianMixtureConfig, Tag("gaussian-mixture")]
    | Annotated[BernoulliMixtureConfig, Tag("bernoulli-mixture")]
    | Annotated[BitPatternsConfig, Tag("bit-patterns")]
    | Annotated[TableNetworkConfig, Tag("table")]
    | Annotated[TableMixtureConfig, Tag("table-mixture")]
    | Annotated[Installed, Tag("installed")],
    Discriminator(_whose),
]

__all__ = [
    "MLP",
    "RBF",
    "SEEN",
    "BernoulliMixture",
    "BernoulliMixtureConfig",
    "BitPatterns",
    "BitPatternsConfig",
    "Corrected",
    "CorrectedConfig",
    "GaussianMixture",
    "GaussianMixtureConfig",
    "InstalledConfig",
    "MLPConfig",
    "Multiscale",
    "MultiscaleConfig",
    "Network",
    "NetworkConfig",
    "RBFConfig",
    "TableMixture",
    "TableMixtureConfig",
    "TableNetwork",
    "TableNetworkConfig",
    "UNet",
    "UNetConfig",
    "build",
    "with_seen",
]


def build(config: NetworkConfig) -> Network:
    """Build the network that a configuration describes, with fresh weights.

    Args:
        config: one of our configurations, or an installed package's.
    """
    match config:
        case MLPConfig():
            return MLP(config)
        case RBFConfig():
            return RBF(config)
        case CorrectedConfig():
            return Corrected(config)
        case MultiscaleConfig():
            return Multiscale(config)
        case UNetConfig():
            return UNet(config)
        case GaussianMixtureConfig():
            return GaussianMixture(config)
        case BernoulliMixtureConfig():
            return BernoulliMixture(config)
        case BitPatternsConfig():
            return BitPatterns(config)
        case TableNetworkConfig():
            return TableNetwork(config)
        case TableMixtureConfig():
            return TableMixture(config)
        case InstalledConfig():
            return config.build()
