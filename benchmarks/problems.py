"""Exactly known models with observations and posteriors: bits, and one Gaussian."""

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
    """A model of bit patterns, an observation of one example, and P(pattern | y)."""

    model: DiffusionModel
    observation: Observation
    patterns: Tensor
    posterior: Tensor

    def distance(self, samples: Tensor) -> float:
        """Return the total variation distance from samples [n, D] to the posterior."""
        which = (samples[:, None] == self.patterns).all(2).double()
        elsewhere = 1 - which.sum(1).mean()
        return 0.5 * float((which.mean(0) - self.posterior).abs().sum() + elsewhere)


def real_model(network: Network, features: int, T: int = 1000) -> DiffusionModel:
    """Build a mixture's model, with noise levels from far below its widths to far above."""
    process = GaussianProcess(LogSnrSchedule(first=10.0, last=-9.0).beta(T))
    space = DataSpace(kind="vector", shape=(features,))
    return DiffusionModel(process, network, space, "x_0", "moment").eval()


def correlated(features: int = 8, correlation: float = 0.9) -> GaussianMixture:
    """Build a Gaussian of unit variances with correlations that are powers of the distance."""
    place = torch.arange(features)
    covariance = correlation ** (place[:, None] - place).abs().double()
    zero = torch.zeros(1, features, dtype=torch.float64)
    return GaussianMixture.from_values(torch.ones(1), zero, covariance[None])


def bits(weights: Tensor, patterns: Tensor, base_rate: float, y: Tensor, known: Tensor) -> Bits:
    """Build a problem with bits y [D] observed exactly where `known`."""
    network = BitPatterns.from_values(weights, patterns, base_rate)
    process = BinomialProcess(InverseTimeSchedule().beta(2000), base_rate)
    space = DataSpace(kind="bits", shape=tuple(y.shape))
    model = DiffusionModel(process, network, space, "x_0", None).eval()
    agrees = ((patterns == y) | ~known).all(1)
    posterior = network.weights * agrees
    seen = Observation.of_bits(y[None], known[None])
    return Bits(model, seen, patterns, posterior / posterior.sum())


def heartbeat(phase: int) -> Bits:
    """Build the 2015 paper's heartbeat: every fifth of 20 bits is 1; the first four observed."""
    place = torch.arange(20)
    patterns = torch.stack([(place % 5 == k).float() for k in range(5)])
    return bits(torch.full((5,), 0.2), patterns, 0.2, patterns[phase], place < 4)


def markov_chain(length: int = 8, stay: float = 0.8) -> Bits:
    """Build a chain whose bits repeat with probability `stay`; both ends and two more observed."""
    patterns = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * length)
    same = (patterns.diff(dim=1) == 0).double()
    weights = 0.5 * (same * stay + (1 - same) * (1 - stay)).prod(1)
    y, known = torch.zeros(length), torch.zeros(length, dtype=torch.bool)
    known[[0, 3, 4, length - 1]] = True
    y[[3, length - 1]] = 1.0
    return bits(weights, patterns, 0.5, y, known)


#: The observations of bits that `benchmarks.posterior` compares with enumeration.
CASES: dict[str, Callable[[], Bits]] = {
    "heartbeat, 1 0 0 0 seen": lambda: heartbeat(0),
    "heartbeat, 0 0 0 0 seen": lambda: heartbeat(4),
    "Markov chain of 8 bits, 4 seen": markov_chain,
}
