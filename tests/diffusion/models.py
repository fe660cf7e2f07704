"""Models whose networks are oracles."""

from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.process import BinomialProcess, GaussianProcess
from diffusion.schedule import InverseTimeSchedule, LogSnrSchedule
from diffusion.space import DataSpace


def gaussian(network: GaussianMixture, T: int = 20) -> DiffusionModel:
    process = GaussianProcess(LogSnrSchedule(first=8.0, last=-12.0).beta(T))
    space = DataSpace(kind="vector", shape=(network.config.features,))
    return DiffusionModel(process, network, space, "x_0", "moment").eval()


def binomial(network: BitPatterns, T: int = 20) -> DiffusionModel:
    process = BinomialProcess(InverseTimeSchedule().beta(T), network.config.base_rate)
    space = DataSpace(kind="bits", shape=(network.config.features,))
    return DiffusionModel(process, network, space, "x_0", None).eval()
