"""Dashboard page "Callers": the access keys, their restrictions and their last use.

It must never show the secret of a key.
"""

from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import Response

from birthmark_sma.authority.access import store as access_key_store
from birthmark_sma.authority.access.store import AccessKey
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.rate_limits.limiter import rate_text
from birthmark_sma.authority.rate_limits.limits import Kind
from birthmark_sma.counts import counted
from birthmark_sma.web.dashboard.rendering import render_page
from birthmark_sma.web.server_state import ApiRequest

_MOST = 500  # keys on the page; the page gives the number of the others

router = APIRouter(include_in_schema=False)


@router.get("/dashboard/callers")
async def show_callers(request: ApiRequest) -> Response:
    """Show up to 500 access keys, valid ones first, and the default rate limits."""
    authority = request.server.authority
    return await render_page(
        request, "callers.html", lambda connection: _read(connection, authority)
    )


def _read(connection: Connection, authority: Authority) -> dict[str, Any]:
    now = authority.database.clock.now()
    keys = sorted(access_key_store.all_keys(connection), key=lambda key: not key.is_good(now))
    return {
        "keys": [(key, key.state_at(now), _terms(key)) for key in keys[:_MOST]],
        "more": max(0, len(keys) - _MOST),
        "in_force": sum(key.is_good(now) for key in keys),
        "access": authority.settings.resolved_access.value,
        "limits": [(kind.value, rate_text(authority.settings, kind)) for kind in Kind],
    }


def _terms(key: AccessKey) -> list[str]:
    """Return the restrictions of a key, each as a few words."""
    told = []
    if key.device_family is not None:
        told.append(f"family {key.device_family}")
    if key.uses_allowed is not None:
        told.append(f"{key.uses:,} of {counted(key.uses_allowed, 'device')} used")
    if key.may_re_enrol:
        told.append("may re-enrol devices")
    if key.disclosure is not None:
        told.append(f"tells {key.disclosure}")
    if key.certificate_fingerprint is not None:
        told.append(f"certificate {key.certificate_fingerprint.hex()[:16]}…")
    if key.certificate_issuer is not None:
        told.append(f"certificates of {key.certificate_issuer}")
    return told
