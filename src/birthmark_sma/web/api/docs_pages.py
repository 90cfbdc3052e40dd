"""The pages /docs (Swagger UI) and /redoc (ReDoc), which load nothing from another host.

`web.api.app` installs them in place of FastAPI's own pages, whose scripts come from another host.
The scripts are vendored in `static/vendor/`, each as its npm package has it.
"""

from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import (
    get_redoc_html,
    get_swagger_ui_html,
    get_swagger_ui_oauth2_redirect_html,
)
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

STATIC_PATH = "/static-offline-docs"
DOCS_PATH, REDOC_PATH, REDIRECT_PATH = "/docs", "/redoc", "/docs/oauth2-redirect"
_ICON = "/dashboard/static/mark.svg"


def install(app: FastAPI) -> None:
    """Add the pages and their files. The app must have been made without FastAPI's own pages."""
    app.mount(STATIC_PATH, StaticFiles(directory=Path(__file__).parent / "static"))
    for path, page in (
        (DOCS_PATH, _swagger_ui),
        (REDOC_PATH, _redoc),
        (REDIRECT_PATH, _oauth2_redirect),
    ):
        app.add_route(path, page, include_in_schema=False)


async def _swagger_ui(request: Request) -> HTMLResponse:
    app: FastAPI = request.app
    page = get_swagger_ui_html(
        openapi_url=str(app.openapi_url),
        title=f"{app.title} - Swagger UI",
        oauth2_redirect_url=REDIRECT_PATH,
        swagger_js_url=f"{STATIC_PATH}/vendor/swagger-ui/swagger-ui-bundle.js",
        swagger_css_url=f"{STATIC_PATH}/vendor/swagger-ui/swagger-ui.css",
        swagger_favicon_url=_ICON,
    )
    return _with_script(page, "color_scheme.js", "</head>", after=False)


async def _redoc(request: Request) -> HTMLResponse:
    app: FastAPI = request.app
    page = get_redoc_html(
        openapi_url=str(app.openapi_url),
        title=f"{app.title} - ReDoc",
        redoc_js_url=f"{STATIC_PATH}/vendor/redoc/redoc.standalone.js",
        redoc_favicon_url=_ICON,
        with_google_fonts=False,
    )
    # After the element that it changes, and before ReDoc reads that.
    return _with_script(page, "redoc_colors.js", "</redoc>", after=True)


def _with_script(page: HTMLResponse, name: str, tag: str, *, after: bool) -> HTMLResponse:
    """Return a page with one of our scripts before or after the first occurrence of a tag."""
    script = f'<script src="{STATIC_PATH}/{name}"></script>'
    replaced = f"{tag}\n{script}" if after else f"{script}\n{tag}"
    return HTMLResponse(bytes(page.body).decode().replace(tag, replaced, 1))


async def _oauth2_redirect(_: Request) -> HTMLResponse:
    return get_swagger_ui_oauth2_redirect_html()
