"""The Likelihood view: data made in the browser are scored as the service scores them."""

import base64
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.page.conftest import Watch
from tests.page.scoring import GREYS, QUANTILES, fields_of, figures, measured, pictures, score

if TYPE_CHECKING:
    from playwright.sync_api import Page

Open = Callable[..., "Page"]
Ask = Callable[..., dict[str, Any]]

SEVEN = [(0.3, 0.3), (0.6, 0.3), (0.5, 0.5), (0.45, 0.7)]  # of the canvas' width and height


@pytest.fixture(scope="session")
def url(scoring_url: str) -> str:
    return scoring_url


def assert_shown(page: "Page", answer: dict[str, Any]) -> None:
    """The figures are the answer's, as far as they are written out."""
    shown = figures(page)
    assert len(shown) == len(answer["results"])
    for text, result in zip(shown, answer["results"], strict=True):
        places = len(text.partition(".")[2])
        value = float(text.replace("−", "-").replace(",", ""))
        assert value == pytest.approx(result["bits_per_dim"], abs=0.51 * 10**-places)


def draw(page: "Page", points: list[tuple[float, float]]) -> None:
    """A stroke of the mouse."""
    box = page.locator("canvas.sketch").bounding_box()
    assert box is not None
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*at[0])
    page.mouse.down()
    for x, y in at[1:]:
        page.mouse.move(x, y, steps=5)
    page.mouse.up()


def test_a_drawn_digit_is_scored_and_so_is_it_upside_down(visit: Open, ask: Ask) -> None:
    page = visit("?view=likelihood&model=digits")
    page.locator("canvas.sketch").wait_for()
    assert page.get_by_role("button", name="How likely?").is_disabled()  # nothing is drawn yet
    draw(page, SEVEN)
    page.get_by_role("button", name="Add it upside down").click()
    score(page)
    seven, turned = pictures(page, (1, 28, 28))
    assert (turned == seven[:, ::-1, ::-1]).all()
    rows, columns = np.nonzero(seven[0] > 32)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == pytest.approx(20, abs=1)  # MNIST's own size
    mass = seven[0] / seven[0].sum(dtype=float)
    centre = [(mass.sum(axis) * (np.arange(28) + 0.5)).sum() for axis in (0, 1)]
    assert centre == pytest.approx([14, 14], abs=0.3)
    assert np.unique(seven).size > 10  # edges are soft
    data, seed = [seven.tolist(), turned.tolist()], int(fields_of(page)["seed"])
    assert_shown(page, ask("/loglik", model="digits", data=data, seed=seed))


def test_strokes_are_taken_back_and_what_is_drawn_elsewhere_stays_there(visit: Open) -> None:
    page = visit("?view=likelihood&model=digits")
    page.get_by_label("Size and centre").uncheck()
    draw(page, [(0.1, 0.1), (0.3, 0.1)])
    draw(page, [(0.1, 0.9), (0.9, 0.9)])
    page.get_by_role("button", name="Undo").click()
    score(page)
    (drawn,) = pictures(page, (1, 28, 28))
    assert drawn[0, :6].any()
    assert not drawn[0, 6:].any()
    page.get_by_role("button", name="Undo").click()
    assert page.locator(".tray li").count() == 0
    assert page.get_by_text("have changed since").is_visible()


def test_the_keyboard_draws(visit: Open) -> None:
    page = visit("?view=likelihood&model=grey")
    canvas = page.locator("canvas.sketch")
    canvas.focus()
    page.keyboard.press("Home")  # of no meaning here, and of no harm
    for key in ["ArrowLeft"] * 9 + ["ArrowUp"] * 9 + [" "] + ["ArrowRight"] * 3 + [" "]:
        page.keyboard.press(key)
    score(page)
    (drawn,) = pictures(page, (1, 6, 8))
    assert drawn[0, 0, :4].min() > 100
    assert not drawn[0, 3:].any()


def test_bits_are_toggled_by_keyboard(visit: Open, ask: Ask) -> None:
    page = visit("?view=likelihood&model=bit-patterns")
    page.get_by_role("button", name="Bit 1", exact=True).focus()
    typed = "0101"
    page.keyboard.type(typed)
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    page.get_by_role("button", name="Add its complement").click()
    score(page)
    wanted = [1, *map(int, typed[1:])]
    data = [wanted, [1 - bit for bit in wanted]]
    assert fields_of(page)["data"] == ".".join("".join(map(str, x)) for x in data)
    answer = ask("/loglik", model="bit-patterns", data=data, seed=int(fields_of(page)["seed"]))
    assert_shown(page, answer)


def test_points_are_put_by_mouse_and_typed_and_mapped(visit: Open, ask: Ask) -> None:
    page = visit("?view=likelihood&model=gaussian-mixture")
    box = page.locator(".chart svg").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.get_by_label("First").fill("0.5")
    page.get_by_label("Second").fill("-1.25")
    page.get_by_role("button", name="Add the point").click()
    score(page)
    data = [[float(value) for value in x.split(",")] for x in fields_of(page)["data"].split(";")]
    assert data[1] == [0.5, -1.25]
    seed = int(fields_of(page)["seed"])
    assert_shown(page, ask("/loglik", model="gaussian-mixture", data=data, seed=seed))
    page.get_by_role("button", name="Map the density").click()
    page.locator(".map image").wait_for(state="attached")
    again = visit("?" + urlsplit(page.url).query)
    again.locator(".map image").wait_for(state="attached")
    again.locator(".verdict").nth(1).wait_for()
    assert figures(again) == figures(page)
    score(again)
    assert fields_of(again)["map"] == "1"  # the map stays


