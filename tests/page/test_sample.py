"""The Sample view shows what the service answers, and its link repeats it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

Open = Callable[..., "Page"]
Ask = Callable[..., dict[str, Any]]
Pixels = Callable[["Locator"], list[list[int]]]

LINK = "?view=sample&model=grey&num_samples=3&sampler=ancestral&steps=8&seed=7"


def asked_of(page: "Page") -> dict[str, str]:
    """The fields of a page's link."""
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def wait(page: "Page") -> None:
    """Until an answer is shown."""
    page.locator(".told").wait_for()


def test_images_are_those_of_the_answer(visit: Open, ask: Ask, pixels: Pixels) -> None:
    page = visit("?model=grey")
    page.get_by_label("Number").fill("3")
    page.get_by_label("Steps").fill("8")
    page.get_by_role("button", name="Draw samples").click()
    wait(page)
    fields = asked_of(page)
    assert fields["view"] == "sample"
    sampler = {"name": fields["sampler"], "steps": int(fields["steps"])}
    answer = ask("/sample", model="grey", num_samples=3, seed=int(fields["seed"]), sampler=sampler)
    shown = page.locator(".gallery canvas").all()
    assert [pixels(canvas) for canvas in shown] == [image[0] for image in answer["samples"]]
    assert f"seed {fields['seed']}" in page.locator(".told").inner_text()


def test_bits_are_those_of_the_answer(visit: Open, ask: Ask, pixels: Pixels) -> None:
    page = visit("?model=bit-patterns&num_samples=5&steps=40&seed=3")
    wait(page)
    sampler = {"name": "ancestral", "steps": 40}
    answer = ask("/sample", model="bit-patterns", num_samples=5, seed=3, sampler=sampler)
    shown = pixels(page.locator("canvas.raster"))
    assert [[bit // 255 for bit in row] for row in shown] == answer["samples"]
    offered = page.get_by_label("Sampler").locator("option:not([disabled])")
    assert offered.all_inner_texts() == ["Ancestral (the model's own)"]  # bits have no other


def test_a_link_repeats_the_answer_and_history_goes_back(visit: Open, pixels: Pixels) -> None:
    page = visit(LINK)
    wait(page)
    first = pixels(page.locator(".gallery canvas").first)
    page.get_by_role("button", name="Draw samples").click()  # with another seed
    page.wait_for_function("() => !location.search.includes('seed=7')")
    wait(page)
    other = pixels(page.locator(".gallery canvas").first)
    assert other != first
    again = visit(urlsplit(page.url).query.join(["?", ""]))
    wait(again)
    assert pixels(again.locator(".gallery canvas").first) == other
    page.go_back()
    wait(page)
    assert page.url.endswith(LINK)
    assert pixels(page.locator(".gallery canvas").first) == first


def test_a_seed_that_is_kept_gives_the_same_again(visit: Open) -> None:
    page = visit(LINK)
    wait(page)
    page.get_by_label("Keep this seed").check()
    page.get_by_label("Number").fill("2")
    page.get_by_role("button", name="Draw samples").click()
    page.wait_for_function("() => location.search.includes('num_samples=2')")
    assert asked_of(page)["seed"] == "7"


def test_the_snippets_are_the_request(visit: Open) -> None:
    page = visit(LINK.replace("ancestral", "ddim") + "&eta=0.5")
    wait(page)
    page.locator(".snippets summary").click()
    curl, script = page.locator(".snippets code").all_inner_texts()
    sampler = '"sampler":{"name":"ddim","steps":8,"eta":0.5}'
    assert f'--json \'{{"num_samples":3,"model":"grey","seed":7,{sampler}}}\'' in curl
    assert urlsplit(page.url).netloc + "/sample" in curl
    assert (
        'sample(3, model="grey", seed=7, sampler={"name": "ddim", "steps": 8, "eta": 0.5})'
        in script
    )
    compile(script, "snippet", "exec")


def test_points_stand_where_the_answer_has_them(visit: Open, ask: Ask) -> None:
    page = visit("?model=gaussian-mixture&num_samples=30&steps=40&seed=3")
    wait(page)
    sampler = {"name": "ancestral", "steps": 40}
    answer = ask("/sample", model="gaussian-mixture", num_samples=30, seed=3, sampler=sampler)
    path = page.locator(".plot .dots").get_attribute("d")
    shown = np.array([[float(part) for part in dot.split()] for dot in path[1:-2].split("h0M")])
    points = np.array(answer["samples"])
    for axis, sign in ((0, 1), (1, -1)):  # the screen's second axis points down
        line = np.poly1d(np.polyfit(points[:, axis], shown[:, axis], 1))
        assert line.coef[0] * sign > 0
        assert np.abs(line(points[:, axis]) - shown[:, axis]).max() < 0.011  # two decimals are told


@pytest.mark.parametrize("model", ["grey", "bit-patterns", "gaussian-mixture"])
def test_a_picture_is_saved(visit: Open, model: str) -> None:
    page = visit(f"?model={model}&num_samples=2&steps=4&seed=1")
    wait(page)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as PNG").click()
    assert saved.value.suggested_filename == f"{model}.png"
    assert saved.value.path().read_bytes().startswith(b"\x89PNG")
