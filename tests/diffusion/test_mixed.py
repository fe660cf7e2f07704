"""Rows of a real and a category: one clock, one bound, one chain and one posterior, all exact."""

import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from diffusion.categorical import of_codes
from diffusion.distributions import Normal
from diffusion.likelihood.bound import evaluate, prior_part
from diffusion.mixed import Mixed
from diffusion.model import DiffusionModel
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from diffusion.process.mixed import Categories, MixedProcess, Reals
from diffusion.samplers import Ancestral, sample
from diffusion.schedule import LogSnrSchedule
from diffusion.space import DataSpace

W = torch.tensor([0.3, 0.7], dtype=torch.float64)
M = torch.tensor([-1.2, 0.8], dtype=torch.float64)
V = torch.tensor([0.2, 0.1], dtype=torch.float64)
P = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], dtype=torch.float64)
PI = (0.3, 0.3, 0.4)


class Oracle(nn.Module):
    """E[x_0 | x_t], its variance and P(category | x_t) of a mixture of two components."""

    clock: ClassVar[str] = "log_snr"
    conditional = False

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        x, c = x_t[:, :1].double(), x_t[:, 1:].double()
        signal = time.double().sigmoid()[:, None]
        noise, pi = 1 - signal, torch.tensor(PI).double()
        total = signal * V + noise
        of_x = -0.5 * ((x - signal.sqrt() * M).square() / total + total.log())
        reached = signal[:, None] * torch.eye(3) + noise[:, None] * pi  # q(c_t | c_0), [B, 3, 3]
        of_c_0 = torch.einsum("bij,bj->bi", reached, c)
        of_c = of_c_0 @ P.mT
        r = (W.log() + of_x + of_c.log()).softmax(1)
        means = M + signal.sqrt() * V / total * (x - signal.sqrt() * M)
        mean = (r * means).sum(1, keepdim=True)
        var = (r * (V * noise / total + (means - mean).square())).sum(1, keepdim=True)
        p = torch.einsum("bk,kj,bj->bj", r / of_c, P, of_c_0)
        unread = torch.zeros(len(x), 3).double()
        return torch.cat((mean, p.log(), (var / noise).log(), unread), 1).float()


@pytest.fixture
def model() -> DiffusionModel:
    beta = LogSnrSchedule(first=9.0, last=-9.0).beta(300)
    process = MixedProcess(beta, (Reals(width=1), Categories(base=(PI,))))
    space = DataSpace(kind="vector", shape=(4,))
    return DiffusionModel(process, Oracle(), space, "x_0", "moment").eval()


def exact_log_prob(x_0: Tensor) -> Tensor:
    x, c = x_0[:, :1].double(), x_0[:, 1:].double()
    of_x = -0.5 * ((x - M).square() / V + (2 * math.pi * V).log())
    return (W.log() + of_x + (c @ P.mT).log()).logsumexp(1)


def test_chain_draws_the_mixture(model: DiffusionModel) -> None:
    count = 4000
    x = sample(model, count, seed=1, sampler=Ancestral(steps=100)).double()
    assert_close(x[:, 1:].sum(1), torch.ones(count).double())
    p = W @ P
    error = (p * (1 - p) / count).sqrt()
    assert bool(((x[:, 1:].mean(0) - p).abs() < 4 * error).all())
    for j in range(3):
        of_j = x[x[:, 1 + j] > 0.5, 0]
        weight = W * P[:, j] / p[j]
        mean = (weight * M).sum()
        std = ((weight * (V + M.square())).sum() - mean.square()).sqrt()
        assert abs(of_j.mean() - mean) < 4 * std / len(of_j) ** 0.5
        assert abs(of_j.std() / std - 1) < 4 / len(of_j) ** 0.5


def test_bound_is_the_log_density(model: DiffusionModel) -> None:
    """Averaged over draws of every term, K is below log p by a chain's coarseness at most."""
    x_0 = torch.tensor([[-1.0, 1, 0, 0], [0.9, 0, 0, 1], [0.2, 0, 1, 0]])
    draws, T = 40, model.T
    total = prior_part(model, x_0, "density")
    spread = torch.zeros(3).double()
    for t in range(1, T + 1):
        rows = torch.arange(3 * draws)
        many, at = x_0.repeat_interleave(draws, 0), torch.full((3 * draws,), t)
        x_t = model.process.marginal(many, at).sample(counter_noise(2, rows, t))
        found = evaluate(model, model.predict(x_t, at), many, x_t, at, "density").double()
        each = found.view(3, draws)
        total, spread = total + each.mean(1), spread + each.var(1) / draws
    gap = exact_log_prob(x_0) - total
    assert bool((gap > -4 * spread.sqrt()).all())
    assert bool((gap < 0.05 + 4 * spread.sqrt()).all())


def test_posterior_of_a_category_given_the_real(model: DiffusionModel) -> None:
    """The product with a noisy observation of both parts, against Bayes on the x_0 kernel."""
    seen = Mixed(
        (
            Normal(torch.tensor([[0.5]]), torch.tensor([[0.3]])),
            of_codes(
                model.process.prior((4,), 1).parts[1].blocks,
                torch.tensor([[2]]),
                torch.tensor([[True]]),
                0.2,
            ),  # type: ignore[attr-defined]
        )
    )
    x_t = torch.tensor([[0.4, 0, 1, 0]])
    kernel = model.predict(x_t, torch.tensor([100])).kernel(torch.tensor([0]))
    product, log_z = Observation(seen).multiply(kernel)
    assert isinstance(kernel, Mixed)
    parts = [mine.observe(theirs) for mine, theirs in zip(kernel.parts, seen.parts, strict=True)]
    assert_close(log_z, parts[0][1] + parts[1][1])
    assert_close(product.mean, torch.cat([part.mean for part, _ in parts], 1))  # type: ignore[union-attr]
    assert Observation(seen).known.all()


def test_noise_of_parts_is_independent() -> None:
    """Elements next to each other use words of their own, whatever their kinds."""
    kinds = torch.tensor([False, True, False, True, True])
    found = counter_noise(5, torch.arange(20_000), 0).mixed(kinds)
    uniform = found[:, kinds]
    assert bool(((uniform > 0) & (uniform < 1)).all())
    correlation = torch.corrcoef(found.mT)
    off = correlation - torch.eye(5)
    assert float(off.abs().max()) < 4.5 / 20_000**0.5
