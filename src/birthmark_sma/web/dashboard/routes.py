"""The routers of all pages below /dashboard."""

from birthmark_sma.web.dashboard import (
    access_keys,
    certificates,
    devices,
    overview,
    sign_in,
    tables,
)
from birthmark_sma.web.dashboard.actions import access_keys as key_actions
from birthmark_sma.web.dashboard.actions import device_acts, flags, re_enrolment
from birthmark_sma.web.dashboard.health import page as health
from birthmark_sma.web.dashboard.trails import acts, audit_log

ROUTERS = tuple(
    each.router
    for each in (
        *(overview, devices, audit_log, acts, tables, certificates, access_keys, health, sign_in),
        *(device_acts, re_enrolment, flags, key_actions),
    )
)
