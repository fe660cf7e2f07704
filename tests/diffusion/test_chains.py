"""Chains that leave steps out: their bound is that of the process which has no others."""

import pytest
import torch
from torch.testing import assert_close

from diffusion.distributions import Distribution
from diffusion.likelihood.bound import bound, closed_last, evaluate
from diffusion.likelihood.estimator import Choice
from diffusion.model import DiffusionModel
from diffusion.networks import GaussianMixture
from diffusion.noise import counter_noise
from diffusion.process import BinomialProcess, GaussianProcess, Process
from diffusion.schedule import InverseTimeSchedule
from diffusion.space import Convention
from tests.diffusion.bounds import binomial, drawn, few_bits, gaussian, sized

PATH = torch.tensor([0, 2, 3, 7, 12])
T = 12


def coarse(model: DiffusionModel) -> DiffusionModel:
    """The model whose process has the path's steps and no others."""
    signal = model.process.alpha_bar[PATH]
    beta = torch.cat((torch.zeros(1, dtype=torch.float64), 1 - signal[1:] / signal[:-1]))
    process: Process = GaussianProcess(beta)
    if isinstance(model.process, BinomialProcess):
        process = BinomialProcess(beta, model.process.base_rate)
    kinds = model.prediction, model.variance
    return DiffusionModel(process, model.network, model.space, *kinds).eval()


@pytest.mark.parametrize(
    ("kind", "convention"),
    [
        ("gaussian", "density"),
        ("gaussian", "paper"),
        ("binomial", "discretised"),
        ("binomial", "paper"),
    ],
)
def test_every_term_is_that_of_the_process_without_the_others(
    kind: str, convention: Convention, mixture: GaussianMixture
) -> None:
    if kind == "gaussian":
        model, x_0 = gaussian(mixture, T), drawn(mixture, 40)
    else:
        network = few_bits(0.3)
        model = binomial(network, T, InverseTimeSchedule())
        x_0 = network.sample(counter_noise(1, torch.arange(40), 0)).double()
    other = coarse(model)
    for i in range(1, len(PATH)):
        t, s = torch.full((40,), int(PATH[i])), torch.full((40,), int(PATH[i - 1]))
        short = torch.full((40,), i)
        marginal: Distribution = model.process.marginal(x_0, t)
        x_t = marginal.sample(counter_noise(0, torch.arange(40), i))
        ours = evaluate(model, model.predict(x_t, t), x_0, x_t, t, convention, s)
        theirs = evaluate(other, other.predict(x_t, short), x_0, x_t, short, convention)
        assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    ends = closed_last(model, x_0, convention, int(PATH[1])), closed_last(other, x_0, convention)
    if convention == "paper":
        assert_close(*ends)


@pytest.mark.parametrize("convention", ["density", "paper"])
def test_the_bound_of_a_chain_is_estimated_without_bias(convention: Convention) -> None:
    """Against all terms of the coarse process, over 2,000 rows: within 4 standard errors."""
    network = sized(2, 0.3, 0.4)
    model, x_0 = gaussian(network, T), drawn(network, 1).expand(2000, 2)
    found = bound(
        model,
        x_0,
        seed=0,
        convention=convention,
        choice=Choice(steps=4, spacing="even", terms=None if convention == "paper" else 6),
        batch=8192,
    ).bound
    signal = model.process.alpha_bar[torch.tensor([0, 3, 6, 9, 12])]
    beta = torch.cat((torch.zeros(1, dtype=torch.float64), 1 - signal[1:] / signal[:-1]))
    other = DiffusionModel(GaussianProcess(beta), network, model.space, "x_0", "moment").eval()
    wanted = bound(other, x_0, seed=1, convention=convention, batch=8192).bound
    error = float(((found.var() + wanted.var()) / 2000).sqrt())
    assert abs(float(found.mean() - wanted.mean())) < 4 * error
