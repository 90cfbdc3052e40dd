"""Everything below /dashboard, for the application to take in."""

from fastapi import FastAPI

from birthmark_sma.web.dashboard import devices, overview, sign_in, static_files, validations

_ROUTERS = (overview.router, devices.router, validations.router, sign_in.router)


def install(app: FastAPI) -> None:
    """Add the pages, and what they load."""
    for router in _ROUTERS:
        app.include_router(router)
    app.mount(static_files.PATH, static_files.serve)
