"""Oracles whose answers are known, small enough that each call takes about a millisecond."""

import pytest
import torch

from diffusion.networks import BitPatterns, GaussianMixture


@pytest.fixture
def line() -> GaussianMixture:
    """One Gaussian with a diagonal covariance, for which a moment-matched kernel is exact."""
    variances = torch.tensor([0.5, 0.04, 0.9], dtype=torch.float64)
    means = torch.tensor([[0.3, -0.8, 1.1]], dtype=torch.float64)
    return GaussianMixture.from_values(torch.ones(1), means, variances.diag()[None])


@pytest.fixture
def mixture() -> GaussianMixture:
    """Two correlated components in the plane, well apart."""
    covariances = torch.tensor([[[0.2, 0.1], [0.1, 0.3]], [[0.3, -0.1], [-0.1, 0.1]]])
    means = torch.tensor([[1.1, -0.6], [-0.9, 0.7]])
    return GaussianMixture.from_values(
        torch.tensor([0.4, 0.6]), means.double(), covariances.double()
    )


@pytest.fixture
def heartbeat() -> BitPatterns:
    """The paper's toy data: 20 bits, a one in every fifth, at any of five phases."""
    place = torch.arange(20)
    patterns = torch.stack([(place % 5 == phase).double() for phase in range(5)])
    return BitPatterns.from_values(torch.full((5,), 0.2), patterns, 0.2)


@pytest.fixture
def one_hot() -> BitPatterns:
    """Three bits, one of them a one: each bit has the base rate for its mean, as the paper asks."""
    return BitPatterns.from_values(torch.full((3,), 1 / 3), torch.eye(3), 1 / 3)
