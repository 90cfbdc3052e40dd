"""JSON objects of access keys. A secret is added by the one response that may show it."""

from datetime import datetime
from typing import Any

from birthmark_sma.authority.access.keys import IssuedKey
from birthmark_sma.authority.access.store import AccessKey

_TERMS = (*("device_family", "uses", "uses_allowed", "may_re_enrol", "disclosure", "rate_limit"),)
_TIMES = ("created_at", "expires_at", "revoked_at", "last_used_at")


def access_key_as_json(key: AccessKey, now: datetime) -> dict[str, Any]:
    """Return an access key, without its secret, which is not stored."""
    return {
        "name": key.name,
        "id": key.key_id,
        "scope": key.scope.value,
        "state": key.state_at(now),
        **{name: getattr(key, name) for name in _TERMS},
        "certificate_sha256": key.certificate_fingerprint and key.certificate_fingerprint.hex(),
        "certificate_issuer": key.certificate_issuer,
        **{name: getattr(key, name) for name in _TIMES},
    }


def issued_key_as_json(issued: IssuedKey, now: datetime) -> dict[str, Any]:
    """Return a key with its new secret, or None for a key of a client certificate."""
    return access_key_as_json(issued.key, now) | {"key": issued.secret}


def revoked_key_as_json(key: AccessKey) -> dict[str, Any]:
    """Return a key that was just revoked."""
    return {"name": key.name, "id": key.key_id, "state": "revoked"}
