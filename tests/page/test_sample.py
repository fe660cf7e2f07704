"""The Sample view shows what the service answers, and its link repeats it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from fastapi import FastAPI

from tests.page.scoring import fields_of
from tests.service.http.caller import stepping
from tests.service.http.command import metrics

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

Open = Callable[..., "Page"]
Ask = Callable[..., dict[str, Any]]
Pixels = Callable[["Locator"], list[list[int]]]

LINK = "?view=sample&model=grey&num_samples=3&sampler=ancestral&steps=8&seed=7"


def wait(page: "Page") -> None:
    """Until an answer is shown."""
    page.locator(".told").wait_for()


def until(page: "Page", condition: Callable[[], bool]) -> None:
    """Wait, and let the page go on meanwhile."""
    for _ in range(600):
        if condition():
            return
        page.wait_for_timeout(50)
    pytest.fail("it did not come to that in thirty seconds")


def test_images_are_those_of_the_answer(visit: Open, ask: Ask, pixels: Pixels) -> None:
    page = visit("?model=grey")
    page.get_by_label("Number").fill("3")
    page.get_by_label("Steps").fill("8")
    page.get_by_role("button", name="Draw samples").click()
    wait(page)
    fields = fields_of(page)
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
    assert offered.all_inner_texts() == ["Ancestral"]  # bits have no other


def test_a_link_repeats_the_answer_and_history_goes_back(visit: Open, pixels: Pixels) -> None:
    page = visit(LINK)
    wait(page)
    first = pixels(page.locator(".gallery canvas").first)
    page.get_by_role("button", name="Draw samples").click()  # with another seed
    until(page, lambda: pixels(page.locator(".gallery canvas").first) != first)
    wait(page)
    other = pixels(page.locator(".gallery canvas").first)
    again = visit(urlsplit(page.url).query.join(["?", ""]))
    wait(again)
    assert pixels(again.locator(".gallery canvas").first) == other
    page.go_back()
    until(page, lambda: pixels(page.locator(".gallery canvas").first) == first)
    assert page.url.endswith(LINK)


def test_a_seed_that_is_kept_gives_the_same_again(visit: Open) -> None:
    page = visit(LINK)
    wait(page)
    page.get_by_label("Keep this seed").check()
    page.get_by_label("Number").fill("2")
    page.get_by_role("button", name="Draw samples").click()
    page.wait_for_function("() => location.search.includes('num_samples=2')")
    assert fields_of(page)["seed"] == "7"


def test_the_snippets_are_the_request(visit: Open) -> None:
    page = visit(LINK.replace("ancestral", "ddim") + "&eta=0.5")
    wait(page)
    page.locator(".snippets summary").click()
    curl, script = page.locator(".snippets code").all_inner_texts()
    sampler = '"sampler":{"name":"ddim","steps":8,"eta":0.5}'
    assert f'--json \'{{"num_samples":3,"model":"grey","seed":7,{sampler},"frames":8}}\'' in curl
    assert "Authorization" not in curl  # none is wanted here
    assert urlsplit(page.url).netloc + "/sample" in curl
    assert (
        'sample(3, model="grey", seed=7, sampler={"name": "ddim", "steps": 8, "eta": 0.5}, frames=8'
        in script
    )
    compile(script, "snippet", "exec")


def places(page: "Page") -> np.ndarray:
    """Where the dots of the plot stand on the screen, [n, 2]."""
    path = page.locator(".plot .dots").get_attribute("d") or ""
    return np.array([[float(part) for part in dot.split()] for dot in path[1:-2].split("h0M")])


def drawn_from(shown: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The scales, pixels a unit, at which points were drawn; they lie where they should."""
    scales = []
    for axis in (0, 1):
        line = np.poly1d(np.polyfit(points[:, axis], shown[:, axis], 1))
        assert np.abs(line(points[:, axis]) - shown[:, axis]).max() < 0.011  # two decimals are told
        scales.append(line.coef[0])
    return np.array(scales)


def test_points_stand_where_the_answer_has_them(visit: Open, ask: Ask) -> None:
    page = visit("?model=gaussian-mixture&num_samples=30&steps=40&seed=3")
    wait(page)
    sampler = {"name": "ancestral", "steps": 40}
    answer = ask("/sample", model="gaussian-mixture", num_samples=30, seed=3, sampler=sampler)
    across, down = drawn_from(places(page), np.array(answer["samples"]))
    assert across > 0
    assert np.isclose(down, -across, rtol=1e-3)  # one scale; the screen's second axis points down


def scrub(page: "Page", *keys: str) -> None:
    """Move the slider by the keyboard alone."""
    page.locator(".player input[type=range]").focus()
    for key in keys:
        page.keyboard.press(key)


