"""A client that a generator makes of /openapi.json is whole, and works."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from service.settings import Settings
from tests.noneq.conftest import listening

pytestmark = pytest.mark.skipif(
    find_spec("openapi_python_client") is None, reason="openapi-python-client is not installed"
)


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.startswith("noneq_client")]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What the generator says; its package can be imported as noneq_client."""
    found = tmp_path_factory.mktemp("generated")
    (found / "openapi.json").write_text(json.dumps(create_app(Settings()).openapi()))
    # Without formatting; of bodies the generator knows no text but JSON.
    config = "post_hooks: []\ncontent_type_overrides: {text/csv: application/octet-stream}\n"
    (found / "config.yml").write_text(config)
    command = [sys.executable, "-m", "openapi_python_client", "generate"]
    command += ["--path", "openapi.json", "--config", "config.yml", "--output-path", "package"]
    made = subprocess.run(command, cwd=found, capture_output=True, text=True, check=True)
    with importable(found / "package"):
        yield made.stdout + made.stderr


def test_nothing_is_left_out(generated: str) -> None:
    assert "Generating" in generated
    for word in ("Warning", "Unable", "removal", "Failure", "Skipping"):
        assert word not in generated
    models = importlib.import_module("noneq_client.models")
    document = create_app(Settings()).openapi()
    for name in document["components"]["schemas"]:
        assert name in dir(models) or document["components"]["schemas"][name].get("enum"), name


def test_operations_have_the_names_of_what_they_do() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    found = {one["operationId"] for methods in paths.values() for one in methods.values()}
    assert found == {
        "sample", "loglik", "posterior", "inpaint", "denoise", "list_models", "show_model",
        "show_examples", "live", "ready", "metrics", "load_model", "unload_model",
        "list_jobs", "show_job", "show_result", "cancel_job",
    }  # fmt: skip


@pytest.mark.usefixtures("generated")
def test_it_asks_and_is_answered(folder: Path) -> None:
    def get(name: str) -> Any:  # noqa: ANN401  (a module that is made by the test)
        return importlib.import_module(f"noneq_client.{name}")

    models = get("models")
    with listening(Settings(models=folder, device="cpu", batch_size=8)) as url:
        client = get("client").Client(url)
        with client:
            steps = models.Ancestral(steps=3)
            asked = models.SampleRequest(
                model="gaussian-mixture", num_samples=2, seed=7, sampler=steps
            )
            answer = get("api.distributions.sample").sync(client=client, body=asked)
            assert isinstance(answer, models.SampleAnswer)
            assert (answer.seed, len(answer.samples)) == (7, 2)
            asked = models.InpaintRequest(
                model="gaussian-mixture",
                observed=[[0.5, 0]],
                known=[1, 0],
                method=models.InpaintRequestMethodType0.TWISTED,
            )
            answer = get("api.distributions.inpaint").sync(client=client, body=asked)
            assert isinstance(answer, models.PosteriorAnswer)
            assert answer.results[0].samples[0][0] == 0.5
            asked = models.LoglikRequest(model="gaussian-mixture", data=[[0.5, 0.0]])
            answer = get("api.distributions.loglik").sync(client=client, body=asked)
            assert isinstance(answer, models.LoglikAnswer)
            assert len(answer.results) == 1
            asked = models.SampleRequest(model="nobody")
            answer = get("api.distributions.sample").sync(client=client, body=asked)
            assert isinstance(answer, models.ProblemDocument)
            assert answer.status == 404
            found = get("api.models.list_models").sync(client=client)
            assert "grey" in [one.name for one in found.models]
            asked = models.SampleRequest(model="gaussian-mixture", num_samples=2, seed=7)
            job = get("api.distributions.sample").sync(
                client=client, body=asked, prefer="respond-async"
            )
            assert isinstance(job, models.JobAnswer)
            job = get("api.jobs.show_job").sync(job.id, client=client, prefer="wait=60")
            assert (job.state, job.seed) == ("done", 7)
