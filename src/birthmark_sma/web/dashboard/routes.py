"""The routers of all pages below /dashboard."""

from birthmark_sma.web.dashboard import (
    access_keys,
    audit_log,
    certificates,
    devices,
    overview,
    sign_in,
    tables,
)

ROUTERS = tuple(
    each.router
    for each in (overview, devices, audit_log, tables, certificates, access_keys, sign_in)
)
