"""Labels and products of models over HTTP: the offline answers, exact ones, and what cannot be."""

import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from diffusion.checkpoint import save
from diffusion.model import DiffusionModel
from diffusion.networks import GaussianMixture
from diffusion.operators import Mask
from diffusion.posterior import Expert, Label, Method, Posterior, Twisted, sample_posterior
from diffusion.samplers import Ancestral
from service.catalogue import ServedClassifier, load_folder
from service.settings import Settings
from tests.diffusion.posterior.test_factors import Components, classifier, product
from tests.service.http.caller import ask, assert_problem, connect, starting
from tests.service.http.conftest import (
    SCALE,
    SHIFT,
    gaussian_mixture,
    save_animals,
    save_models,
)

pytestmark = pytest.mark.anyio
MIXTURE: dict[str, Any] = {"model": "gaussian-mixture", "seed": 7}
LINE = {"kind": "dense", "rows": [[1.0, 0.5]]}
DIAGONAL = {"name": "twisted", "covariance": "diagonal", "particles": 4}
SIGMAS = 4.5


def other_mixture() -> GaussianMixture:
    covariances = torch.tensor([[[0.4, 0.0], [0.0, 0.2]], [[0.2, 0.05], [0.05, 0.3]]])
    means = torch.tensor([[0.6, -0.1], [-0.5, -0.4]])
    return GaussianMixture.from_values(
        torch.tensor([0.5, 0.5]).double(), means.double(), covariances.double()
    )


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two mixtures of one process, bit patterns, images, and a classifier of these."""
    found = tmp_path_factory.mktemp("labelled")
    save_models(found)
    model, metadata = gaussian_mixture()
    network = other_mixture()
    other = DiffusionModel(model.process, network, model.space, "x_0", "moment")
    update = {"name": "other", "network": network.config, "profile": None}
    save(found / "other" / "model.safetensors", other, metadata.model_copy(update=update))
    save_animals(found)
    return found


@pytest.fixture(scope="module")
async def client(labelled: Path, mixture: DiffusionModel) -> AsyncIterator[httpx.AsyncClient]:
    """Served, with the exact classifier of the mixture's components, which no artefact holds."""
    network = mixture.network
    assert isinstance(network, GaussianMixture)
    exact = classifier(mixture, Components(network), 3)
    reader = ServedClassifier("components", exact, exact)
    async with starting(Settings(models=labelled, device="cpu", batch_size=256), True) as app:
        repository = app.state.backend.repository
        catalogue = repository.catalogue
        readable = replace(catalogue.served["gaussian-mixture"], classifiers=(reader,))
        repository.catalogue = replace(
            catalogue, served={**catalogue.served, "gaussian-mixture": readable}
        )
        async with connect(app) as found:
            yield found


def assert_offline(
    answer: dict[str, Any], offline: Posterior, model: DiffusionModel, gained: list[float]
) -> None:
    samples = torch.tensor([result["samples"] for result in answer["results"]]).float()
    expected = model.space.to_data(offline.samples.flatten(0, 1)).reshape(samples.shape)
    slack = 1.0 if model.space.levels else 1e-3  # a level may be rounded the other way
    assert torch.allclose(samples, expected, rtol=1e-4, atol=slack)
    assert answer["network_evaluations"] == offline.network_evaluations
    for result, told, more in zip(answer["results"], offline.diagnostics, gained, strict=True):
        assert told.log_evidence is not None
        found = result["diagnostics"]["log_evidence"]
        assert found == pytest.approx(told.log_evidence + more, abs=1e-3)


# ---- the offline answer ----


