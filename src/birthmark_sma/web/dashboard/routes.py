"""Everything below /dashboard, for the application to take in."""

from fastapi import FastAPI

from birthmark_sma.web.dashboard import (
    callers,
    certificates,
    devices,
    overview,
    sign_in,
    static_files,
    tables,
    validations,
)

_ROUTERS = tuple(
    each.router for each in (overview, devices, validations, tables, certificates, callers, sign_in)
)


def install(app: FastAPI) -> None:
    """Add the pages, and what they load."""
    for router in _ROUTERS:
        app.include_router(router)
    app.mount(static_files.PATH, static_files.serve)
