"""Data come from files and links as they are, and leave in snippets as they are."""

import json
from base64 import b64decode
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.page.scoring import Bytes, chooser, fields_of, pictures, score

if TYPE_CHECKING:
    from playwright.sync_api import FilePayload, Page

Open = Callable[..., "Page"]

GREYS = torch.arange(20 * 48).reshape(20, 1, 6, 8) % 256


@pytest.fixture(scope="session")
def url(scoring_url: str) -> str:
    return scoring_url


def file_of(name: str, content: bytes) -> "FilePayload":
    """A file to choose; its kind is told by its name."""
    kinds = {"png": "image/png", "csv": "text/csv", "txt": "text/plain"}
    return {"name": name, "mimeType": kinds[name[-3:]], "buffer": content}


def png_file(pixels: Bytes) -> "FilePayload":
    """A picture as a file to choose."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return file_of("a.png", buffer.getvalue())


@pytest.mark.parametrize(
    ("shape", "kind", "data"),
    [
        ([1, 6, 8], "image", GREYS[:3].tolist()),
        ([1, 6, 8], "bits", (GREYS[:2] % 2).tolist()),
        ([3], "bits", [[0, 1, 1], [1, 0, 0]]),
        ([2], "vector", [[0.1, -2e-7], [1e21, 3]]),
    ],
)
def test_data_survive_a_link(visit: Open, shape: list[int], kind: str, data: object) -> None:
    script = """async ([model, data]) => {
      const { pack, unpack } = await import("./static/lib/encode.js");
      const text = await pack(data, model);
      const other = { ...model, shape: [...model.shape.slice(0, -1), 99] };
      return Promise.all([unpack(text, model), unpack(text, other), unpack("?" + text, model)]);
    }"""
    back, wrong, torn = visit().evaluate(script, [{"shape": shape, "kind": kind}, data])
    assert back == data
    assert wrong is None  # of another model
    assert torn is None


def test_data_too_large_for_a_link_are_left_out(visit: Open) -> None:
    page = visit("?view=likelihood&model=digits")
    noise = np.random.default_rng(0).integers(0, 256, (7, 28, 28), np.uint8)
    chooser(page).set_input_files([png_file(x) for x in noise])
    page.locator(".tray li").nth(6).wait_for()
    score(page)
    assert fields_of(page)["data"] == "-"
    page.reload()
    page.get_by_text("The data were too large for this link").wait_for()
    assert page.locator(".tray li").count() == 0


def test_lines_of_numbers_are_data(visit: Open) -> None:
    page = visit("?view=likelihood&model=gaussian-mixture")
    page.locator(".chart svg").wait_for()
    files = chooser(page)
    files.set_input_files([file_of("a.csv", b"0.5, -1\n\n(2;-3e-1)\n")])
    page.locator(".tray li").nth(1).wait_for()
    assert page.locator(".numbers").all_inner_texts() == ["(0.5, -1)", "(2, -0.3)"]
    files.set_input_files([file_of("a.csv", b"1, 2, 3")])
    page.get_by_role("alert").get_by_text("These are not data of this model").wait_for()
    assert page.locator(".tray li").count() == 2


def test_pictures_come_from_files_at_the_models_size(visit: Open) -> None:
    page = visit("?view=likelihood&model=digits")
    halves = np.zeros((56, 112, 3), np.uint8)
    halves[:, 56:] = 200
    files = chooser(page)
    files.set_input_files([png_file(halves)])
    score(page)
    (found,) = pictures(page, (1, 28, 28))
    assert found[0, :, :13].max() <= 2  # its middle square, half and half
    assert found[0, :, 15:].min() >= 198
    files.set_input_files([file_of("a.txt", b"none")])
    page.get_by_role("alert").get_by_text("browser cannot read this picture").wait_for()
    assert page.locator(".tray li").count() == 1


def test_the_snippets_are_the_request(visit: Open, url: str) -> None:
    page = visit("?view=likelihood&model=digits")
    wanted = np.arange(784, dtype=np.uint8).reshape(28, 28)
    chooser(page).set_input_files([png_file(wanted)])
    score(page)
    page.locator(".snippets summary").click()
    curl, script = page.locator(".snippets code").all_inner_texts()
    asked = json.loads(curl.partition("--json '")[2].removesuffix("'"))
    assert asked.keys() == {"model", "data", "per_step", "seed"}
    with Image.open(BytesIO(b64decode(asked["data"][0]))) as image:
        assert (np.asarray(image.convert("L")) == wanted).all()
    call = f'Client("{url}").loglik(data, model="digits", per_step=True, seed=7)'
    assert call in script
    names: dict[str, Any] = {}
    exec(script.partition("answer =")[0], names)
    assert names["data"].tolist() == [[wanted.tolist()]]


def test_vectors_without_a_picture_are_typed(visit: Open) -> None:
    script = """async () => {
      const { lines } = await import("./static/components/text-input.js");
      const [taken, refused] = [[], []];
      const model = { shape: [3], kind: "vector" };
      const box = lines(model, (data) => taken.push(data), () => refused.push(1));
      const [text, add] = [box.node.querySelector("textarea"), box.node.querySelector("button")];
      for (const typed of ["1 2 3\\n-4, 5e-1, 6", "1 2", ""]) {
        text.value = typed;
        add.click();
      }
      return [taken, refused.length];
    }"""
    assert visit().evaluate(script) == [[[[1, 2, 3], [-4, 0.5, 6]]], 2]
