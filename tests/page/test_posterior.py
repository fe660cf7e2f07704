"""The Repair view: what is hidden is drawn by the methods asked for, and what is seen stays."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.page.conftest import Watch
from tests.page.scoring import fields_of

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Request, Route

Open = Callable[..., "Page"]
Ask = Callable[..., dict[str, Any]]
Pixels = Callable[["Locator"], list[list[int]]]
Bits = NDArray[np.int64]

START = "?view=repair&model="
CHANNEL = """(canvas, channel) => {
  const { width, height } = canvas;
  const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, width, height);
  const row = (i) => Array.from({ length: width }, (_, j) => data[4 * (i * width + j) + channel]);
  return Array.from({ length: height }, (_, i) => row(i));
}"""


def opaque(canvas: "Locator") -> Bits:
    """Which pixels of a canvas are not transparent, [H, W] of 0 and 1."""
    return np.array(canvas.evaluate(CHANNEL, 3)) // 255


def begin(visit: Open, model: str, query: str = "", **settings: str) -> "Page":
    """The view of a model, with an example at hand."""
    page = visit(f"{START}{model}{query}", **settings)
    page.locator(".primary[form=repair]:enabled").wait_for()
    return page


def complete(page: "Page") -> None:
    """Ask, and wait for every method's answer."""
    page.locator(".primary[form=repair]").click()
    page.locator("#panel-repair .snippets").wait_for()


def sent(page: "Page") -> list[dict[str, Any]]:
    """The bodies of the questions that a page asks from now on."""
    bodies: list[dict[str, Any]] = []

    def note(request: "Request") -> None:
        if request.url.endswith("/posterior"):
            bodies.append(request.post_data_json)

    page.on("request", note)
    return bodies


def settings(page: "Page", **values: str) -> None:
    """Fill in fields by their names in the link."""
    page.locator("#panel-repair form .options").evaluate("node => (node.open = true)")
    for name, value in values.items():
        page.locator(f"#panel-repair form [name={name}]").fill(value)


def drag_across(page: "Page") -> None:
    """A stroke through the middle of the picture."""
    box = page.locator(".eraser").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 4, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 4, middle)
    page.mouse.up()


def test_an_erased_half_is_completed_and_the_other_stays(
    visit: Open, ask: Ask, pixels: Pixels
) -> None:
    page = begin(visit, "grey")
    page.get_by_role("button", name="Left half").click()
    settings(page, num_samples="3", particles="4", steps="6")
    bodies = sent(page)
    complete(page)
    (body,) = bodies
    known = np.array(body["known"])
    half = known.shape[1] // 2
    assert known[:, :half].sum() == 0
    assert known[:, half:].min() == 1
    whole, seen = page.locator(".pair canvas").all()
    assert opaque(seen).tolist() == body["known"]  # what is hidden is transparent
    observed = np.array(body["observed"][0][0])
    np.testing.assert_array_equal(np.array(pixels(whole))[known == 1], observed[known == 1])
    (result,) = ask("/posterior", **body)["results"]
    shown = [pixels(canvas) for canvas in page.locator(".completions .gallery canvas").all()]
    assert shown == [image[0] for image in result["samples"]]
    for image in shown:
        np.testing.assert_array_equal(np.array(image)[known == 1], observed[known == 1])
    told = page.locator(".completions").inner_text()
    assert f"All {known.sum()} observed values are unchanged" in told
    assert f"{result['diagnostics']['ancestors']} of 4" in told
    assert f"{result['diagnostics']['log_evidence']:.2f}" in told.replace(",", "").replace("−", "-")
    mean, std = (pixels(canvas) for canvas in page.locator(".found .summary canvas").all())
    np.testing.assert_allclose(mean, result["mean"][0], atol=0.51)
    spread = np.array(result["std"][0])
    np.testing.assert_allclose(np.array(std) / 255, spread / spread.max(), atol=0.003)


