"""Posteriors over HTTP: the offline answers, exact ones, and what is said of what was seen."""

import math
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from diffusion.model import DiffusionModel
from diffusion.networks import GaussianMixture
from diffusion.operators import AveragePooling, Dense, LinearOperator, Mask
from diffusion.posterior import Method, Product, Repaint, Twisted, sample_posterior
from diffusion.samplers import Ancestral
from tests.service.http.caller import ask
from tests.service.http.conftest import PATTERNS, SCALE, SHIFT, WEIGHTS

pytestmark = pytest.mark.anyio
MIXTURE: dict[str, Any] = {"model": "gaussian-mixture", "seed": 7}
BITS: dict[str, Any] = {"model": "bit-patterns", "seed": 7}
LINE = {"kind": "dense", "rows": [[1.0, 0.5]]}
SIGMAS = 4.5


# ---- the offline answer ----

SEEN: list[tuple[str, dict[str, Any], LinearOperator]] = [
    (
        "gaussian-mixture",
        {"observed": [[1.2, 0.0], [0.0, -2.0]], "known": [[1, 0], [0, 1]]},
        Mask(),
    ),
    (
        "gaussian-mixture",
        {"observed": [[1.2, 0.0], [0.3, -2.0]], "noise_std": [0.3, 0.0]},
        Mask(),
    ),
    (
        "gaussian-mixture",
        {"observed": [[0.3], [1.5]], "operator": LINE, "noise_std": 0.2},
        Dense(rows=((1.0, 0.5),)),
    ),
    (
        "gaussian-mixture",
        {"observed": [[0.3]], "operator": {"kind": "average-pooling", "size": 2}, "noise_std": 0.2},
        AveragePooling(size=2),
    ),
    ("bit-patterns", {"observed": [[1, 0, 0, 0], [0, 1, 0, 0]], "known": [1, 1, 0, 0]}, Mask()),
]
METHODS: list[tuple[Any, Method]] = [
    ("product", Product()),
    ({"name": "repaint", "jump": 2, "repeats": 2}, Repaint(jump=2, repeats=2)),
    ({"name": "twisted", "particles": 3}, Twisted(particles=3)),
    (
        {"name": "twisted", "particles": 5, "systems": "joint", "covariance": "diagonal"},
        Twisted(particles=5, systems="joint", covariance="diagonal"),
    ),
    (
        {"name": "auto", "particles": 3, "products": 1},
        Twisted(particles=3, products=1),
    ),
]


@pytest.mark.parametrize(("asked", "method"), METHODS, ids=[str(i) for i in range(5)])
@pytest.mark.parametrize(("name", "seen", "operator"), SEEN, ids=[str(i) for i in range(5)])
async def test_the_served_answer_is_that_of_draw(
    client: httpx.AsyncClient,
    mixture: DiffusionModel,
    patterns: DiffusionModel,
    name: str,
    seen: dict[str, Any],
    operator: LinearOperator,
    asked: Any,  # noqa: ANN401
    method: Method,
) -> None:
    model = mixture if name == "gaussian-mixture" else patterns
    answer = await ask(
        client,
        "/posterior",
        model=name,
        seed=3,
        num_samples=4,
        method=asked,
        sampler={"steps": 9},
        **seen,
    )
    y = torch.tensor(seen["observed"], dtype=torch.float32)
    known = torch.tensor(seen.get("known", 1)).bool().expand_as(y)
    noise = torch.tensor(seen.get("noise_std", 0.0))
    observation, gained = model.process.observe(model.space, operator, y, known, noise)
    offline = sample_posterior(
        model, observation, 4, seed=3, method=method, sampler=Ancestral(steps=9)
    )
    samples = torch.tensor([result["samples"] for result in answer["results"]])
    expected = model.space.to_data(offline.samples.flatten(0, 1)).reshape(samples.shape)
    assert torch.allclose(samples.float(), expected, rtol=1e-4, atol=1e-3)
    assert answer["network_evaluations"] == offline.network_evaluations
    assert (answer["method"], answer["biased"]) == (offline.method.name, offline.biased)
    assert answer["sampler"]["steps"] == 9
    for result, told, more in zip(answer["results"], offline.diagnostics, gained, strict=True):
        found = result["diagnostics"]
        assert (found["particles"], found["systems"]) == (told.particles, told.systems)
        assert (found["ancestors"], found["warning"]) == (told.ancestors, told.warning)
        assert np.allclose(found["ess_by_step"], told.ess, rtol=1e-3)
        assert found["ess"] == pytest.approx(min(told.ess, default=1.0), rel=1e-3)
        if told.log_evidence is None:
            assert found["log_evidence"] is None
        else:
            assert found["log_evidence"] == pytest.approx(told.log_evidence + float(more), abs=1e-3)


# ---- exact answers ----


async def test_a_line_through_a_mixture_has_the_exact_posterior(
    client: httpx.AsyncClient, mixture: DiffusionModel
) -> None:
    """In data units: mean, and log p(y), within 4.5 standard errors of 60 systems."""
    network = mixture.network
    assert isinstance(network, GaussianMixture)
    y, std, n = 0.4, 0.3, 60
    answer = await ask(
        client,
        "/posterior",
        **MIXTURE,
        operator=LINE,
        observed=[[y]],
        noise_std=std,
        num_samples=n,
        method={"name": "twisted", "particles": 4},
    )
    row = torch.tensor([[1.0, 0.5]])
    offset = float(row[0] @ torch.tensor(SHIFT))
    exact, log_z = network.posterior(
        row, torch.tensor([(y - offset) / SCALE]), torch.tensor([(std / SCALE) ** 2])
    )
    (result,) = answer["results"]
    mean = exact.mean() * SCALE + torch.tensor(SHIFT)
    error = exact.covariance().diagonal().sqrt() * SCALE / n**0.5
    assert bool(((torch.tensor(result["mean"]) - mean).abs() < SIGMAS * error).all())
    told = result["diagnostics"]
    assert told["systems"] == n
    assert 0 < told["log_evidence_error"] < 0.2
    off = told["log_evidence"] - (log_z - math.log(SCALE))
    assert abs(off) < SIGMAS * told["log_evidence_error"] + 0.02  # 100 steps, not infinitely many


@pytest.mark.parametrize("flip", [0.0, 0.15])
async def test_bits_have_the_posterior_of_enumeration(
    client: httpx.AsyncClient, flip: float
) -> None:
    """Shares of 200 systems, and p(y), within 4.5 standard errors; .01 for steps that factorise."""
    n, y, known = 200, torch.tensor([0, 1, 0, 0]), torch.tensor([1, 0, 0, 0]).bool()
    answer = await ask(
        client,
        "/posterior",
        **BITS,
        observed=[y.tolist()],
        known=[1, 0, 0, 0],
        flip_probability=flip,
        num_samples=n,
        method={"name": "twisted", "particles": 2},
    )
    wrong = (PATTERNS[:, known] != y[known]).sum(1)
    joint = WEIGHTS * flip**wrong * (1 - flip) ** (1 - wrong)
    posterior = joint / joint.sum()
    (result,) = answer["results"]
    samples, told = torch.tensor(result["samples"]), result["diagnostics"]
    for pattern, p in zip(PATTERNS, posterior.tolist(), strict=True):
        share = float((samples == pattern).all(1).double().mean())
        assert abs(share - p) < SIGMAS * math.sqrt(p * (1 - p) / n) + 0.01
    off = told["log_evidence"] - math.log(float(joint.sum()))
    assert abs(off) < SIGMAS * told["log_evidence_error"] + 0.01
