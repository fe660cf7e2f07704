"""Models whose networks are oracles."""

import torch
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.process import BinomialProcess, GaussianProcess, VarianceKind
from diffusion.schedule import InverseTimeSchedule, LogSnrSchedule
from diffusion.space import DataSpace


def given_noisy(mixture: GaussianMixture, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """E and Cov of x_0 given y = x_0 + sigma n [B, D], model units, float64."""
    D = y.shape[1]
    eye, var = torch.eye(D).double(), torch.full((D,), sigma**2).double()
    found = [mixture.posterior(eye, row, var)[0] for row in y.double()]
    return torch.stack([x.mean() for x in found]), torch.stack([x.covariance() for x in found])


def gaussian(
    network: GaussianMixture, T: int = 20, variance: VarianceKind = "moment", first: float = 8.0
) -> DiffusionModel:
    process = GaussianProcess(LogSnrSchedule(first=first, last=-12.0).beta(T))
    space = DataSpace(kind="vector", shape=(network.config.features,))
    return DiffusionModel(process, network, space, "x_0", variance).eval()


def binomial(network: BitPatterns, T: int = 20) -> DiffusionModel:
    process = BinomialProcess(InverseTimeSchedule().beta(T), network.config.base_rate)
    space = DataSpace(kind="bits", shape=(network.config.features,))
    return DiffusionModel(process, network, space, "x_0", None).eval()
