"""/docs: the API's page, whose scripts come from this server, so that it opens offline too."""

from typing import Final

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.responses import HTMLResponse

_STATIC: Final = "docs/static"


def add_docs(app: FastAPI) -> None:
    """Serve the page at /docs, and what it loads below it.

    Its addresses are relative, so that it works below whatever path a proxy gives it.
    """
    # Nothing of that package is imported: it is a folder of Swagger UI that pip keeps up to date.
    app.mount(f"/{_STATIC}", StaticFiles(packages=[("fastapi_offline", "static")]), name="docs")

    @app.head("/docs", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url=f"{_STATIC}/swagger-ui-bundle.js",
            swagger_css_url=f"{_STATIC}/swagger-ui.css",
            swagger_favicon_url=f"{_STATIC}/favicon.png",
            swagger_ui_parameters={"validatorUrl": None},
        )
