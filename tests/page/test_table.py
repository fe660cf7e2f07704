"""The Table view: cells are edited and emptied, and what is shown is what the service answers."""

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
import torch

from diffusion import heldout
from diffusion.checkpoint import save
from diffusion.families import Exact
from diffusion.likelihood import reference
from diffusion.networks import TableMixture
from diffusion.noise import counter_noise
from tests.noneq.conftest import listening
from tests.page.conftest import save_all, settings_of
from tests.service.http.conftest import calibration, gaussian_mixture, table

if TYPE_CHECKING:
    from playwright.sync_api import Page

Open = Callable[..., "Page"]
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A table with held-out rows, the second of which has a gap; and points."""
    folder = save_all(tmp_path_factory.mktemp("tables"), [gaussian_mixture])
    model, metadata = table()
    told = {"told": (Exact(),), "calibration": (calibration(Exact()),)}
    save(folder / "table" / "model.safetensors", model, metadata.model_copy(update=told))
    assert isinstance(model.network, TableMixture)
    rows = model.space.to_data(model.network.sample(counter_noise(5, torch.arange(60), 0)))
    reference.write(folder / "table", model, reference.measure(model, model.space.to_model(rows)))
    rows[1, 1] = torch.nan
    heldout.write(folder / "table", rows[:4], model.space)
    with listening(settings_of(folder)) as at:
        yield at


def run(page: "Page") -> None:
    page.get_by_role("button", name="What may stand there?").click()
    page.locator(".row-verdict p").first.wait_for()


def asked(page: "Page") -> tuple[dict[str, Any], int]:
    fields = parse_qs(urlsplit(page.url).query)
    return json.loads(fields["row"][0]), int(fields["seed"][0])


def test_an_emptied_cell_shows_what_may_stand_there(visit: Open, ask: Ask) -> None:
    page = visit("?model=table")
    page.get_by_label("Value of eggs").fill("3")
    page.get_by_label("Value of mass").fill("")
    page.get_by_label("Value of kind").select_option("")
    page.get_by_label("Value of ringed").select_option("yes")
    run(page)
    row, seed = asked(page)
    assert row == {"eggs": 3, "ringed": "yes"}
    method = {"name": "auto", "particles": 200, "systems": "joint"}
    (answer,) = ask(
        "/inpaint", model="table", observed=[row], num_samples=200, seed=seed, method=method,
        quantiles=[0.05, 0.5, 0.95],
    )["results"]  # fmt: skip
    shares = page.locator(".chances li").all_inner_texts()
    likeliest = max(answer["probabilities"]["kind"], key=answer["probabilities"]["kind"].get)
    assert shares[0].split()[0] == likeliest
    assert len(shares) == 3
    low, middle, high = (q["mass"] for q in answer["quantiles"])
    told = page.locator("tr", has_text="mass").locator(".found p").inner_text()
    numbers = [float(word.replace(",", "")) for word in told.replace(", with", " ").split()
               if word.replace(",", "").replace(".", "").isdecimal()]  # fmt: skip
    assert numbers == pytest.approx([middle, low, high], rel=1e-4)
    assert page.locator(".found svg.plot").count() == 1
    assert "no held-out row has the same gaps" in page.locator(".row-verdict").inner_text()
    again = visit("?" + urlsplit(page.url).query)
    again.locator(".row-verdict p").first.wait_for()
    assert again.locator(".chances li").all_inner_texts() == shares


def test_a_strange_row_and_the_column_to_blame(visit: Open, ask: Ask) -> None:
    page = visit("?model=table")
    page.get_by_role("button", name="Edit held-out row 1").click()
    page.get_by_label("Value of mass").fill("9500")
    run(page)
    row, seed = asked(page)
    (answer,) = ask("/loglik", model="table", data=[row], terms=100, seed=seed)["results"]
    assert answer["typicality"] < 0.05
    verdict = page.locator(".row-verdict").inner_text()
    assert "Unlike held-out data" in verdict
    # By chance another cell may be rare too: the seed differs each time.
    found = page.locator("tr", has_text="mass").locator(".found")
    assert found.locator(".unusual").count() == 1
    assert "The rarest cell" in found.inner_text()
    page.get_by_label("Value of mass").fill("4000")
    assert page.get_by_text("The row has changed since").is_visible()
    page.get_by_text("The same request in curl and Python").click()
    assert ".score(" in page.locator(".snippets").inner_text()


def test_rows_are_drawn_and_emptied(visit: Open) -> None:
    page = visit("?model=table")
    start = page.get_by_role("button", name="What may stand there?")
    page.locator(".held table").wait_for()
    assert page.locator(".held td.gap").all_inner_texts() == ["–"]
    page.get_by_role("button", name="Empty all cells").click()
    assert start.is_disabled()
    page.get_by_role("button", name="Draw a row").click()
    page.locator("#row option:checked:not([value=''])").first.wait_for(state="attached")
    assert start.is_enabled()
    assert float(page.get_by_label("Value of mass").input_value()) > 0


def test_each_kind_of_model_has_its_own_tabs(visit: Open) -> None:
    page = visit("?model=table&view=repair")
    page.locator(".row-sheet").wait_for()
    assert page.get_by_role("tab").all_inner_texts() == ["Table"]
    page.get_by_label("Model", exact=True).select_option("gaussian-mixture")
    page.get_by_role("button", name="Draw samples").wait_for()
    assert page.get_by_role("tab").all_inner_texts() == ["Sample", "Likelihood", "Repair"]
    page.get_by_label("Model", exact=True).select_option("table")
    page.locator(".row-sheet").wait_for()
    assert "view=table" in page.url


def test_a_link_that_is_cut_off_says_so(visit: Open) -> None:
    page = visit('?model=table&view=table&row={"mass":40')
    page.get_by_text("The link's data cannot be read").wait_for()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_it_can_be_used_without_seeing_it(visit: Open, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is missing")
    row = json.dumps({"eggs": 3, "ringed": "yes"})
    size = {"width": width, "height": 800}
    page = visit(f"?model=table&row={row}&seed=7", color_scheme=scheme, viewport=size)
    page.locator(".row-verdict p").first.wait_for()
    found = axe.Axe().run(page).response["violations"]
    assert not found, [(rule["id"], rule["nodes"]) for rule in found]
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width
