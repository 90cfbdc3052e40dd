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
    script = f'<script src="{STATIC_PATH}/color_scheme.js"></script>\n</head>'
    return HTMLResponse(bytes(page.body).decode().replace("</head>", script, 1))


async def _redoc(request: Request) -> HTMLResponse:
    app: FastAPI = request.app
    return get_redoc_html(
        openapi_url=str(app.openapi_url),
        title=f"{app.title} - ReDoc",
        redoc_js_url=f"{STATIC_PATH}/vendor/redoc/redoc.standalone.js",
        redoc_favicon_url=_ICON,
        with_google_fonts=False,
    )


async def _oauth2_redirect(_: Request) -> HTMLResponse:
    return get_swagger_ui_oauth2_redirect_html()
