"""The page's files: their policy, their freshness, and who may have them."""

import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from service.settings import Settings

Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]

pytestmark = pytest.mark.anyio


async def test_the_page_and_what_it_loads_are_served(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    links = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert "static/app.js" in links
    for link in links:
        assert not link.startswith(("/", "http"))  # relative: below a proxy's path too
        assert (await client.get(f"/{link}")).status_code == 200, link
    script = await client.get("/static/app.js")
    assert "javascript" in script.headers["content-type"]
    assert (await client.get("/static/nothing.js")).status_code == 404


@pytest.mark.parametrize("path", ["/", "/static/app.js"])
async def test_nothing_foreign_and_nothing_inline_may_run(
    client: httpx.AsyncClient, path: str
) -> None:
    response = await client.get(path)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script(?![^>]*src)|<style|\son\w+=|\sstyle=", response.text)


@pytest.mark.parametrize("path", ["/", "/static/style.css"])
async def test_what_is_known_is_not_sent_again(client: httpx.AsyncClient, path: str) -> None:
    first = await client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = await client.get(path, headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304
    assert again.content == b""
    assert (await client.head(path)).status_code == 200


async def test_the_page_and_its_icon_open_without_a_key(single: Path, serve: Serve) -> None:
    keyed = Settings(models=single, device="cpu", batch_size=8, api_keys=SecretStr("secret"))
    async with serve(keyed) as client:
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/static/app.js")).status_code == 200
        icon = await client.get("/favicon.ico")  # of every address without an icon of its own
        assert icon.status_code == 200
        assert icon.headers["content-type"] == "image/svg+xml"
        assert (await client.head("/favicon.ico")).status_code == 200
        assert (await client.get("/models")).status_code == 401


async def test_scripts_are_compressed_and_answers_are_not(client: httpx.AsyncClient) -> None:
    asked = {"accept-encoding": "gzip"}
    whole = (await client.get("/static/app.js", headers={"accept-encoding": "identity"})).content
    packed = await client.get("/static/app.js", headers=asked)
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == whole
    assert "accept-encoding" in packed.headers["vary"].lower()
    assert int(packed.headers["content-length"]) < len(whole) / 2
    answer = await client.get("/models", headers=asked)
    assert "content-encoding" not in answer.headers