@pytest.mark.parametrize("half", [False, True])
async def test_a_served_label_is_that_of_draw(
    client: httpx.AsyncClient, labelled: Path, half: bool
) -> None:
    """By name and by place, alone and beside an upper half; in waves of fewer than all systems."""
    catalogue = load_folder(labelled, "cpu")
    model, reader = catalogue.served["grey"].model, catalogue.classifiers["animals"].classifier
    seen, gained = model.process.nothing_seen(model.event, 2), torch.zeros(2)
    asked: dict[str, Any] = {}
    if half:
        y = torch.arange(96).float().reshape(2, 1, 6, 8)
        known = torch.zeros(2, 1, 6, 8, dtype=torch.bool)
        known[:, :, :3] = True
        std = torch.tensor(20.0)
        seen, gained = model.process.observe(model.space, Mask(), y.where(known, 0), known, std)
        asked = {"observed": y.tolist(), "known": known[0].int().tolist(), "noise_std": 20}
    answer = await ask(
        client,
        "/posterior",
        model="grey",
        label=["crow", 0],
        num_samples=3,
        seed=3,
        method={"name": "twisted", "particles": 4},
        **asked,
    )
    factors = [Label(reader, torch.tensor([2, 0]))]
    method: Method = Twisted(particles=4)
    offline = sample_posterior(model, seen, 3, seed=3, method=method, factors=factors)
    assert_offline(answer, offline, model, gained.tolist())
    assert [result["label"] for result in answer["results"]] == ["crow", "cat"]
    assert answer["results"][0]["labels"] is None


async def test_a_served_product_is_that_of_draw(
    client: httpx.AsyncClient, mixture: DiffusionModel, labelled: Path
) -> None:
    other = load_folder(labelled, "cpu").served["other"].model
    y, known = torch.tensor([[0.2, 0.0], [0.0, -1.0]]), torch.tensor([[1, 0], [0, 1]]).bool()
    seen, gained = mixture.process.observe(mixture.space, Mask(), y, known, torch.tensor(0.5))
    answer = await ask(
        client,
        "/posterior",
        **MIXTURE,
        observed=y.tolist(),
        known=known.int().tolist(),
        noise_std=0.5,
        expert="other",
        method=DIAGONAL,
        num_samples=3,
        sampler={"steps": 9},
    )
    method = Twisted(particles=4, covariance="diagonal")
    sampler, factors = Ancestral(steps=9), [Expert(other)]
    offline = sample_posterior(
        mixture, seen, 3, seed=7, method=method, sampler=sampler, factors=factors
    )
    gained = gained - 2 * math.log(SCALE)  # p_2 is a density in data units too
    assert_offline(answer, offline, mixture, gained.tolist())
    assert answer["results"][0]["label"] is None


# ---- exact answers ----


async def test_a_label_draws_its_component(
    client: httpx.AsyncClient, mixture: DiffusionModel
) -> None:
    """p(label) is the component's weight, and the mean its own; nothing was seen."""
    network, n = mixture.network, 100
    assert isinstance(network, GaussianMixture)
    method = {"name": "auto", "particles": 4}
    answer = await ask(
        client,
        "/posterior",
        **MIXTURE,
        label=["0", 2],
        label_probabilities=True,
        num_samples=n,
        method=method,
    )
    assert answer["method"] == "twisted"
    for k, result in zip((0, 2), answer["results"], strict=True):
        assert result["label"] == str(k)
        mean = network.means[k] * SCALE + torch.tensor(SHIFT)
        error = network.covariances[k].diagonal().sqrt() * SCALE / n**0.5
        assert bool(((torch.tensor(result["mean"]) - mean).abs() < SIGMAS * error).all())
        told = result["diagnostics"]
        off = told["log_evidence"] - math.log(float(network.weights[k]))
        assert 0 < told["log_evidence_error"] < 0.2
        assert abs(off) < SIGMAS * told["log_evidence_error"] + 0.02  # 100 steps
        assert result["labels"][str(k)] > 0.95
        assert sum(result["labels"].values()) == pytest.approx(1)


async def test_what_is_read_off_samples_is_the_label_s_probability(
    client: httpx.AsyncClient, mixture: DiffusionModel
) -> None:
    """E[p(k | x_0) | y] = p(k | y), within 4.5 standard errors of independent samples."""
    network, n = mixture.network, 150
    assert isinstance(network, GaussianMixture)
    y, std = 1.4, 1.0
    answer = await ask(
        client,
        "/posterior",
        **MIXTURE,
        observed=[[y, 0]],
        known=[1, 0],
        noise_std=std,
        label_probabilities=True,
        num_samples=n,
        method={"name": "twisted", "particles": 4},
    )
    z = torch.tensor([(y - SHIFT[0]) / SCALE])
    exact, _ = network.posterior(torch.eye(2)[:1], z, torch.tensor([(std / SCALE) ** 2]))
    (result,) = answer["results"]
    assert result["label"] is None
    for k, p in enumerate(exact.weights.tolist()):
        most = math.sqrt(p * (1 - p) / n)  # of p(k | x_0) in [0, 1] with that mean
        assert abs(result["labels"][str(k)] - p) < SIGMAS * most + 0.01


