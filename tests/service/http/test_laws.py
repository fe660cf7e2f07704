"""The laws of probability hold over HTTP: answers are held against models known in closed form.

A tolerance is 4.5 standard errors of what is compared; seeds are fixed, so a test never flickers.
"""

import asyncio
import itertools
import math
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import Tensor
from torch.testing import assert_close

from diffusion.likelihood.bound import bound
from diffusion.likelihood.estimator import Choice
from diffusion.likelihood.iwae import trajectory_bound
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.noise import counter_noise
from diffusion.posterior import Observation
from diffusion.samplers import sample
from diffusion.space import Convention
from tests.diffusion.models import given_noisy
from tests.service.http.caller import ask

pytestmark = pytest.mark.anyio

SIGMAS = 4.5
SCALE = 2.0  # data units a model unit of the mixture
BINARY = {"accept": "application/octet-stream"}
EVERY_BITS = list(itertools.product((0, 1), repeat=4))


async def draw(client: httpx.AsyncClient, path: str, **fields: object) -> Tensor:
    response = await client.post(path, json=fields, headers=BINARY)
    assert response.status_code == 200, response.text
    return load(response.content)["samples"].double()


def assert_moments(samples: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Sample mean and covariance of [n, D] within their standard errors of the exact ones."""
    n = len(samples)
    off = samples - samples.mean(0)
    products = off[:, :, None] * off[:, None, :]
    for values, exact in ((samples, mean), (products, covariance)):
        error = values.std(0) / math.sqrt(n)
        deviation = (values.mean(0) - exact).abs() / error
        assert bool((deviation < SIGMAS).all()), deviation


def data_moments(model: DiffusionModel, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Moments in model units, in data units."""
    scale = model.space.scale
    assert isinstance(scale, float)
    return mean * scale + torch.tensor(model.space.shift), covariance * scale**2


async def test_samples_have_the_mixtures_mean_and_covariance(
    client: httpx.AsyncClient, mixture: DiffusionModel
) -> None:
    network = mixture.network
    assert isinstance(network, GaussianMixture)
    samples = await draw(client, "/sample", model="gaussian-mixture", num_samples=1200, seed=11)
    assert_moments(samples, *data_moments(mixture, network.mean(), network.covariance()))


async def test_the_bound_is_below_the_exact_log_density_and_near_it(
    client: httpx.AsyncClient, mixture: DiffusionModel
) -> None:
    network = mixture.network
    assert isinstance(network, GaussianMixture)
    z = network.sample(counter_noise(1, torch.arange(400), 0))
    exact = network.log_prob(z) + mixture.space.log_jacobian()
    data = mixture.space.to_data(z)
    answer = await ask(client, "/loglik", model="gaussian-mixture", data=data.tolist(), seed=3)
    bounds = torch.tensor([result["bound"] for result in answer["results"]])
    errors = torch.tensor([result["standard_error"] for result in answer["results"]])
    gap = exact - bounds
    error = float(gap.std() / math.sqrt(len(gap)))
    assert -SIGMAS * error < float(gap.mean()) < 0.05 + SIGMAS * error
    # Each example's own estimate too, and its error is an honest one.
    assert bool((gap > -6 * errors).all())
    assert 0.5 < float(gap.std()) / float(errors.square().mean().sqrt()) < 1.5


@pytest.mark.parametrize("name", ["gaussian-mixture", "bit-patterns"])
async def test_trajectories_bring_the_bound_to_the_exact_log_probability(
    client: httpx.AsyncClient, mixture: DiffusionModel, patterns: DiffusionModel, name: str
) -> None:
    """Nearer than one alone, and past it by no more than noise."""
    model, n, each = mixture if name == "gaussian-mixture" else patterns, 16, 6
    network, space = model.network, model.space
    assert isinstance(network, GaussianMixture | BitPatterns)
    z = network.sample(counter_noise(1, torch.arange(n), 0))
    exact = network.log_prob(z) + (0 if space.kind == "bits" else space.log_jacobian())
    data = space.to_data(z).tolist()
    answer = await ask(client, "/loglik", model=name, data=data, seed=3, trajectories=each)
    assert answer["trajectories"] == each
    assert answer["network_evaluations"] == n * answer["terms"] == n * each * model.T
    for result in answer["results"]:
        assert result["parts"]["gain"] > 0
        assert result["bound"] == pytest.approx(sum(result["parts"].values()))
    bounds = torch.tensor([result["bound"] for result in answer["results"]])
    errors = torch.tensor([result["standard_error"] for result in answer["results"]])
    error = float(errors.square().sum().sqrt()) / n
    assert error < 0.1
    assert -SIGMAS * error < float((exact - bounds).mean()) < 0.01 + SIGMAS * error


async def test_fewer_terms_have_the_same_mean(
    client: httpx.AsyncClient, mixture: DiffusionModel
) -> None:
    network = mixture.network
    assert isinstance(network, GaussianMixture)
    data = mixture.space.to_data(network.sample(counter_noise(2, torch.arange(200), 0)))
    asked = {"model": "gaussian-mixture", "data": data.tolist(), "seed": 5}
    whole = await ask(client, "/loglik", **asked)
    part = await ask(client, "/loglik", terms=12, **asked)
    assert part["network_evaluations"] == 12 * 200
    gap = torch.tensor(
        [a["bound"] - b["bound"] for a, b in zip(whole["results"], part["results"], strict=True)]
    )
    assert abs(float(gap.mean())) < SIGMAS * float(gap.std()) / math.sqrt(len(gap))


@pytest.mark.parametrize(
    ("asked", "steps"),
    [
        ({"terms": 12, "strata": "importance"}, 100),
        ({"target_error": 2.5, "strata": "importance", "convention": "paper"}, 100),
        ({"steps": 7}, 7),
        ({"steps": 40, "spacing": "even", "terms": 20}, 40),
        ({"steps": 9, "convention": "paper"}, 9),
    ],
)
async def test_every_choice_of_terms_is_the_offline_one(
    asked: dict[str, Any], steps: int, client: httpx.AsyncClient, mixture: DiffusionModel
) -> None:
    data = [[1.0, -2.0], [4.0, 1.0]]
    words = {"model": "gaussian-mixture", "data": data, "seed": 3}
    answer = await ask(client, "/loglik", **words, **asked)
    choice = Choice(**{key: value for key, value in asked.items() if key != "convention"})
    convention: Convention = asked.get("convention", "density")
    x_0 = mixture.space.to_model(torch.tensor(data))
    found = bound(mixture, x_0, seed=3, convention=convention, choice=choice)
    bounds = torch.tensor([result["bound"] for result in answer["results"]])
    assert_close(bounds.double(), found.bound, rtol=1e-4, atol=1e-4)
    assert answer["steps"] == steps
    count = choice.resolve(mixture, torch.arange(2), 3, convention).count
    assert answer["network_evaluations"] == 2 * answer["terms"] == 2 * count


async def test_relative_to_prior_is_what_the_prior_alone_lacks(
    client: httpx.AsyncClient, mixture: DiffusionModel
) -> None:
    data = torch.tensor([[1.0, -2.0], [4.0, 1.0]])
    answer = await ask(client, "/loglik", model="gaussian-mixture", data=data.tolist(), seed=3)
    z = mixture.space.to_model(data).double()
    null = (-z.square() / 2 - math.log(2 * math.pi) / 2).sum(1) + mixture.space.log_jacobian()
    for result, alone in zip(answer["results"], null.tolist(), strict=True):
        assert result["relative_to_prior"] == pytest.approx(result["bound"] - alone)


async def test_denoising_has_the_exact_posterior_mean_and_variance(
    client: httpx.AsyncClient, mixture: DiffusionModel
) -> None:
    network = mixture.network
    assert isinstance(network, GaussianMixture)
    assert isinstance(mixture.space.scale, float)
    y = torch.tensor([[1.6, -1.0], [-2.0, -3.5]])
    alpha_bar = mixture.process.alpha_bar[45]  # a noise that is one step's own
    sigma = float(((1 - alpha_bar) / alpha_bar).sqrt())
    asked = {
        "model": "gaussian-mixture",
        "observed": y.tolist(),
        "noise_std": sigma * mixture.space.scale,
        "num_samples": 1000,
        "seed": 13,
    }
    answer = await ask(client, "/denoise", **asked)
    assert answer["method"] == "matched"
    assert answer["results"][0]["diagnostics"]["start"] == 45
    mean, covariance = given_noisy(network, mixture.space.to_model(y), sigma)
    for result, *moments in zip(answer["results"], mean, covariance, strict=True):
        samples = torch.tensor(result["samples"], dtype=torch.float64)
        assert_moments(samples, *data_moments(mixture, *moments))
        assert result["mean"] == pytest.approx(samples.mean(0).tolist(), abs=1e-5)
        assert result["std"] == pytest.approx(samples.std(0).tolist(), abs=1e-5)


async def test_samples_of_bits_have_the_patterns_probabilities(
    client: httpx.AsyncClient, patterns: DiffusionModel
) -> None:
    network = patterns.network
    assert isinstance(network, BitPatterns)
    n = 800
    samples = await draw(client, "/sample", model="bit-patterns", num_samples=n, seed=17)
    exact = network.log_prob(torch.tensor(EVERY_BITS)).exp()
    for bits, p in zip(EVERY_BITS, exact.tolist(), strict=True):
        count = int((samples == torch.tensor(bits)).all(1).sum())
        # A factorised step of 1/200 errs a little: .002 beside the sampling error.
        assert abs(count / n - p) < SIGMAS * math.sqrt(p * (1 - p) / n) + 0.002, bits


async def test_bounds_of_all_bits_are_probabilities_below_the_exact_ones(
    client: httpx.AsyncClient, patterns: DiffusionModel
) -> None:
    network = patterns.network
    assert isinstance(network, BitPatterns)
    answer = await ask(client, "/loglik", model="bit-patterns", data=EVERY_BITS, seed=3)
    exact = network.log_prob(torch.tensor(EVERY_BITS)).tolist()
    total = 0.0
    for result, log_p in zip(answer["results"], exact, strict=True):
        found = -math.inf if result["bound"] is None else result["bound"]
        total += math.exp(found)
        error = result["standard_error"] or 0.0
        if log_p == -math.inf:  # a chain of factorised steps still goes there, seldom
            assert found < -6
        else:
            assert log_p - 0.1 - SIGMAS * error < found < log_p + SIGMAS * error
    assert total < 1.05


async def test_denoised_bits_have_the_exact_posterior(
    client: httpx.AsyncClient, patterns: DiffusionModel
) -> None:
    network = patterns.network
    assert isinstance(network, BitPatterns)
    y = torch.tensor([1, 1, 0, 0])
    flip = float(1 - patterns.process.alpha_bar[60]) / 2
    n = 800
    samples = await draw(
        client,
        "/denoise",
        model="bit-patterns",
        observed=[y.tolist()],
        flip_probability=flip,
        num_samples=n,
        seed=19,
    )
    differ = (network.patterns != y).sum(1)
    joint = network.weights * flip**differ * (1 - flip) ** (4 - differ)
    posterior = joint / joint.sum()
    for pattern, p in zip(network.patterns, posterior.tolist(), strict=True):
        share = float((samples[0] == pattern).all(1).double().mean())
        assert abs(share - p) < SIGMAS * math.sqrt(p * (1 - p) / n) + 0.002


async def test_the_product_is_the_papers_kernel_times_r(
    client: httpx.AsyncClient, mixture: DiffusionModel, patterns: DiffusionModel
) -> None:
    """Offline, with the same observation and seed, it comes to the same."""
    observed, known = torch.tensor([[1.0, -1.5]]), torch.tensor([[True, False]])
    asked = {"model": "gaussian-mixture", "known": [1, 0], "num_samples": 6, "seed": 23}
    asked |= {"method": "product"}
    served = await draw(client, "/inpaint", observed=observed.tolist(), noise_std=0.5, **asked)
    y = mixture.space.to_model(observed).repeat(6, 1)
    seen = Observation.of_reals(y, known.repeat(6, 1), 0.5 / SCALE)
    offline = mixture.space.to_data(sample(mixture, 6, seed=23, observation=seen))
    assert torch.allclose(served[0].float(), offline, atol=1e-4)

    asked = {"model": "bit-patterns", "known": [1, 0, 0, 0], "num_samples": 50, "seed": 23}
    asked |= {"method": "product"}
    bits = await draw(client, "/inpaint", observed=[[1, 0, 0, 0]], **asked)
    y = torch.tensor([[1.0, 0, 0, 0]]).repeat(50, 1)
    seen = Observation.of_bits(y, torch.tensor([[True, False, False, False]]).repeat(50, 1))
    assert torch.equal(bits[0].float(), sample(patterns, 50, seed=23, observation=seen))
    assert bool((bits[0, :, 0] == 1).all())


async def test_the_served_answer_is_the_offline_one(
    client: httpx.AsyncClient, mixture: DiffusionModel
) -> None:
    served = await draw(client, "/sample", model="gaussian-mixture", num_samples=5, seed=29)
    offline = mixture.space.to_data(sample(mixture, 5, seed=29))
    assert torch.allclose(served.float(), offline, atol=1e-5)
    data = torch.tensor([[0.3, -1.0], [2.0, 0.5]])
    answer = await ask(client, "/loglik", model="gaussian-mixture", data=data.tolist(), seed=31)
    expected = bound(mixture, mixture.space.to_model(data), seed=31, convention="density")
    found = [result["bound"] for result in answer["results"]]
    assert np.allclose(found, expected.bound.numpy(), rtol=1e-5)
    asked = {"model": "gaussian-mixture", "data": data.tolist(), "seed": 31, "trajectories": 3}
    answer = await ask(client, "/loglik", **asked)
    several = trajectory_bound(
        mixture, mixture.space.to_model(data), seed=31, convention="density", trajectories=3
    )
    for name in ("bound", "standard_error"):
        found = [result[name] for result in answer["results"]]
        assert np.allclose(found, getattr(several, name).numpy(), rtol=1e-4, atol=1e-5)


async def test_an_answer_is_the_same_alone_and_beside_others(client: httpx.AsyncClient) -> None:
    questions: list[tuple[str, dict[str, object]]] = [
        ("/sample", {"model": "gaussian-mixture", "num_samples": 3, "seed": 1}),
        ("/sample", {"model": "gaussian-mixture", "num_samples": 9, "seed": 2,
                     "sampler": {"name": "dpmpp_2m", "steps": 20}}),
        ("/loglik", {"model": "gaussian-mixture", "data": [[0, 0], [1, 1]], "seed": 3}),
        ("/loglik", {"model": "gaussian-mixture", "data": [[0, 0], [1, 1]], "seed": 3,
                     "trajectories": 2}),
        ("/inpaint", {"model": "gaussian-mixture", "observed": [[0, 0]], "known": [1, 0],
                      "num_samples": 4, "seed": 4}),
        ("/denoise", {"model": "gaussian-mixture", "observed": [[0, 0]], "noise_std": 0.7,
                      "num_samples": 4, "seed": 5}),
        ("/sample", {"model": "bit-patterns", "num_samples": 3, "seed": 6}),
        ("/sample", {"model": "grey", "num_samples": 3, "seed": 7}),
    ]  # fmt: skip
    alone = [await ask(client, path, **fields) for path, fields in questions]
    beside = await asyncio.gather(*(ask(client, path, **fields) for path, fields in questions))
    for one, other in zip(alone, beside, strict=True):
        assert one.keys() == other.keys()
        close(one, other)


def close(one: object, other: object) -> None:
    """Equal, numbers to float32's rounding."""
    if isinstance(one, dict):
        assert isinstance(other, dict)
        for key in one:
            close(one[key], other[key])
    elif isinstance(one, list):
        assert isinstance(other, list)
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            close(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    else:
        assert one == other