def test_the_map_shades_the_densest_quarter_by_all_steps(visit: Open) -> None:
    page = visit("?view=likelihood&model=gaussian-mixture")
    button = page.get_by_role("button", name="Map the density")
    with page.expect_request("**/loglik") as sent:
        button.click()
    asked = sent.value.post_data_json
    assert not asked.keys() & {"steps", "terms"}
    image = page.locator(".map image")
    image.wait_for(state="attached")
    png = image.get_attribute("href").partition(",")[2]
    alpha = np.asarray(Image.open(BytesIO(base64.b64decode(png))))[..., 3] / 255
    assert alpha.max() > 0.99
    assert 0.15 < (alpha > 0).mean() <= 0.26
    data = np.array(asked["data"])
    assert len(data) == alpha.size
    # Three modes of closed form, data units (tests/service/http/conftest.py).
    shaded = data[alpha.ravel() > 0.5]
    modes = np.array([[-1.0, -0.6], [0.9, -0.2], [0.1, 1.1]]) * 2 + [1, -2]
    apart = np.linalg.norm(shaded[:, None] - modes, axis=-1).min(1)
    assert apart.max() < 2  # three deviations of the widest
    assert len({np.linalg.norm(x - modes, axis=-1).argmin() for x in shaded}) == 3


def test_where_an_example_stands_is_the_services_word(visit: Open, ask: Ask) -> None:
    link = "?view=likelihood&model=bit-patterns&by=all&seed=3&data=1000.0011"
    page = visit(link)
    page.locator(".verdict").first.wait_for()
    data = [[1, 0, 0, 0], [0, 0, 1, 1]]
    results = ask("/loglik", model="bit-patterns", data=data, seed=3)["results"]
    assert len({result["rarer_than"] for result in results}) == 2
    for result, text in zip(results, page.locator(".place").all_inner_texts(), strict=True):
        share = result["rarer_than"]
        if share in (0, 1):
            assert "all the held-out data" in text
        else:
            percent = f"{100 * max(share, 1 - share):.1f}".removesuffix(".0")
            assert (
                text
                == f"{'Rarer' if share >= 0.5 else 'Likelier'} than {percent}% of held-out data"
            )
    assert page.locator(".flag").count() == 2
    assert page.locator(".bars").count() == 1


def test_the_page_and_the_artefact_agree_on_shares(visit: Open) -> None:
    evaluation = measured()[1].evaluation[0]
    bounds = [*np.linspace(-13, 1, 57).tolist(), QUANTILES[0], QUANTILES[7], QUANTILES[-1]]
    script = """async ([quantiles, bounds]) => {
      const { shareAbove } = await import("./static/components/loglik-plots.js");
      return bounds.map((nats) => shareAbove(quantiles, nats));
    }"""
    found = visit().evaluate(script, [QUANTILES, bounds])
    assert found == pytest.approx([evaluation.rarer_than(bound) for bound in bounds])


def test_a_link_repeats_the_answer_in_korean(visit: Open) -> None:
    page = visit("?view=likelihood&model=grey")
    page.get_by_role("button", name="Held-out example 2").click()
    page.get_by_role("button", name="Add it mirrored").click()
    page.get_by_text("How it is estimated").click()
    page.get_by_label("Terms of the bound").select_option("trajectories")
    page.locator("input[name=trajectories]").fill("5")
    score(page)
    shown = figures(page)
    again = visit("?" + urlsplit(page.url).query, locale="ko-KR")
    again.locator(".verdict").first.wait_for()
    assert figures(again) == shown
    assert again.get_by_role("tab", name="가능도").get_attribute("aria-selected") == "true"
    assert "비트/차원" in again.locator(".verdict").first.inner_text()
    assert pictures(again, (1, 6, 8))[0].tolist() == GREYS[1].tolist()


def test_what_was_begun_stays_while_another_tab_is_open(visit: Open) -> None:
    page = visit("?view=likelihood&model=bit-patterns&by=all&seed=3&data=1000")
    page.locator(".verdict").first.wait_for()
    page.get_by_role("button", name="Add its complement").click()
    page.get_by_role("tab", name="Sample").click()
    page.get_by_role("tab", name="Likelihood").click()
    assert page.locator(".tray li").count() == 2
    score(page)
    page.go_back()
    page.go_back()
    page.go_back()
    page.wait_for_function("() => location.search.endsWith('data=1000')")
    page.wait_for_function("() => document.querySelectorAll('.verdict').length === 1")


def test_a_refusal_is_told(visit: Open, watch: Watch) -> None:
    page = visit(
        "?view=likelihood&model=bit-patterns&by=target_error&target_error=1&seed=3&data=1000"
    )
    alert = page.get_by_role("alert")
    alert.get_by_text("The request is not valid").wait_for()
    assert "profile" in alert.inner_text()
    watch.faults.clear()  # the browser's own: 422
    page.goto(page.url.replace("data=1000", "data=0123"))
    page.get_by_role("alert").get_by_text("The link's data cannot be read").wait_for()
