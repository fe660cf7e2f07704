"""The page says how things stand: what is in view, what is old, what was refused, what is down."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

from tests.page.conftest import Watch

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Route

Open = Callable[..., "Page"]
Ask = Callable[..., dict[str, Any]]
Serve = Callable[..., AbstractContextManager[str]]

PHONE = {"width": 390, "height": 844}


def in_view(place: "Locator") -> bool:
    """Whether the beginning of an element is on the screen."""
    box = place.bounding_box()
    return box is not None and 0 <= box["y"] < PHONE["height"] - 40


@pytest.mark.parametrize(
    ("view", "model", "route", "answer"),
    [
        ("sample", "grey", "**/sample", ".stage"),
        ("likelihood", "bit-patterns", "**/loglik", ".verdict"),
        ("repair", "gaussian-mixture", "**/posterior", ".completions"),
    ],
)
def test_progress_and_answer_come_into_view_on_a_phone(
    visit: Open, view: str, model: str, route: str, answer: str
) -> None:
    more = "&data=1000.0011&by=all" if view == "likelihood" else ""
    page = visit(f"?view={view}&model={model}{more}", viewport=PHONE, reduced_motion="reduce")
    panel = page.locator(f"#panel-{view}")
    run = panel.locator(".primary:enabled")
    held: list[Route] = []
    page.route(route, lambda each: held.append(each))
    with page.expect_request(route):
        run.click()
    bar = panel.locator(".meter:visible")
    bar.wait_for()
    page.wait_for_timeout(100)
    assert in_view(bar)
    held.pop().continue_()
    panel.locator(".snippets:visible").wait_for()
    assert in_view(panel.locator(answer).first)


def test_what_a_classifier_reads_is_a_line(visit: Open) -> None:
    script = """async () => {
      const { column } = await import("./static/components/posterior-result.js");
      const model = { name: "m", kind: "bits", shape: [4], classifiers: [] };
      const evidence = { log_evidence: -1368.73, log_evidence_error: 51.82 };
      const told = { particles: 2, systems: 2, ess: 1, ancestors: 1, start: null, ...evidence,
                     warning: "Of the service." };
      const labels = { "a longer name": 0.505, another: 0.483, third: 0.0123 };
      const x = [0, 1, 0, 1];
      const found = { samples: [x], mean: x, std: null, labels, diagnostics: told };
      const answer = {
        results: [found], method: "twisted", biased: false, sampler: { steps: 4 }, seed: 7,
        network_evaluations: 4,
      };
      const look = { known: [1, 0, 0, 0], block: 1, noise: 0 };
      const shown = column("twisted", model, { y: x, look, prior: null });
      shown.show({ answer, seconds: 1 }, {});
      const place = document.getElementById("panel-repair");
      place.append(shown.node);
      shown.node.style.width = "200px";
      const line = parseFloat(getComputedStyle(shown.node).lineHeight);
      return [...shown.node.querySelectorAll(".trust dt")].map((name) => name.offsetHeight / line);
    }"""
    page = visit("?view=repair&model=bit-patterns")
    page.locator(".primary[form=repair]:enabled").wait_for()
    heights = page.evaluate(script)
    assert 0 < min(heights) <= max(heights) < 1.5
    assert page.get_by_text("Of the service.").is_visible()


def test_what_is_not_typical_is_told(visit: Open) -> None:
    script = """async () => {
      const { verdicts } = await import("./static/components/loglik-result.js");
      const nats = { bound: -2, standard_error: 0.1, bits: -3, bits_per_dim: 0.7 };
      const parts = { prior: 0, steps: -1, last: -1, gain: 0 };
      const whole = { ...nats, parts, relative_to_prior: 1, rarer_than: 0.001 };
      const none = { ...whole, bound: null, reason: "It is too far out." };
      const results = [{ ...whole, typicality: 0.004 }, { ...whole, typicality: 0.5 }, whole, none];
      const model = { kind: "bits", shape: [4] };
      document.body.append(verdicts(results.map(() => [0, 1, 0, 1]), model, results, null));
    }"""
    page = visit()
    page.evaluate(script)
    told = page.locator(".verdict").all_inner_texts()
    assert "Unlike held-out data: at most 0.4%" in told[0]
    assert "Like held-out data: 50%" in told[1]
    assert "ike held-out data" not in told[2]
    assert "It is too far out." in told[3]


def test_a_link_to_an_unknown_model_says_so_and_asks_nothing(visit: Open) -> None:
    page = visit()
    asked: list[str] = []
    page.on("request", lambda each: asked.append(each.method))
    page.goto(page.url.split("?")[0] + "?view=sample&model=nosuch&num_samples=2&seed=7")
    alert = page.get_by_role("alert").filter(has_text="not served here")
    alert.wait_for()
    assert "nosuch" in alert.inner_text()
    assert "gaussian-mixture" in alert.inner_text()  # one that is
    assert "POST" not in asked
    page.get_by_label("Model", exact=True).select_option("bit-patterns")
    assert not alert.is_visible()


def test_a_refused_key_is_called_so_and_can_be_given_again(
    visit: Open, serve: Serve, watch: Watch
) -> None:
    with serve(api_keys="open sesame") as at:
        page = visit("?view=sample&model=grey&num_samples=2&steps=4&seed=7", at=at)
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("API key").wait_for()
        assert "refused" not in dialog.inner_text()
        dialog.get_by_label("API key").fill("wrong")
        dialog.get_by_role("button", name="Use it").click()
        dialog.get_by_text("refused that key").wait_for()
        dialog.get_by_role("button", name="Cancel").click()
        alert = page.get_by_role("alert").filter(has_text="refused the API key")
        alert.wait_for()
        assert "needs an API key" in page.locator("footer .status").inner_text()
        page.wait_for_timeout(200)
        assert page.get_by_role("dialog").count() == 0  # not again without being asked
        alert.get_by_role("button", name="Try again").click()
        dialog.get_by_label("API key").fill("open sesame")
        dialog.get_by_role("button", name="Use it").click()
        page.locator(".told").wait_for()
    watch.faults.clear()  # the browser's own: 401


def test_the_line_at_the_foot_follows_the_service(visit: Open, watch: Watch) -> None:
    page = visit("?view=repair&model=gaussian-mixture")
    run = page.locator(".primary[form=repair]:enabled")
    run.wait_for()
    status = page.locator("footer .status")
    assert "Ready" in status.inner_text()
    page.route("**/*", lambda each: each.abort())
    run.click()
    alert = page.locator("#panel-repair").get_by_role("alert").filter(has_text="does not answer")
    alert.wait_for()
    status.get_by_text("does not answer").wait_for()
    page.unroute("**/*")
    status.get_by_text("Ready").wait_for()  # by itself
    alert.get_by_role("button", name="Try again").click()
    page.locator("#panel-repair .snippets:visible").wait_for()
    watch.faults.clear()  # the browser's own: the requests failed


def test_completions_of_something_else_are_called_old(visit: Open) -> None:
    page = visit(
        "?view=repair&model=bit-patterns&methods=product&num_samples=3&steps=4&seed=7"
        "&x=1000&seen=1100"
    )
    page.locator("#panel-repair .snippets:visible").wait_for()
    old = page.get_by_text("have changed since")
    assert not old.is_visible()
    page.locator(".bit").first.click()
    old.wait_for()
    for _ in range(2):  # back to where it was
        page.locator(".bit").first.click()
    old.wait_for(state="hidden")


@pytest.mark.parametrize("view", ["repair", "likelihood"])
def test_nothing_of_another_model_stays(visit: Open, watch: Watch, view: str) -> None:
    asked = "data=1000" if view == "likelihood" else "x=1000&seen=1100&methods=product&steps=4"
    page = visit(f"?view={view}&model=bit-patterns&by=all&seed=7&{asked}")
    panel = page.locator(f"#panel-{view}")
    panel.locator(".snippets:visible").wait_for()
    page.route("**/examples?*", lambda each: each.abort())
    page.get_by_label("Model", exact=True).select_option("gaussian-mixture")
    alert = panel.get_by_role("alert").filter(has_text="does not answer")
    alert.wait_for()
    assert panel.locator(".verdict, .completions, .bit").count() == 0
    page.unroute("**/examples?*")
    alert.get_by_role("button", name="Try again").click()
    panel.locator(".chart, .coordinate").first.wait_for()
    assert not alert.is_visible()
    watch.faults.clear()  # the browser's own: the request failed
