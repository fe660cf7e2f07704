"""Models whose bounds are known, and their expectation without sampling.

Terms are sums over elements, so a term's expectation over its noise is a Gauss and Hermite rule
with the same node in every element. Where a term is quadratic in the noise, as it is for one
Gaussian, two nodes give its expectation to the last digit: no sampling error.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffusion.likelihood.bound import (
    evaluate,
    prior_part,
    terms,
)
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.noise import Noise, counter_noise
from diffusion.process import BinomialProcess, GaussianProcess
from diffusion.schedule import (
    InverseTimeSchedule,
    LogSnrSchedule,
    Schedule,
)
from diffusion.space import Convention, DataSpace

CONVENTIONS: list[Convention] = ["discretised", "density", "paper"]
EVERY_LEVEL = torch.arange(256, dtype=torch.float64) / 127.5 - 1
LEVELS = DataSpace(kind="vector", shape=(1,), shift=127.5, scale=127.5, levels=256)


def gaussian(
    network: GaussianMixture,
    T: int,
    schedule: Schedule | None = None,
    space: DataSpace | None = None,
) -> DiffusionModel:
    schedule = schedule or LogSnrSchedule(first=8.0, last=-12.0)
    space = space or DataSpace(kind="vector", shape=(network.config.features,))
    process = GaussianProcess(schedule.beta(T))
    return DiffusionModel(process, network, space, "x_0", "moment").eval()


def binomial(network: BitPatterns, T: int, schedule: Schedule | None = None) -> DiffusionModel:
    beta = (schedule or InverseTimeSchedule()).beta(T)
    process = BinomialProcess(beta, network.config.base_rate)
    space = DataSpace(kind="bits", shape=(network.config.features,))
    return DiffusionModel(process, network, space, "x_0", None).eval()


def sized(features: int, var: float, mean: float = 0.0) -> GaussianMixture:
    """One isotropic Gaussian."""
    return GaussianMixture.from_values(
        torch.ones(1), torch.full((1, features), mean), var * torch.eye(features)[None].double()
    )


def drawn(network: GaussianMixture, count: int) -> Tensor:
    return network.sample(counter_noise(1, torch.arange(count), 0)).double()


class Constant(Noise):
    """The same number everywhere."""

    def __init__(self, value: float, rows: int) -> None:
        self.value, self.rows = value, rows

    def normal(self, event: Sequence[int]) -> Tensor:
        return torch.full((self.rows, *event), self.value, dtype=torch.float64)

    def uniform(self, event: Sequence[int]) -> Tensor:
        raise NotImplementedError


def expected(model: DiffusionModel, x_0: Tensor, convention: Convention, nodes: int = 2) -> Tensor:
    """The bound of each example [N, D], float64, its expectation over noise by quadrature."""
    T, N = model.T, len(x_0)
    t, x = torch.arange(1, T + 1).repeat(N), x_0.repeat_interleave(T, 0)
    total = prior_part(model, x_0, convention)
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    for point, weight in zip(points, weights / weights.sum(), strict=True):
        values = terms(model, x, t, Constant(float(point), N * T), convention)
        total = total + float(weight) * values.view(N, T).sum(1)
    return total


def whole_by_terms(model: DiffusionModel, x_0: Tensor, convention: Convention) -> Tensor:
    """The same from `evaluate`, with x_t enumerated."""
    states = torch.tensor(
        list(itertools.product((0.0, 1.0), repeat=model.space.dims)), dtype=torch.float64
    )
    x = x_0.expand_as(states)
    total = prior_part(model, x_0[None], convention)[0]
    for step in range(1, model.T + 1):
        t = torch.full((len(states),), step)
        weights = model.process.marginal(x, t).log_prob(states).exp()
        values = evaluate(model, model.predict(states, t), x, states, t, convention)
        total = total + weights @ values
    return total


def few_bits(base_rate: float) -> BitPatterns:
    patterns = torch.tensor([[0, 0, 1], [1, 0, 1], [1, 1, 0]])
    return BitPatterns.from_values(torch.tensor([0.5, 0.3, 0.2]), patterns, base_rate)
