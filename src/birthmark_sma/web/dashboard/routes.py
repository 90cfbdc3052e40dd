"""Register all routes below /dashboard in the FastAPI application."""

from fastapi import FastAPI

from birthmark_sma.web.dashboard import (
    access_keys,
    audit_log,
    certificates,
    devices,
    overview,
    sign_in,
    static_files,
    tables,
)

_ROUTERS = tuple(
    each.router
    for each in (overview, devices, audit_log, tables, certificates, access_keys, sign_in)
)


def install(app: FastAPI) -> None:
    """Add the pages and their static files to the application."""
    for router in _ROUTERS:
        app.include_router(router)
    app.mount(static_files.PATH, static_files.serve)
