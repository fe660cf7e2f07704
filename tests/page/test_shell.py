"""The shell: languages, themes, keyboard, and what is shown where the service does not answer."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.page.conftest import Watch
from tests.service.http.command import running
from tests.service.test_problems import concrete

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

Open = Callable[..., "Page"]
Serve = Callable[..., AbstractContextManager[str]]

LINK = "?view=sample&model=grey&num_samples=2&sampler=ancestral&steps=4&seed=7"


def test_both_languages_have_the_same_texts(visit: Open) -> None:
    books = visit().evaluate("async () => (await import('./static/lib/i18n.js')).BOOKS")
    assert books["en"].keys() == books["ko"].keys()
    for key, text in books["en"].items():
        forms = [*text.values()] if isinstance(text, dict) else [text]
        names = {name for form in forms for name in re.findall(r"\{(\w+)\}", form)}
        translated = books["ko"][key]
        assert set(re.findall(r"\{(\w+)\}", str(translated))) - {"n"} == names - {"n"}, key
        same = key.startswith("sampler.") or key == "trust.nats"  # names, and a unit
        if re.search(r"[a-z]{4}", str(text)) and not same:
            assert re.search(r"[가-힣]", str(translated)), key


def test_every_problem_of_the_service_has_a_title(visit: Open) -> None:
    """What it says in detail stays in its own words."""
    books = visit().evaluate("async () => (await import('./static/lib/i18n.js')).BOOKS")
    assert {f"problem.{kind.slug}" for kind in concrete()} <= books["en"].keys()


def test_the_language_is_the_browsers_and_can_be_changed(visit: Open) -> None:
    page = visit(LINK, locale="ko-KR")
    page.locator(".told").wait_for()
    assert page.get_by_role("tab", name="표본").get_attribute("aria-selected") == "true"
    assert "시드 7" in page.locator(".told").inner_text()
    page.get_by_label("언어").select_option("en")
    assert page.locator("html").get_attribute("lang") == "en"
    assert "seed 7" in page.locator(".told").inner_text()  # what stands there follows
    assert page.get_by_role("tab", name="Sample").is_visible()
    page.reload()
    assert page.get_by_role("tab", name="Sample").is_visible()  # it was chosen


def test_nothing_can_be_opened_before_the_models_are_known(visit: Open) -> None:
    page = visit()
    held: list[Route] = []
    page.route("**/models", lambda route: held.append(route))
    with page.expect_request("**/models"):
        page.reload()
    box = page.get_by_role("tab", name="Repair").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.locator("[role=tab][aria-selected=true]").count() == 0
    held.pop().continue_()
    page.get_by_role("tab", name="Repair").click()
    page.locator("#panel-repair .bench").wait_for()


def test_the_theme_is_the_systems_and_can_be_changed(visit: Open) -> None:
    def ground(page: "Page") -> int:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    page = visit(color_scheme="dark")
    assert ground(page) < 150
    page.get_by_label("Colours").select_option("light")
    assert ground(page) > 600


def test_the_tabs_take_the_keyboard_alone(visit: Open) -> None:
    page = visit(LINK)
    page.locator(".told").wait_for()
    tabs = page.get_by_role("tab")
    names = tabs.all_inner_texts()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    for step in range(len(names) + 1):
        name = names[step % len(names)]
        assert page.evaluate("document.activeElement.textContent") == name
        selected = page.locator("[role=tab][aria-selected=true]")
        assert selected.all_inner_texts() == [name]
        assert page.locator("[role=tabpanel]:visible").count() == 1
        page.keyboard.press("ArrowRight")


def test_samples_are_drawn_and_scrubbed_by_the_keyboard_alone(visit: Open) -> None:
    page = visit("?model=grey")
    page.get_by_role("button", name="Draw samples").wait_for()

    def reach(what: str) -> None:
        for _ in range(30):
            if page.evaluate(f"document.activeElement.matches({what!r})"):
                return
            page.keyboard.press("Tab")
        pytest.fail(f"the keyboard does not reach {what}")

    reach("[name=num_samples]")
    page.keyboard.type("2")  # over what stood there: a field that is reached by Tab is selected
    reach("[name=seed]")
    page.keyboard.type("5")
    page.keyboard.press("Enter")
    page.locator(".told").wait_for()
    assert "seed=5" in page.url  # who types a seed means it
    assert page.locator(".gallery canvas").count() == 2
    reach(".player input[type=range]")
    page.keyboard.press("Home")
    assert page.locator(".player .caption").inner_text() == "t = 8"
    reach("[type=radio]")
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("radio", name="Estimate of x₀").is_checked()


def test_a_stopped_service_is_told(visit: Open, serve: Serve, watch: Watch) -> None:
    with serve() as at:
        page = visit("?model=grey", at=at)
        page.get_by_label("Steps").wait_for()
    page.get_by_role("button", name="Draw samples").click()
    alert = page.get_by_role("alert")
    alert.get_by_text("The service does not answer").wait_for()
    assert "make serve" in alert.inner_text()
    watch.faults.clear()  # the browser's own: connection refused


def test_a_service_that_dies_in_mid_run_is_told(visit: Open, folder: Path, watch: Watch) -> None:
    with running(folder) as (process, at, _):
        page = visit("?model=gaussian-mixture&num_samples=4096&steps=100&seed=1", at=at)
        page.wait_for_function("() => document.querySelector('progress')?.value > 0")
        process.kill()
        alert = page.get_by_role("alert")
        alert.get_by_text("The connection broke mid-answer").wait_for()
        assert "same seed" in alert.inner_text()
        assert not page.locator(".meter").is_visible()
    watch.faults.clear()  # the browser's own: connection reset


def test_what_failed_is_asked_again_as_it_was(visit: Open, watch: Watch) -> None:
    page = visit("?model=grey")
    page.get_by_label("Steps").fill("4")
    page.route("**/sample", lambda route: route.abort(), times=1)
    page.get_by_role("button", name="Draw samples").click()
    page.get_by_role("alert").get_by_text("The service does not answer").wait_for()
    link = page.url
    page.get_by_label("Steps").fill("2")  # not what had been asked
    page.get_by_role("button", name="Try again").click()
    page.locator(".told").wait_for()
    assert page.url == link
    assert page.get_by_label("Steps").input_value() == "4"
    assert (
        f"seed {link.partition('seed=')[2].partition('&')[0]}" in page.locator(".told").inner_text()
    )
    assert not page.get_by_role("alert").is_visible()
    watch.faults.clear()  # the browser's own: the request failed


def test_a_refusal_says_what_came_and_what_to_do(visit: Open, watch: Watch) -> None:
    page = visit(LINK.replace("steps=4", "steps=99"))
    alert = page.get_by_role("alert")
    alert.get_by_text("The request is not valid").wait_for()
    assert "8" in alert.inner_text()
    assert "99" in alert.inner_text()
    assert "What to do" in alert.inner_text()
    assert alert.get_by_role("button", name="Try again").count() == 0  # it would not help
    page.get_by_label("Model", exact=True).select_option("gaussian-mixture")
    assert not alert.is_visible()  # it was of another question
    watch.faults.clear()  # the browser's own: 422


def test_a_busy_service_is_asked_again(visit: Open, watch: Watch) -> None:
    page = visit("?model=grey")
    busy = {"type": "urn:noneq:problem:queue-full", "title": "The queue is full", "status": 503}

    def refuse(route: "Route") -> None:
        route.fulfill(
            status=503,
            json=busy,
            headers={"retry-after": "1"},
            content_type="application/problem+json",
        )

    page.route("**/sample", refuse, times=1)
    page.get_by_label("Steps").fill("4")
    page.get_by_role("button", name="Draw samples").click()
    page.get_by_text("trying again in 1 s").wait_for()
    page.locator(".told").wait_for()
    watch.faults.clear()  # the browser's own: 503


def test_a_key_is_asked_for_and_kept_for_the_tab(visit: Open, serve: Serve, watch: Watch) -> None:
    with serve(api_keys="open sesame") as at:
        page = visit(LINK, at=at)
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("API key").fill("wrong")
        dialog.get_by_role("button", name="Use it").click()
        page.get_by_role("dialog").get_by_label("API key").fill("open sesame")
        page.get_by_role("button", name="Use it").click()
        page.locator(".told").wait_for()
        page.reload()
        page.locator(".told").wait_for()  # not asked for again
        page.locator(".snippets summary").click()
        curl, script = page.locator(".snippets code").all_inner_texts()
        assert "-H 'Authorization: Bearer YOUR_API_KEY'" in curl
        assert 'api_key="YOUR_API_KEY"' in script
        assert "sesame" not in page.content()  # what is copied is shown to others
    watch.faults.clear()  # the browser's own: 401


@pytest.mark.parametrize("clipboard", [True, False])
def test_snippets_are_copied(visit: Open, clipboard: bool) -> None:
    page = visit(LINK)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".told").wait_for()
    if not clipboard:  # as where the page came by plain http from another computer
        page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.locator(".snippets summary").click()
    page.get_by_role("button", name="Copy").nth(1).click()
    page.get_by_role("button", name="Copied").wait_for()
    field = page.evaluate_handle(
        "() => document.body.appendChild(document.createElement('textarea'))"
    )
    field.as_element().focus()
    page.keyboard.press("Control+V")
    assert (
        field.evaluate("node => node.value") == page.locator(".snippets code").nth(1).inner_text()
    )


def test_the_card_tells_what_the_model_is(visit: Open) -> None:
    page = visit("?model=grey")
    handle = page.get_by_role("button", name="About this model")
    handle.click()
    card = page.locator("#card")
    card.get_by_text("closed form").wait_for()
    assert handle.get_attribute("aria-expanded") == "true"
    assert "linear-log-snr" in card.inner_text()
    assert "has not been evaluated" in card.inner_text()
    page.get_by_label("Model", exact=True).select_option("gaussian-mixture")
    card.get_by_text("GET /models/gaussian-mixture").wait_for()
    handle.click()
    assert not card.is_visible()


@pytest.mark.parametrize("model", ["grey", "bit-patterns", "gaussian-mixture"])
def test_nothing_leaves_a_narrow_screen(visit: Open, model: str) -> None:
    page = visit(LINK.replace("grey", model), viewport={"width": 320, "height": 740})
    page.locator(".told").wait_for()
    page.locator(".snippets summary").click()
    page.get_by_role("button", name="About this model").click()
    page.locator("#card dl").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    header = page.locator("header").bounding_box()
    assert header is not None
    assert header["height"] < 60  # one line


CUT = """async whole => {
  const { stream } = await import("./static/lib/api.js");
  const { fetch } = globalThis; // which the page itself may still need
  const bytes = new TextEncoder().encode(whole);
  const found = new Set();
  const ways = [...bytes].map((_, cut) => [bytes.slice(0, cut), bytes.slice(cut)]);
  ways.push([...bytes].map((byte) => Uint8Array.of(byte)));
  for (const parts of ways) {
    const answer = () => new Response(new ReadableStream({
      start(controller) {
        for (const part of parts) controller.enqueue(part);
        controller.close();
      },
    }));
    globalThis.fetch = async (path, ...more) =>
      String(path).endsWith("/cut") ? answer() : fetch(path, ...more);
    const told = [];
    for await (const event of stream("/cut", {})) told.push(event);
    found.add(JSON.stringify(told));
  }
  return [...found];
}"""


def test_a_stream_says_the_same_wherever_it_is_cut(visit: Open) -> None:
    page = visit()
    progress, result = {"step": 1}, {"samples": [[0.5, -1]], "note": "눈\u2028 \\n\\n"}
    events = [["progress", progress], ["result", result]]
    blocks = [
        f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n" for name, data in events
    ]
    whole = f"{blocks[0]}: still here\n\n{blocks[1]}"
    assert [json.loads(found) for found in page.evaluate(CUT, whole)] == [events]
