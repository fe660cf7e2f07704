"""Every example of the OpenAPI document, which /docs offers to try out, is answered as it stands.

Each is posted to the models that ship, with the headers that /docs fills in.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from tests.noneq.conftest import listening

MODELS = Path(__file__).parents[3] / "models"
DOCUMENT = create_app(Settings()).openapi()
SCHEMAS = DOCUMENT["components"]["schemas"]
EXAMPLES = [
    pytest.param(path, operation, example, id=f"{path[1:]}-{i}")
    for path, methods in DOCUMENT["paths"].items()
    for operation in methods.values()
    if "requestBody" in operation
    for i, example in enumerate(
        SCHEMAS[
            operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/")[
                -1
            ]
        ]["examples"]
    )
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The shipped models that the examples name, and the classifier that reads digits."""
    folder = tmp_path_factory.mktemp("shipped")
    for name in {param.values[2]["model"] for param in EXAMPLES} | {"mnist-classifier"}:
        (folder / name).symlink_to(MODELS / name)
    with listening(Settings(models=folder, device="cpu", batch_size=64)) as found:
        yield found


def test_there_is_an_example_of_every_request() -> None:
    paths = DOCUMENT["paths"].items()
    posted = {path for path, methods in paths if "requestBody" in methods.get("post", {})}
    assert {param.values[0] for param in EXAMPLES} == posted


@pytest.mark.parametrize(("path", "operation", "example"), EXAMPLES)
def test_an_example_is_answered(
    url: str, path: str, operation: dict[str, object], example: dict[str, object]
) -> None:
    headers = {
        parameter["name"]: str(parameter["example"])
        for parameter in operation["parameters"]  # type: ignore[attr-defined]
        if parameter["in"] == "header" and "example" in parameter
    }
    response = httpx.post(url + path, json=example, headers=headers, timeout=120)
    assert response.status_code == 200, response.text
    assert response.json()["model"] == example["model"]
