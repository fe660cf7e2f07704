"""Serves the page at /, with its files in static/, and the API documentation at /docs.

The page loads nothing from other sites and runs no inline script. Links are relative, so that it
works under any path that a proxy gives it.
"""

from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import HTMLResponse
from starlette.types import Scope
from typing_extensions import override

_FOLDER: Final = Path(__file__).parents[1] / "static"
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",  # previews arrive as base64; pictures leave as blobs
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_DOCS: Final = "docs/static"
_HEADERS: Final = {
    "cache-control": "no-cache",  # revalidated by ETag, so that a new version shows at once
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class _Files(StaticFiles):
    """Serves files with the page's headers."""

    @override
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


def add_page(app: FastAPI) -> None:
    """Serve the page at /, and its files below /static/."""
    files = _Files(directory=_FOLDER)
    # Only files are compressed: answers are streamed, and floats hardly compress.
    app.mount("/static", GZipMiddleware(files, minimum_size=1000), name="static")

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    # Browsers request it for every page without an icon of its own, such as /models.
    @app.head("/favicon.ico", include_in_schema=False)
    @app.get("/favicon.ico", include_in_schema=False)
    async def icon(request: Request) -> Response:
        return await files.get_response("icon.svg", request.scope)


def add_docs(app: FastAPI) -> None:
    """Serve the API documentation at /docs, with its scripts, so that it works offline."""
    # The package only contains the files of Swagger UI, so it is not imported.
    app.mount(f"/{_DOCS}", StaticFiles(packages=[("fastapi_offline", "static")]), name="docs")

    @app.head("/docs", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url=f"{_DOCS}/swagger-ui-bundle.js",
            swagger_css_url=f"{_DOCS}/swagger-ui.css",
            swagger_favicon_url=f"{_DOCS}/favicon.png",
            swagger_ui_parameters={"validatorUrl": None},
        )
