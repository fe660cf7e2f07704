"""/loglik with `known`: the bound on log p(the other elements | these)."""

from typing import Any

import httpx
import numpy as np
import pytest
import torch

from diffusion.likelihood.bound import bound, null_log_prob
from diffusion.model import DiffusionModel
from diffusion.networks import GaussianMixture
from tests.service.http.caller import ask, assert_problem
from tests.service.http.conftest import SCALE, SHIFT

pytestmark = pytest.mark.anyio
DATA = [[1.5, -2.0], [0.5, -3.0], [2.0, -1.0]]
KNOWN = [[1, 0], [0, 1], [0, 0]]
MIXTURE: dict[str, Any] = {"model": "gaussian-mixture", "data": DATA, "seed": 7}


async def test_it_is_the_librarys(client: httpx.AsyncClient, mixture: DiffusionModel) -> None:
    answer = await ask(client, "/loglik", **MIXTURE, known=KNOWN)
    x_0, known = mixture.space.to_model(torch.tensor(DATA)), torch.tensor(KNOWN).bool()
    seen = mixture.process.saw(x_0, known, torch.zeros_like(x_0)).to_network()
    alone = bound(mixture, x_0, seed=7, convention="density", observation=seen)
    null = null_log_prob(mixture, x_0, "density", seen)
    for i, found in enumerate(answer["results"]):
        assert found["bound"] == pytest.approx(float(alone.bound[i]), abs=1e-3)
        assert found["parts"]["prior"] == pytest.approx(float(alone.prior[i]), abs=1e-4)
        assert found["relative_to_prior"] == pytest.approx(float((alone.bound - null)[i]), abs=1e-3)
        assert found["elements"] == 2 - sum(KNOWN[i])
        assert found["bits_per_dim"] == pytest.approx(-found["bits"] / found["elements"])
        assert found["typicality"] is None
    assert "whole" in answer["uncompared"]
    free = await ask(client, "/loglik", **MIXTURE)
    assert free["results"][2]["bound"] == pytest.approx(answer["results"][2]["bound"], abs=1e-3)


async def test_it_is_near_the_exact_conditional(
    client: httpx.AsyncClient, mixture: DiffusionModel
) -> None:
    """Below it in expectation, by a gap that 100 steps leave small: 40 times the same example."""
    data, n = [DATA[0]] * 40, 40
    answer = await ask(client, "/loglik", **MIXTURE | {"data": data}, known=[1, 0])
    bounds = torch.tensor([each["bound"] for each in answer["results"]])
    network = mixture.network
    assert isinstance(network, GaussianMixture)
    z = (torch.tensor(DATA[0]) - torch.tensor(SHIFT)) / SCALE
    exact, _ = network.posterior(torch.eye(2)[:1], z[:1], torch.tensor([1e-9]))
    means, weights = exact.means[:, 1], exact.weights
    deviations = exact.covariances[:, 1, 1].sqrt()
    each = torch.distributions.Normal(means, deviations).log_prob(z[1].double())
    wanted = float((weights.log() + each).logsumexp(0)) - np.log(SCALE)
    off = float(bounds.mean()) - wanted
    error = float(bounds.std()) / n**0.5
    assert -0.3 - 4 * error < off < 4 * error


@pytest.mark.parametrize(
    ("model", "fields", "location"),
    [
        ("grey", {"data": [np.zeros((6, 8)).tolist()], "known": np.eye(6, 8).tolist()}, "known"),
        ("gaussian-mixture", {"data": DATA, "known": [1, 1]}, "known"),
        ("gaussian-mixture", {"data": DATA, "known": [1, 0, 0]}, "known"),
        ("gaussian-mixture", {"data": DATA, "known": [1, 0], "trajectories": 2}, "trajectories"),
        ("gaussian-mixture", {"data": DATA, "known": [1, 0], "target_error": 2}, "target_error"),
        ("gaussian-mixture", {"data": DATA, "known": [1, 0], "convention": "paper"}, "convention"),
    ],
)
async def test_what_cannot_be_bounded_is_refused(
    client: httpx.AsyncClient, model: str, fields: dict[str, Any], location: str
) -> None:
    response = await client.post("/loglik", json={"model": model} | fields)
    assert assert_problem(response, 422, "invalid-request")["location"] == location
