"""An element with limits: an answer is that of the same model of its probit, and keeps them.

Two artefacts share one network: one's second element is the probit of the other's.
"""

import math
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diffusion.checkpoint import save as save_artefact
from diffusion.space import DataSpace
from service.settings import Settings
from tests.service.http.caller import ask, assert_problem
from tests.service.http.conftest import gaussian_mixture, serving

pytestmark = pytest.mark.anyio

LOW, HIGH = 2.0, 6.0
Array = NDArray[np.float64]


@pytest.fixture(scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    folder = tmp_path_factory.mktemp("limited")
    for name, limits in (("free", None), ("limited", (None, (LOW, HIGH)))):
        model, metadata = gaussian_mixture()
        space = DataSpace(kind="vector", shape=(2,), limits=limits)
        model.space = space
        told = metadata.model_copy(update={"name": name, "space": space})
        save_artefact(folder / name / "model.safetensors", model, told)
    async with serving(Settings(models=folder, device="cpu", batch_size=64)) as client:
        yield client


def limited(free: object) -> Array:
    """Data units of the model without limits to those of the other."""
    x = np.array(free, np.float64)
    x[..., 1] = LOW + (HIGH - LOW) * torch.special.ndtr(torch.from_numpy(x[..., 1])).numpy()
    return x


async def test_samples_are_those_of_the_probit(both: httpx.AsyncClient) -> None:
    asked: dict[str, Any] = {"num_samples": 200, "seed": 3, "sampler": {"steps": 20}}
    free = (await ask(both, "/sample", model="free", **asked))["samples"]
    found = np.asarray((await ask(both, "/sample", model="limited", **asked))["samples"])
    np.testing.assert_allclose(found, limited(free), atol=1e-5)


async def test_a_likelihood_changes_by_the_slope(both: httpx.AsyncClient) -> None:
    data = [[-1.0, -0.6], [0.1, 1.1]]
    wanted = (await ask(both, "/loglik", model="free", data=data, seed=3))["results"]
    rows = limited(data).tolist()
    found = (await ask(both, "/loglik", model="limited", data=rows, seed=3))["results"]
    for (_, u), one, other in zip(data, found, wanted, strict=True):
        slope = math.log((HIGH - LOW) / math.sqrt(2 * math.pi)) - u * u / 2
        assert one["bound"] + slope == pytest.approx(other["bound"], abs=1e-3)
        assert one["relative_to_prior"] == pytest.approx(other["relative_to_prior"], abs=1e-3)
    beyond = await both.post("/loglik", json={"model": "limited", "data": [[0.0, 6.5]]})
    assert_problem(beyond, 422, "invalid-request")
    assert "lement 1 is from 2 to 6, came 6.5" in beyond.text


@pytest.mark.parametrize("known", [[1, 0], [0, 1]])
async def test_a_posterior_is_that_of_the_probit(both: httpx.AsyncClient, known: list[int]) -> None:
    asked: dict[str, Any] = {"known": known, "num_samples": 20, "seed": 5, "quantiles": [0.1, 0.8]}
    asked["sampler"] = {"steps": 20}
    free = [[0.1, 0.4]]
    wanted = (await ask(both, "/posterior", model="free", observed=free, **asked))["results"][0]
    # What is not known need not be within the limits.
    seen = limited(free) if known[1] else np.array([[0.1, 0.0]])
    body = await ask(both, "/posterior", model="limited", observed=seen.tolist(), **asked)
    found = body["results"][0]
    np.testing.assert_allclose(found["samples"], limited(wanted["samples"]), atol=2e-4)
    exact = np.asarray(found["samples"])[:, known.index(1)]
    assert exact == pytest.approx(seen[0, known.index(1)], rel=1e-7)
    evidence = (each["diagnostics"]["log_evidence"] for each in (found, wanted))
    slope = math.log((HIGH - LOW) / math.sqrt(2 * math.pi)) - 0.4**2 / 2
    assert -np.subtract(*evidence) == pytest.approx(slope * known[1], abs=2e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"observed": [[0.1, 4.0]], "noise_std": 0.1},
        {"observed": [[0.3]], "noise_std": 0.1, "operator": {"kind": "dense", "rows": [[1, 0.5]]}},
        {"observed": [[0.1, 6.5]], "known": [0, 1]},
        {"expert": "limited"},
    ],
)
async def test_what_limits_do_not_allow_is_refused(
    both: httpx.AsyncClient, changes: dict[str, Any]
) -> None:
    answer = await both.post("/posterior", json={"model": "limited", "seed": 1, **changes})
    assert_problem(answer, 422, "invalid-request")