def test_the_trajectory_of_points_has_arrows_towards_their_estimates(visit: Open, ask: Ask) -> None:
    page = visit("?model=gaussian-mixture&num_samples=20&steps=10&seed=3")
    wait(page)
    sampler = {"name": "ancestral", "steps": 10}
    asked = {"model": "gaussian-mixture", "num_samples": 20, "seed": 3, "sampler": sampler}
    states = ask("/sample", **asked, frames=10)["trajectory"]
    at_data = drawn_from(places(page), np.array(states["x"][-1]))
    assert page.locator(".plot .arrows").count() == 0  # the chain has ended
    scrub(page, "Home", "ArrowRight")
    assert page.locator(".player .caption").inner_text() == f"t = {states['t'][1]}"
    shown = places(page)
    scales = drawn_from(shown, np.array(states["x"][1]))
    assert np.allclose(scales, at_data, rtol=1e-3)  # the axes stay as they are
    path = page.locator(".plot .arrows").get_attribute("d") or ""
    shafts = [part.split("M")[0].split("L") for part in path[1:].split("M")[::2]]
    ways = np.array([[[float(x) for x in end.split()] for end in shaft] for shaft in shafts])
    assert len(ways) == 20
    toward = (np.array(states["x_0"][1]) - np.array(states["x"][1])) * scales
    drift = ways[:, 1] - ways[:, 0]
    across = drift[:, 0] * toward[:, 1] - drift[:, 1] * toward[:, 0]
    assert ((drift * toward).sum(1) > 0).all()
    # An end is told to a tenth of a pixel, .05 off at most: so far may the longest miss its way.
    assert np.abs(across / np.linalg.norm(toward, axis=1)).max() < 0.15
    page.get_by_role("radio", name="Estimate of x₀").check()
    assert np.allclose(drawn_from(places(page), np.array(states["x_0"][1])), scales, rtol=1e-3)
    assert page.locator(".plot .arrows").count() == 0


def test_the_trajectory_of_images_shows_states_and_estimates(
    visit: Open, ask: Ask, pixels: Pixels
) -> None:
    page = visit(LINK)
    wait(page)
    sampler = {"name": "ancestral", "steps": 8}
    asked = {"model": "grey", "num_samples": 3, "seed": 7, "sampler": sampler}
    states = ask("/sample", **asked, frames=8)["trajectory"]
    scrub(page, "ArrowLeft", "ArrowLeft")
    slider = page.locator(".player input[type=range]")
    assert slider.get_attribute("aria-valuetext") == f"t = {states['t'][-3]}"
    for name, label in (("x", "State"), ("x_0", "Estimate of x₀")):
        page.get_by_role("radio", name=label).check()
        shown = [pixels(canvas) for canvas in page.locator(".gallery canvas").all()]
        expected = np.clip(np.array(states[name][-3])[:, 0], 0, 255)
        assert np.abs(np.array(shown) - expected).max() <= 0.5  # rounded


def test_the_trajectory_of_bits_shows_probabilities(visit: Open, ask: Ask, pixels: Pixels) -> None:
    page = visit("?model=bit-patterns&num_samples=5&steps=10&seed=3")
    wait(page)
    sampler = {"name": "ancestral", "steps": 10}
    asked = {"model": "bit-patterns", "num_samples": 5, "seed": 3, "sampler": sampler}
    states = ask("/sample", **asked, frames=10)["trajectory"]
    scrub(page, "Home", "ArrowRight", "ArrowRight", "ArrowRight")
    raster = page.locator("canvas.raster")
    assert np.array_equal(np.array(pixels(raster)) / 255, states["x"][3])
    page.get_by_role("radio", name="Estimate of x₀").check()
    assert np.abs(np.array(pixels(raster)) - 255 * np.array(states["x_0"][3])).max() <= 0.5


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_play_shows_the_frames_in_turn(visit: Open, motion: str) -> None:
    """All nine of eight steps; one a second for who asked for less motion."""
    page = visit(LINK, reduced_motion=motion)
    wait(page)
    page.clock.install()
    page.evaluate(WATCH_SLIDER)
    page.get_by_role("button", name="Play").click()
    assert page.get_by_role("button", name="Pause").is_visible()
    page.clock.run_for(4100)
    early = page.evaluate("seen.length")
    assert early >= 8 if motion == "no-preference" else early <= 5
    page.clock.run_for(5000)
    page.get_by_role("button", name="Play").wait_for()
    assert page.locator(".player .caption").inner_text() == "t = 0"
    seen = page.evaluate("seen")
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == 9


WATCH_SLIDER = """() => {
  globalThis.seen = [];
  const told = document.querySelector(".player .caption");
  const note = () => seen.push(Number(told.textContent.slice("t = ".length)));
  new MutationObserver(note).observe(told, { childList: true });
}"""


def test_large_answers_come_without_a_trajectory(visit: Open) -> None:
    page = visit("?model=grey&num_samples=900&steps=5&seed=1")
    wait(page)
    assert page.locator(".gallery canvas").count() == 900
    assert not page.locator(".player").is_visible()


def test_cancel_frees_the_rows(visit: Open, app: FastAPI, url: str) -> None:
    """Long before its hundred steps are made: the network makes no more than those let pass."""
    left = 'noneq_requests_total{outcome="client-left",route="/sample"}'
    with stepping(app) as go:
        page = visit("?model=gaussian-mixture&num_samples=51&steps=100&seed=1")
        go.release(10)
        page.wait_for_function("() => document.querySelector('progress')?.value > 0")
        before = metrics(url)
        assert before["noneq_rows_running"] == 51
        page.get_by_role("button", name="Cancel").click()
        until(page, lambda: metrics(url).get(left, 0) == before.get(left, 0) + 1)
        go.release(2)  # the engine learns of it between two steps
        until(page, lambda: metrics(url)["noneq_rows_running"] == 0)
    page.get_by_text("Cancelled.").wait_for()
    assert not page.locator(".meter").is_visible()


@pytest.mark.parametrize("model", ["grey", "bit-patterns", "gaussian-mixture"])
def test_a_picture_is_saved(visit: Open, model: str) -> None:
    page = visit(f"?model={model}&num_samples=2&steps=4&seed=1")
    wait(page)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as PNG").click()
    assert saved.value.suggested_filename == f"{model}-seed-1.png"
    assert saved.value.path().read_bytes().startswith(b"\x89PNG")
