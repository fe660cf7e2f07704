"""Answers as files: the numbers of the answer, and pictures that hold their request."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

Open = Callable[..., "Page"]
Ask = Callable[..., dict[str, Any]]

LINKS = {
    "sample": "model={model}&num_samples=3&steps=4&seed=7",
    "likelihood": "model={model}&by=all&seed=7&data={data}",
    "repair": "model={model}&methods=product&num_samples=3&steps=4&seed=7&x={one}&seen={seen}",
}
DATA = {
    "bit-patterns": {"data": "1000.0011", "one": "1000", "seen": "1100"},
    "gaussian-mixture": {"data": "0.5,1;2,-3", "one": "0.5,1", "seen": "10"},
}
ROUTES = {"sample": "/sample", "likelihood": "/loglik", "repair": "/posterior"}


def saved(page: "Page", way: str) -> Path:
    """A file as the page saves it."""
    with page.expect_download() as download:
        page.locator(".saver:visible").get_by_role("button", name=way).click()
    assert "seed-7" in download.value.suggested_filename
    found: Path = download.value.path()
    return found


@pytest.mark.parametrize("view", LINKS)
@pytest.mark.parametrize("model", DATA)
def test_an_answer_is_saved_with_what_was_asked(
    visit: Open, ask: Ask, view: str, model: str
) -> None:
    page = visit(f"?view={view}&" + LINKS[view].format(model=model, **DATA[model]))
    page.locator(".saver:visible").wait_for()
    with Image.open(saved(page, "Save as PNG")) as picture:
        picture.load()  # its checksums too
        request = json.loads(picture.text["noneq.request"])  # type: ignore[attr-defined]
        assert np.ptp(np.asarray(picture.convert("L"))) > 0
    assert (request["model"], request["seed"]) == (model, 7)
    answer = ask(ROUTES[view], **request)
    array = np.load(saved(page, "npy"))
    with saved(page, "CSV").open(newline="") as file:
        heading, *rows = csv.reader(file)
    if view == "likelihood":
        bounds = [result["bound"] for result in answer["results"]]
        np.testing.assert_array_equal(array, bounds)
        assert [float(row[heading.index("bound")]) for row in rows] == bounds
        assert [row[heading.index("name")] for row in rows] == ["A", "B"]
    else:
        samples = answer["samples"] if view == "sample" else answer["results"][0]["samples"]
        np.testing.assert_array_equal(array, np.array(samples, array.dtype))
        assert array.dtype == (np.uint8 if model == "bit-patterns" else np.float32)
        assert np.array(rows, float).tolist() == np.array(samples, float).tolist()


def test_pictures_are_saved_as_arrays_of_their_shape(visit: Open, ask: Ask) -> None:
    page = visit("?view=sample&model=grey&num_samples=2&steps=4&seed=7")
    page.locator(".saver:visible").wait_for()
    sampler = {"name": "ancestral", "steps": 4}
    samples = ask("/sample", model="grey", num_samples=2, seed=7, sampler=sampler)["samples"]
    np.testing.assert_array_equal(np.load(saved(page, "npy")), np.array(samples, np.float32))


def test_what_is_no_latin_letter_is_escaped(visit: Open) -> None:
    script = """async () => {
      const { saver } = await import("./static/components/download.js");
      const made = saver();
      const canvas = document.createElement("canvas");
      const request = { label: "눈\\\\\\"" };
      made.offer({ name: "x-seed-7", request, canvas: async () => canvas, rows: [], array: {} });
      document.body.append(made.node);
    }"""
    page = visit()
    page.evaluate(script)
    with Image.open(saved(page, "Save as PNG")) as picture:
        assert json.loads(picture.text["noneq.request"]) == {"label": '눈\\"'}  # type: ignore[attr-defined]
