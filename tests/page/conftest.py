"""A real browser on a real socket; skipped, with the reason, where there is none."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI

from diffusion import heldout
from diffusion.checkpoint import Metadata, save
from diffusion.model import DiffusionModel
from service.app import create_app
from service.settings import Settings
from tests.noneq.conftest import listening, on_a_socket
from tests.page.scoring import GREYS, digits, measured
from tests.service.http.conftest import bit_patterns, gaussian_mixture, grey_images, told_images

playwright = pytest.importorskip("playwright.sync_api", reason="Python's playwright is missing")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = ["--disable-gpu", "--disable-quic", "--disable-component-update", "--disable-sync"]
SECONDS = 60_000.0  # that anything may take, in the browser's milliseconds


def settings_of(folder: Path, **others: object) -> Settings:
    return Settings(models=folder, device="cpu", batch_size=64, **others)  # type: ignore[arg-type]


def save_all(folder: Path, makers: Iterable[Callable[[], tuple[DiffusionModel, Metadata]]]) -> Path:
    """A models folder."""
    for make in makers:
        model, metadata = make()
        save(folder / metadata.name / "model.safetensors", model, metadata)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models: points, bits, images."""
    makers = (gaussian_mixture, bit_patterns, grey_images)
    return save_all(tmp_path_factory.mktemp("models"), makers)


@pytest.fixture(scope="session")
def serve(folder: Path) -> Callable[..., AbstractContextManager[str]]:
    """For tests with settings of their own."""

    def with_settings(**settings: object) -> AbstractContextManager[str]:
        return listening(settings_of(folder, **settings))

    return with_settings


@pytest.fixture(scope="session")
def app(folder: Path) -> FastAPI:
    """The service that most tests share."""
    return create_app(settings_of(folder))


@pytest.fixture(scope="session")
def url(app: FastAPI) -> Iterator[str]:
    """Its address."""
    with on_a_socket(app) as found:
        yield found


@pytest.fixture(scope="session")
def scoring_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with points, bits with percentiles, images with examples, digits."""
    makers = (gaussian_mixture, measured, grey_images, digits)
    found = save_all(tmp_path_factory.mktemp("scoring"), makers)
    heldout.write(found / "grey", GREYS, grey_images()[0].space)
    with listening(settings_of(found)) as at:
        yield at


@pytest.fixture(scope="session")
def told_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with images whose network is told what was seen, and others."""
    found = save_all(tmp_path_factory.mktemp("told"), (gaussian_mixture, grey_images, told_images))
    with listening(settings_of(found)) as at:
        yield at


# Not of the session: while Playwright runs, asyncio takes its event loop for running, and tests of
# asyncio in the same process could not start theirs.
@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium."""
    with playwright.sync_playwright() as driver:
        own = Path(driver.chromium.executable_path)
        path = next(filter(None, map(shutil.which, NAMES)), str(own) if own.exists() else None)
        if path is None:
            pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is on the PATH")
        found = driver.chromium.launch(executable_path=path, args=QUIET)
        yield found
        found.close()


@dataclass
class Watch:
    """What went on behind the page.

    Attributes:
        faults: what it said on its console, and exceptions that nobody caught.
        hosts: whom it asked.
    """

    faults: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def follow(self, page: "Page") -> None:
        page.on("console", lambda said: self.faults.append(said.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", lambda asked: self.hosts.add(urlsplit(asked.url).netloc))


@pytest.fixture
def watch() -> Watch:
    """For tests that expect faults: they clear the list."""
    return Watch()


Open = Callable[..., "Page"]


@pytest.fixture
def visit(browser: "Browser", url: str, watch: Watch) -> Iterator[Open]:
    """Opens an address below the service's in a browser of its own; no fault may come of it."""
    contexts: list[BrowserContext] = []

    def go(query: str = "", *, at: str = url, **settings: object) -> "Page":
        context = browser.new_context(**{"locale": "en-US", **settings})  # type: ignore[arg-type]
        context.set_default_timeout(SECONDS)
        contexts.append(context)
        page = context.new_page()
        watch.follow(page)
        page.goto(f"{at}/{query}")
        return page

    yield go
    for context in contexts:
        context.close()
    assert watch.faults == []
    assert {host.partition(":")[0] for host in watch.hosts} <= {"127.0.0.1", ""}  # blob: has none


@pytest.fixture
def ask(url: str) -> Callable[..., dict[str, Any]]:
    """What the service itself answers."""

    def post(path: str, **asked: object) -> dict[str, Any]:
        response = httpx.post(url + path, json=asked, timeout=60)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    return post


PIXELS = """canvas => {
  const { width, height } = canvas;
  const copy = new OffscreenCanvas(width, height).getContext("2d");
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, width, height);
  const count = length => [...Array(length).keys()];
  return count(height).map(i => count(width).map(j => data[4 * (i * width + j)]));
}"""


@pytest.fixture
def pixels() -> Callable[["Locator"], list[list[int]]]:
    """The red values of a canvas, a list a row."""

    def read(canvas: "Locator") -> list[list[int]]:
        found: list[list[int]] = canvas.evaluate(PIXELS)
        return found

    return read
