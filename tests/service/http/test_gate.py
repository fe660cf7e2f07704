"""Who may ask: hosts, origins, headers; bodies that are packed; below a proxy's path."""

import asyncio
import gzip
import json
import re
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Message, Scope

from service.api.middleware import Gate, knows
from service.settings import Settings
from tests.service.http.caller import assert_problem

pytestmark = pytest.mark.anyio

PACKED = gzip.compress(b"{}")

Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
ASKED: dict[str, Any] = {"model": "gaussian-mixture", "sampler": {"steps": 2}, "seed": 1}


@pytest.fixture(scope="module")
async def below(serve: Serve, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A service that a proxy shows at /noneq."""
    settings = Settings(models=folder, device="cpu", batch_size=8, root_path="/noneq/")
    async with serve(settings) as found:
        yield found


async def ask(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    """A POST as a page's form or `curl -d` sends it."""
    kind = {"content-type": headers.pop("kind", "application/x-www-form-urlencoded")}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.post("/sample", content=json.dumps(ASKED), headers=kind | named)


@pytest.mark.parametrize(
    "headers",
    [
        {},  # curl
        {"host": "localhost:8000", "origin": "http://localhost:8000"},
        {"host": "192.168.1.5:8000", "origin": "http://192.168.1.5:8000"},
        {"origin": "https://noneq.example.org", "sec_fetch_site": "same-origin"},
        {"origin": "http://noneq.example.org", "x_forwarded_host": "noneq.example.org"},
        {"sec_fetch_site": "none"},
    ],
    ids=str,
)
async def test_its_own_page_and_what_is_no_browser_may_ask(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    assert (await ask(client, **headers)).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000", "host": "localhost:8000"},
        {"origin": "http://evil.example", "sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "cross-site"},
        {"origin": "http://other.example.org", "sec_fetch_site": "same-site"},
    ],
    ids=str,
)
async def test_a_foreign_page_may_not(
    client: httpx.AsyncClient, headers: dict[str, str], kind: str
) -> None:
    document = assert_problem(await ask(client, kind=kind, **headers), 403, "foreign-origin")
    assert "NONEQ_ALLOW_ORIGINS" in document["fix"]


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("10.0.0.7", True),
        ("noneq:8000", True),
        ("gpu.local", True),
        ("noneq.default.svc.cluster.local", True),
        ("", True),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("evil.example.", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evillocal.org", False),
        ("noneq.example.org", True),
        ("a.noneq.example.org", False),
        ("a.below.org", True),
        ("below.org", False),
    ],
)
def test_a_name_that_a_foreign_page_could_have_is_not_known(host: str, known: bool) -> None:
    assert knows(host, {"noneq.example.org", ".below.org"}) == known


async def test_a_foreign_name_is_refused_but_for_health(client: httpx.AsyncClient) -> None:
    evil = {"host": "evil.example"}
    for path in ("/", "/models", "/docs"):
        assert_problem(await client.get(path, headers=evil), 421, "unknown-host")
    document = assert_problem(await ask(client, **evil), 421, "unknown-host")
    assert "NONEQ_ALLOWED_HOSTS" in document["fix"]
    assert (await client.get("/health/ready", headers=evil)).status_code == 200


async def echo(request: Request) -> JSONResponse:
    return JSONResponse(request.scope["path"])


def gated(**settings: object) -> httpx.AsyncClient:
    """The gate alone, before a route for every path."""
    routes = [Route("/{path:path}", echo, methods=["GET", "POST"])]
    app = Gate(Starlette(routes=routes), Settings(**settings))  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({}, 421),
        ({"allowed_hosts": "other.org, noneq.example.org"}, 200),
        ({"allowed_hosts": ".example.org"}, 200),
        ({"allowed_hosts": "*"}, 200),
        ({"host": "noneq.example.org"}, 200),
        ({"api_keys": "secret"}, 200),
        ({"api_keys": "secret", "allowed_hosts": "other.org"}, 421),
    ],
    ids=str,
)
async def test_names_are_allowed_by_settings(settings: dict[str, str], status: int) -> None:
    async with gated(**settings) as client:
        found = await client.get("/models", headers={"host": "noneq.example.org"})
    assert found.status_code == status


