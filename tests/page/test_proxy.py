"""Below a path that a proxy takes away, without any setting, the page and /docs work."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from service.app import create_app
from tests.noneq.conftest import on_a_socket
from tests.page.conftest import settings_of

if TYPE_CHECKING:
    from playwright.sync_api import Page

Open = Callable[..., "Page"]


class Proxy:
    """Shows an app at /noneq, and nothing else."""

    def __init__(self, app: FastAPI) -> None:
        self.app, self.state = app, app.state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            below = path.removeprefix("/noneq") if path.startswith("/noneq/") else "/not-the-app"
            scope = {**scope, "path": below, "raw_path": below.encode()}
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """The proxy's address."""
    with on_a_socket(cast("Any", Proxy(create_app(settings_of(folder))))) as found:
        yield f"{found}/noneq"


def test_the_page_asks_below_it(visit: Open) -> None:
    page = visit("?view=sample&model=bit-patterns&num_samples=2&steps=3&seed=7")
    page.locator(".told").wait_for()


def test_the_docs_load_and_try_things_out(visit: Open) -> None:
    page = visit("docs")
    page.locator("#operations-models-list_models button").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    status = page.locator(".live-responses-table .response-col_status").nth(1)
    status.wait_for()
    assert status.inner_text().strip() == "200"
    shown = page.locator(".request-url pre").inner_text()
    assert shown.strip().endswith("/noneq/models")
