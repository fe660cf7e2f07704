"""Observations of models that are known exactly, with their posteriors: bits, one Gaussian."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture, Network
from diffusion.observation import Observation
from diffusion.process import BinomialProcess, GaussianProcess
from diffusion.schedule import InverseTimeSchedule, LogSnrSchedule
from diffusion.space import DataSpace


@dataclass(frozen=True)
class Bits:
    """A model of bit patterns, what was seen of one example, and P(pattern | y)."""

    model: DiffusionModel
    observation: Observation
    patterns: Tensor
    posterior: Tensor

    def distance(self, samples: Tensor) -> float:
        """Total variation from the samples [n, D] to the posterior."""
        which = (samples[:, None] == self.patterns).all(2).double()
        elsewhere = 1 - which.sum(1).mean()
        return 0.5 * float((which.mean(0) - self.posterior).abs().sum() + elsewhere)


def real_model(network: Network, features: int, T: int = 1000) -> DiffusionModel:
    """A mixture under a process that begins and ends well beyond its widths."""
    process = GaussianProcess(LogSnrSchedule(first=10.0, last=-9.0).beta(T))
    space = DataSpace(kind="vector", shape=(features,))
    return DiffusionModel(process, network, space, "x_0", "moment").eval()


def correlated(features: int = 8, correlation: float = 0.9) -> GaussianMixture:
    """One Gaussian, unit variances, correlations falling off as powers of the distance."""
    place = torch.arange(features)
    covariance = correlation ** (place[:, None] - place).abs().double()
    zero = torch.zeros(1, features, dtype=torch.float64)
    return GaussianMixture.from_values(torch.ones(1), zero, covariance[None])


def bits(weights: Tensor, patterns: Tensor, base_rate: float, y: Tensor, known: Tensor) -> Bits:
    """Bits y [D], seen exactly where known."""
    network = BitPatterns.from_values(weights, patterns, base_rate)
    process = BinomialProcess(InverseTimeSchedule().beta(2000), base_rate)
    space = DataSpace(kind="bits", shape=tuple(y.shape))
    model = DiffusionModel(process, network, space, "x_0", None).eval()
    agrees = ((patterns == y) | ~known).all(1)
    posterior = network.weights * agrees
    seen = Observation.of_bits(y[None], known[None])
    return Bits(model, seen, patterns, posterior / posterior.sum())


def heartbeat(phase: int) -> Bits:
    """The 2015 paper's bits, a one in every fifth of 20, with the first four seen."""
    place = torch.arange(20)
    patterns = torch.stack([(place % 5 == k).float() for k in range(5)])
    return bits(torch.full((5,), 0.2), patterns, 0.2, patterns[phase], place < 4)


def markov_chain(length: int = 8, stay: float = 0.8) -> Bits:
    """Fair bits that keep their value with probability `stay`; the two ends and two within seen."""
    patterns = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * length)
    same = (patterns.diff(dim=1) == 0).double()
    weights = 0.5 * (same * stay + (1 - same) * (1 - stay)).prod(1)
    y, known = torch.zeros(length), torch.zeros(length, dtype=torch.bool)
    known[[0, 3, 4, length - 1]] = True
    y[[3, length - 1]] = 1.0
    return bits(weights, patterns, 0.5, y, known)


#: The observations of bits that `benchmarks.posterior` holds against enumeration.
CASES: dict[str, Callable[[], Bits]] = {
    "heartbeat, 1 0 0 0 seen": lambda: heartbeat(0),
    "heartbeat, 0 0 0 0 seen": lambda: heartbeat(4),
    "Markov chain of 8 bits, 4 seen": markov_chain,
}