async def test_an_allowed_site_may_ask_and_read(serve: Serve, folder: Path) -> None:
    settings = Settings(
        models=folder,
        device="cpu",
        batch_size=8,
        allow_origins="https://a.example/, http://b.example",
        api_keys="secret",
    )
    async with serve(settings) as client:
        asked = {
            "origin": "https://a.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        preflight = await client.options("/sample", headers=asked)  # carries no key
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://a.example"
        allowed = {"origin": "http://b.example", "authorization": "Bearer secret"}
        found = await ask(client, **allowed)
        assert found.status_code == 200
        assert found.headers["access-control-allow-origin"] == "http://b.example"
        assert (await ask(client, origin="https://c.example")).status_code == 403


async def test_there_is_a_limit_on_headers(client: httpx.AsyncClient) -> None:
    many = {f"x-{i}": "1" for i in range(101)}
    found = await client.get("/models", headers=many)
    assert_problem(found, 431, "headers-too-large")


# ---------------------------------------------------------------------------------- packed bodies


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("identity", bytes),
        ("gzip", lambda raw: gzip.compress(raw[:9]) + gzip.compress(raw[9:])),
    ],
)
async def test_a_packed_body_is_as_good_as_another(
    client: httpx.AsyncClient, coding: str, pack: Callable[[bytes], bytes]
) -> None:
    raw, headers = json.dumps(ASKED).encode(), {"content-type": "application/json"}
    plain = await client.post("/sample", content=raw, headers=headers)
    headers["content-encoding"] = coding
    packed = await client.post("/sample", content=pack(raw), headers=headers)
    assert packed.status_code == 200
    assert packed.json()["samples"] == plain.json()["samples"]


async def test_a_bomb_is_refused(client: httpx.AsyncClient) -> None:
    bomb = gzip.compress(b" " * (64 * 2**20))
    assert len(bomb) < 2**17
    for kind in ("application/json", "application/octet-stream"):
        headers = {"content-encoding": "gzip", "content-type": kind}
        found = await client.post("/loglik", content=bomb, headers=headers)
        document = assert_problem(found, 413, "body-too-large")
        assert "decompressed" in document["detail"]


@pytest.mark.parametrize(
    ("coding", "raw", "status", "slug"),
    [
        ("br", b"{}", 415, "unsupported-media-type"),
        ("gzip, gzip", gzip.compress(PACKED), 415, "unsupported-media-type"),
        ("gzip", b"{}", 400, "malformed-body"),
        ("gzip", PACKED[:-3], 400, "malformed-body"),
        ("gzip", PACKED + b"{}", 400, "malformed-body"),
        ("deflate", PACKED, 400, "malformed-body"),
        ("gzip", b"", 400, "malformed-body"),
    ],
    ids=["another", "twice", "not packed", "cut off", "more behind", "not so", "nothing"],
)
async def test_what_cannot_be_unpacked_is_told_so(
    client: httpx.AsyncClient, coding: str, raw: bytes, status: int, slug: str
) -> None:
    headers = {"content-encoding": coding, "content-type": "application/json"}
    assert_problem(await client.post("/sample", content=raw, headers=headers), status, slug)


# ---------------------------------------------------------------------------- below a proxy's path


@pytest.mark.parametrize("kept", [True, False], ids=["path kept", "path taken away"])
async def test_a_proxy_may_show_it_below_a_path(below: httpx.AsyncClient, kept: bool) -> None:
    """Everything that the pages load lies below it; the proxy may take the path away or not."""

    async def get(shown: str) -> httpx.Response:
        path = urlsplit(shown).path
        assert path.startswith("/noneq/")
        return await below.get(path if kept else path.removeprefix("/noneq"))

    for page in ("/noneq/docs", "/noneq/"):
        text = (await get(page)).text
        links = [*re.findall(r'(?:src|href)="([^"]+)"', text), *re.findall(r"url: '([^']+)'", text)]
        assert len(links) > 2
        for link in links:
            assert (await get(urljoin(f"http://proxy{page}", link))).status_code == 200, link
    document = (await get("/noneq/openapi.json")).json()
    base = urljoin("http://proxy/noneq/openapi.json", document["servers"][0]["url"])
    assert base.rstrip("/") == "http://proxy/noneq"
    assert (await get("/noneq/health/ready")).status_code == 200
    path = "/noneq/sample" if kept else "/sample"
    assert (await below.post(path, json=ASKED)).status_code == 200


async def test_the_path_opens_nothing_that_needs_a_key() -> None:
    async with gated(root_path="/noneq") as client:
        assert (await client.get("/noneq/x")).json() == "/noneq/x"
        assert (await client.get("/x")).json() == "/noneq/x"
        assert (await client.get("/noneqx")).json() == "/noneq/noneqx"


async def test_health_does_not_wait_for_all_that_came_before_it() -> None:
    order = []

    async def answer(scope: Scope, *_: object) -> None:
        order.append(scope["path"])

    gate = Gate(answer, Settings())
    headers = [(b"host", b"localhost")]
    paths = [*(["/sample"] * 1000), "/health/live"]
    scopes = [{"type": "http", "method": "POST", "path": p, "headers": headers} for p in paths]
    await asyncio.gather(*(gate(scope, none, none) for scope in scopes))
    assert order.index("/health/live") < 3
    assert len(order) == 1001


async def none(*_: object) -> Message:
    """Nothing is sent or received."""
    return {}
