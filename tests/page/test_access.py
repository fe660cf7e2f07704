"""Whoever does not see the page, or not its colours, can use it: axe-core finds nothing amiss."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.page.conftest import Watch

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is missing")

if TYPE_CHECKING:
    from playwright.sync_api import Page

Open = Callable[..., "Page"]

DATA = {"bit-patterns": "1000.0011", "gaussian-mixture": "0.5,1;2,-3"}


def assert_accessible(page: "Page") -> None:
    """What is shown breaks no rule of WCAG 2.2 AA, nor a best practice of axe's."""
    found = axe.Axe().run(page)
    told = [
        f"{rule['id']}: {rule['help']}\n  {node['html']}\n  {node['failureSummary']}"
        for rule in found.response["violations"]
        for node in rule["nodes"]
    ]
    assert not told, "\n".join(told)


@pytest.mark.parametrize(
    ("model", "scheme"),
    [("grey", "light"), ("bit-patterns", "dark"), ("gaussian-mixture", "light")],
)
def test_samples(visit: Open, model: str, scheme: str) -> None:
    link = f"?view=sample&model={model}&num_samples=3&steps=4&seed=7"
    page = visit(link, color_scheme=scheme)
    page.locator(".told").wait_for()
    page.locator(".snippets summary").click()
    page.get_by_role("button", name="About this model").click()
    page.locator("#card dl").wait_for()
    assert_accessible(page)


@pytest.mark.parametrize(
    ("model", "scheme"), [("bit-patterns", "light"), ("gaussian-mixture", "dark")]
)
def test_likelihoods(visit: Open, model: str, scheme: str) -> None:
    link = f"?view=likelihood&model={model}&by=all&seed=3&data={DATA[model]}"
    page = visit(link, color_scheme=scheme)
    page.locator(".verdict").first.wait_for()
    page.locator(".snippets summary").click()
    page.get_by_text("How it is estimated").click()
    assert_accessible(page)


@pytest.mark.parametrize(
    ("model", "scheme"),
    [("grey", "dark"), ("bit-patterns", "light"), ("gaussian-mixture", "dark")],
)
def test_repairs(visit: Open, model: str, scheme: str) -> None:
    page = visit(f"?view=repair&model={model}", color_scheme=scheme)
    page.get_by_label("Product (2015)").check()
    page.get_by_text("Number, particles, steps, seed").click()
    for name, value in {"num_samples": "3", "particles": "4", "steps": "6"}.items():
        page.locator(f"#panel-repair form [name={name}]").fill(value)
    page.locator(".primary[form=repair]:enabled").click()
    page.locator("#panel-repair .snippets summary").click()
    assert_accessible(page)


def test_a_canvas_in_korean_on_a_narrow_screen(visit: Open) -> None:
    small = {"width": 360, "height": 740}
    page = visit("?view=likelihood&model=grey", locale="ko-KR", viewport=small)
    page.locator("canvas.sketch").wait_for()
    assert_accessible(page)


def test_a_refusal(visit: Open, watch: Watch) -> None:
    page = visit("?model=grey&num_samples=3&steps=99&seed=7")
    page.get_by_role("alert").get_by_text("The request is not valid").wait_for()
    assert_accessible(page)
    watch.faults.clear()  # the browser's own: 422