def test_a_pointer_erases_and_brings_back(visit: Open) -> None:
    page = begin(visit, "grey")
    page.get_by_role("button", name="Hide nothing").click()
    run = page.locator(".primary[form=repair]")
    assert run.is_disabled()  # nothing is hidden, nothing to draw
    canvas = page.locator(".eraser")
    for back in (False, True):
        page.get_by_label("Bring back").set_checked(back)
        drag_across(page)
        seen = opaque(canvas)
        row = seen[len(seen) // 2]
        assert row.tolist() == [int(back)] * len(row)  # a stroke, not the points of its ends
        assert seen[0].all()
        assert run.is_disabled() is back


def test_nothing_is_hidden_before_there_is_something_to_hide(visit: Open) -> None:
    page = visit("?model=grey")
    held: list[Route] = []
    page.route("**/sample", lambda route: held.append(route))
    with page.expect_request("**/sample"):  # it has no held-out data: a sample is asked for
        page.get_by_role("tab", name="Repair").click()
    drag_across(page)
    run = page.locator(".primary[form=repair]")
    assert run.is_disabled()
    assert page.locator("#panel-repair .bench[inert]").count() == 1  # nor by the keyboard
    held.pop().continue_()
    page.locator(".primary[form=repair]:enabled").wait_for()
    page.get_by_role("button", name="Hide nothing").click()
    drag_across(page)
    seen = opaque(page.locator(".eraser"))
    assert not seen[len(seen) // 2].any()
    assert seen[0].all()


@pytest.mark.parametrize("view", ["repair", "likelihood"])
def test_what_is_asked_is_asked_of_the_chosen_model(visit: Open, view: str) -> None:
    page = visit(f"?view={view}&model=gaussian-mixture")
    form = page.locator(f"#panel-{view} form:has(.options)")
    form.locator("xpath=self::*[not(@inert)]").wait_for()
    held: list[Route] = []
    page.route("**/examples?*", lambda route: held.append(route))
    with page.expect_request("**/examples?*"):
        page.get_by_label("Model", exact=True).select_option("bit-patterns")
    assert form.get_attribute("inert") is not None  # what stands there is the other model's
    held.pop().continue_()
    form.locator("xpath=self::*[not(@inert)]").wait_for()
    assert page.locator(f"#panel-{view} .bit").first.is_enabled()


def test_methods_stand_side_by_side_on_one_observation(visit: Open, ask: Ask) -> None:
    page = begin(visit, "gaussian-mixture")
    for name in ("Twisted particles", "Product (2015)", "RePaint"):
        page.get_by_label(name).check()
    page.get_by_label("Automatic").uncheck()
    settings(page, num_samples="12", particles="12", steps="10")
    bodies = sent(page)
    complete(page)
    columns = page.locator(".completions")
    names = [column.locator("h2").inner_text() for column in columns.all()]
    assert names == ["Twisted particles", "Product (2015)", "RePaint"]
    methods = [m if isinstance(m, str) else m["name"] for m in (body["method"] for body in bodies)]
    assert methods == ["twisted", "product", "repaint"]
    rest = [{k: v for k, v in body.items() if k != "method"} for body in bodies]
    assert rest[0] == rest[1] == rest[2]  # the same observation and seed
    assert "no weights" in columns.nth(1).inner_text()
    assert "Effective particles" in columns.nth(0).inner_text()
    for body, column in zip(bodies, columns.all(), strict=True):
        answer = ask("/posterior", **body)
        assert f"{answer['network_evaluations']:,} network evaluations" in column.inner_text()
        mean = answer["results"][0]["mean"][1]
        row = column.locator("tbody tr").nth(1).inner_text().split()
        assert row[1] == "?"
        digits = 4 if abs(mean) < 1 else 2
        assert float(row[2]) == pytest.approx(mean, abs=0.51 * 10**-digits)


def test_points_of_the_posterior_lie_along_what_was_seen(visit: Open) -> None:
    page = begin(visit, "gaussian-mixture")
    page.get_by_label("Value of number 1").fill("1.5")
    settings(page, noise="0.05")
    settings(page, num_samples="50", particles="50", steps="40")
    complete(page)

    def across(path: str) -> list[float]:
        return [float(x) for x in re.findall(r"M?(-?[\d.]+) -?[\d.]+(?:h0|L|$)", path)]

    prior, posterior = page.locator(".plot .dots").all()
    line = page.locator(".plot .line.warn:not(.dashed)")
    edges = page.locator(".plot .dashed").all()
    (at, _), (low, _), (high, _) = (across(p.get_attribute("d")) for p in (line, *edges))
    noise = (high - low) / 2
    found = np.array(across(posterior.get_attribute("d")))
    assert len(found) == 50
    assert np.median(np.abs(found - at)) < 2 * noise
    assert np.median(np.abs(np.array(across(prior.get_attribute("d"))) - at)) > 5 * noise


def test_bits_are_hidden_by_a_click(visit: Open, ask: Ask, pixels: Pixels) -> None:
    page = begin(visit, "bit-patterns")
    cells = page.locator(".bit")
    for i, wanted in enumerate("1?0" + "?" * (cells.count() - 3)):
        while cells.nth(i).inner_text() != wanted:
            cells.nth(i).click()
    assert cells.nth(1).get_attribute("aria-label") == "Bit 2: hidden"
    settings(page, num_samples="6", particles="8", steps="30")
    bodies = sent(page)
    complete(page)
    (body,) = bodies
    assert body["known"] == [1, 0, 1] + [0] * (cells.count() - 3)
    assert (body["observed"][0][0], body["observed"][0][2]) == (1, 0)
    (result,) = ask("/posterior", **body)["results"]
    shown = pixels(page.locator(".completions .raster-frame canvas"))
    assert [[bit // 255 for bit in row] for row in shown] == result["samples"]
    assert all(row[0] == 1 and row[2] == 0 for row in result["samples"])
    assert "All 2 observed values are unchanged" in page.locator(".completions").inner_text()


def test_noise_on_everything_starts_where_it_is_matched(visit: Open, ask: Ask) -> None:
    page = begin(visit, "grey")
    page.get_by_role("button", name="Hide nothing").click()
    settings(page, noise="17")  # that of a step within 2%
    settings(page, num_samples="4", steps="8")
    bodies = sent(page)
    complete(page)
    (body,) = bodies
    assert "known" not in body
    assert body["noise_std"] == 17
    answer = ask("/posterior", **body)
    assert answer["method"] == "matched"
    told = page.locator(".completions").inner_text()
    assert f"step {answer['results'][0]['diagnostics']['start']}, noise" in told
    off = float(re.findall(r"by ([\d.]+) \(root mean square\)", told)[0])
    samples = np.array(answer["results"][0]["samples"], float)
    expected = np.sqrt(np.mean((samples - np.array(body["observed"][0])) ** 2))
    assert off == pytest.approx(expected, rel=0.01)


def test_the_noise_that_the_page_adds_is_normal(visit: Open) -> None:
    script = """async () => {
      const { observe } = await import('./static/lib/observation.js');
      const rows = Array.from({ length: 64 }, () => Array(64).fill(100));
      const model = { kind: "image", shape: [1, 64, 64] };
      const known = rows.map((row) => row.map(() => 1));
      return observe(model, [rows], { known, block: 1, noise: 10 }).flat(2);
    }"""
    z = (np.array(visit().evaluate(script)) - 100) / 10
    n = len(z)  # 4,096 numbers, always the same; each bound is four standard errors
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / n)
    for lag in (1, 64):
        assert abs((z[lag:] * z[:-lag]).mean()) < 4 / np.sqrt(n)


def test_a_coarse_picture_is_asked_about_by_its_averages(visit: Open) -> None:
    page = begin(visit, "grey")
    page.get_by_label("Observed as").select_option("2")
    page.get_by_text("Left half").wait_for(state="hidden")  # an operator sees everything
    settings(page, noise="0")
    settings(page, num_samples="2", particles="2", steps="4")
    bodies = sent(page)
    complete(page)
    (body,) = bodies
    assert body["operator"] == {"kind": "average-pooling", "size": 2}
    whole = page.locator(".pair canvas").first
    x = np.array(whole.evaluate(CHANNEL, 0))
    blocks = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2).mean((1, 3))
    np.testing.assert_allclose(body["observed"][0][0], blocks, atol=0.01)


@pytest.mark.parametrize("model", ["grey", "bit-patterns", "gaussian-mixture"])
def test_a_link_repeats_the_answer(visit: Open, model: str) -> None:
    page = begin(visit, model)
    page.get_by_label("Product (2015)").check()
    settings(page, num_samples="5", particles="6", steps="8")
    first, second = sent(page), []
    complete(page)
    shown = page.locator(".columns").inner_text()
    again = visit()
    second = sent(again)
    again.goto(page.url)
    again.locator("#panel-repair .snippets").wait_for()
    assert second == first
    assert fields_of(again) == fields_of(page)
    cost = re.compile(r"· [\d.,]+ s")  # what it took differs
    assert cost.sub("", again.locator(".columns").inner_text()) == cost.sub("", shown)


def test_the_snippets_are_the_requests(visit: Open) -> None:
    page = begin(visit, "gaussian-mixture")
    page.get_by_label("Product (2015)").check()
    settings(page, num_samples="4", particles="4", steps="6")
    bodies = sent(page)
    complete(page)
    page.locator("#panel-repair .snippets summary").click()
    curl, script = page.locator("#panel-repair .snippets code").all_inner_texts()
    assert curl.count("/posterior") == len(bodies) == 2
    seed = bodies[0]["seed"]
    assert curl.count(f'"seed":{seed}') == script.count(f"seed={seed}") == 2
    assert 'method="product"' in script
    assert "steps=6" in script
    compile(script, "snippet", "exec")


def test_in_korean(visit: Open) -> None:
    page = begin(visit, "bit-patterns", locale="ko-KR")
    assert page.get_by_role("tab", name="복원").get_attribute("aria-selected") == "true"
    settings(page, num_samples="4", particles="4", steps="6")
    complete(page)
    assert "그대로 돌아왔습니다" in page.locator(".completions").inner_text()


def test_a_link_that_was_cut_off_says_so(visit: Open) -> None:
    page = visit(f"{START}bit-patterns&x=10x&seed=1")
    page.get_by_role("alert").get_by_text("The link's data cannot be read").wait_for()


def test_a_refusal_leaves_the_other_columns_waiting(visit: Open, watch: Watch) -> None:
    page = begin(visit, "gaussian-mixture")
    page.get_by_label("Product (2015)").check()
    page.locator("#panel-repair form").evaluate("form => (form.noValidate = true)")
    settings(page, num_samples="9", particles="4", steps="6")  # of one system at most 4
    page.locator(".primary[form=repair]").click()
    page.get_by_role("alert").get_by_text("The request is not valid").wait_for()
    assert page.get_by_text("Not finished.").count() == 2
    watch.faults.clear()  # the browser's own: 422


def test_a_certified_observation_is_learned_and_says_how_it_fares(
    visit: Open, told_url: str
) -> None:
    """Four completions by default, one evaluation a step each, and no warning."""
    page = begin(visit, "told", at=told_url)
    page.get_by_role("button", name="Left half").click()
    bodies = sent(page)
    complete(page)
    (body,) = bodies
    assert body["method"]["name"] == "auto"
    told = page.locator(".completions").inner_text()
    assert "Method used: learned" in told
    assert "95% intervals cover 94.8%" in told
    assert "160 network evaluations in 40 steps" in told
    assert page.locator(".caution").count() == 0
    assert page.locator(".completions .gallery canvas").count() == 4


def test_what_nothing_confirms_is_warned_of(visit: Open, told_url: str) -> None:
    """By name, with noise, whose calibration failed: not as if it were the particles' fault."""
    page = begin(visit, "told", at=told_url, query="&methods=learned&noise=30")
    page.get_by_role("button", name="Left half").click()
    complete(page)
    caution = page.locator(".caution").inner_text()
    assert "The service warns" in caution
    assert "refute" in caution
    assert "particles" not in caution


def test_learned_is_offered_where_the_network_can_be_told(visit: Open, told_url: str) -> None:
    page = begin(visit, "told", at=told_url)
    box = page.locator(".method[value=learned]")
    assert box.is_enabled()
    page.locator("select[name=block]").select_option("2")
    assert box.is_disabled()  # of elements only, not of averages
    other = begin(visit, "grey", at=told_url)
    assert not other.locator(".method[value=learned]").is_visible()