async def test_a_product_has_the_exact_evidence_in_data_units(
    client: httpx.AsyncClient, mixture: DiffusionModel
) -> None:
    """The integral of p p_2, a density each, and the mean; nothing was seen."""
    network, n = mixture.network, 150
    assert isinstance(network, GaussianMixture)
    answer = await ask(
        client,
        "/posterior",
        **MIXTURE,
        expert="other",
        num_samples=n,
        method={"name": "twisted", "particles": 8},
    )
    exact, log_z = product(network, other_mixture())
    (result,) = answer["results"]
    told = result["diagnostics"]
    off = told["log_evidence"] - (log_z - 2 * math.log(SCALE))
    assert 0 < told["log_evidence_error"] < 0.2
    assert abs(off) < SIGMAS * told["log_evidence_error"] + 0.02
    mean = exact.mean() * SCALE + torch.tensor(SHIFT)
    error = exact.covariance().diagonal().sqrt() * SCALE / n**0.5
    assert bool(((torch.tensor(result["mean"]) - mean).abs() < SIGMAS * error).all())


# ---- who goes with whom ----


async def test_models_say_which_classifiers_read_them(client: httpx.AsyncClient) -> None:
    listed = {each["name"]: each for each in (await client.get("/models")).json()["models"]}
    assert sorted(listed) == ["bit-patterns", "gaussian-mixture", "grey", "other"]
    animals = {"name": "animals", "labels": ["cat", "dog", "crow"]}
    assert listed["grey"]["classifiers"] == [animals]
    assert listed["bit-patterns"]["classifiers"] == listed["other"]["classifiers"] == []
    one = (await client.get("/models/grey")).json()
    assert one["classifiers"] == [animals]


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"model": "grey", "label": "cow"}, "label", '["cat", "dog", "crow"]'),
    ({"model": "grey", "label": 3}, "label", "0 to 2"),
    ({"model": "grey", "label": -1}, "label", "0 to 2"),
    ({"model": "grey", "label": []}, "label", "at least 1"),
    ({"model": "grey", "label": True}, "label", "valid"),
    (
        {"label": ["0", "1"], "observed": [[0, 0]], "noise_std": 1},
        "label",
        "2 labels for 1",
    ),
    ({"model": "other", "label": "0"}, "label", "classifiers served: animals"),
    (
        {"model": "other", "label_probabilities": True, "expert": "other"},
        "label_probabilities",
        "classifiers served: animals",
    ),
    ({"classifier": "animals", "label": "cat"}, "classifier", "under another process"),
    ({"classifier": "nobody", "label": "0"}, "classifier", '["components"]'),
    ({"classifier": "components", "expert": "other"}, "classifier", "asks for no labels"),
    ({"expert": "nobody"}, "expert", "other"),
    ({"expert": "bit-patterns"}, "expert", "under another process"),
    ({"label": "0", "method": "product"}, "method", "'twisted' for labels"),
    ({"expert": "other", "method": {"name": "repaint"}}, "method", "'twisted' for labels"),
    ({"label": "0", "known": [1, 0]}, "known", "but no observation"),
    ({"label": "0", "noise_std": 1.0}, "noise_std", "but no observation"),
    ({"label": "0", "operator": LINE}, "operator", "but no observation"),
    ({}, "observed", "Field required"),
    ({"label_probabilities": True}, "observed", "/sample"),
    ({"expert": "other", "observed": [[0.3]], "operator": LINE, "noise_std": 1}, "method", "ties"),
    ({"expert": "other", "observed": [[0.3, 0.1]], "noise_std": 1}, "method", "covariance 'diagon"),
]


@pytest.mark.parametrize(("asked", "location", "words"), REFUSED)
async def test_what_cannot_be_is_refused_before_any_work(
    client: httpx.AsyncClient, asked: dict[str, Any], location: str, words: str
) -> None:
    response = await client.post("/posterior", json=MIXTURE | asked)
    document = assert_problem(response, 422, "invalid-request")
    assert str(document["location"]).startswith(location)
    assert words in response.text.replace('","', '", "')
