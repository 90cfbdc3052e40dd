"""The examples of the administration API in the OpenAPI document. All values are made up."""

from typing import Any

_TIME = "2026-11-30T09:00:00.000000Z"
_HEX = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_PEM = "-----BEGIN CERTIFICATE-----\nMIIC...\n-----END CERTIFICATE-----\n"

DEVICE: dict[str, Any] = {
    "device_serial": "camera-0001",
    "device_family": "Android",
    "app_version": "1.4.0",
    "status": "active",
    "status_reason": None,
    "status_actor": None,
    "status_changed_at": None,
    "table_assignments": [42, 1337, 2048],
    "table_epochs": [0, 0, 0],
    "provisioning_id": "PROV-20261122-11E3C9B113DD3612",
    "provisioned_at": _TIME,
    "certificate_serial": "4f0c2a9b7d6e5f40",
    "certificate_expires_at": "2028-11-29T09:00:00Z",
    "certificate_renewed_at": None,
    "public_key_sha256": _HEX,
    "device_certificate": _PEM,
}
WHOLE_DEVICE = DEVICE | {"re_enrolment_allowed_until": None, "earlier_certificates": []}
DEVICES = {"devices": [DEVICE], "total": 1, "next_cursor": None}
SUSPENDED: dict[str, Any] = {
    "act": "suspend",
    "done": True,
    "reason": "certificate_hold",
    "compromised_since": None,
    "actor": "night-shift",
    "changed": ["camera-0001"],
    "unchanged": [],
    "refused": [],
    "refused_statuses": [],
    "unknown": [],
    "changed_devices": 1,
    "unchanged_devices": 0,
    "refused_devices": 0,
    "counts": [{"device_family": "Android", "status": "active", "devices": 1}],
}
PERMISSION = {
    "device_serial": "camera-0001",
    "allowed_until": "2026-12-07T09:00:00.000000Z",
    "actor": "night-shift",
    "opened_at": _TIME,
}
ACCESS_KEY: dict[str, Any] = {
    "name": "newsroom-1",
    "id": "ijk3l2mn4o",
    "scope": "validate",
    "state": "in force",
    "device_family": None,
    "uses": 0,
    "uses_allowed": None,
    "may_re_enrol": False,
    "disclosure": "family",
    "rate_limit": None,
    "certificate_sha256": None,
    "certificate_issuer": None,
    "created_at": _TIME,
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": None,
}
ISSUED_KEY = ACCESS_KEY | {"key": "sma_ijk3l2mn4o_..."}
ACCESS_KEYS = {"keys": [ACCESS_KEY], "next_cursor": None}
REVOKED_KEY = {"name": "newsroom-1", "id": "ijk3l2mn4o", "state": "revoked"}
FLAGS = {
    "total": 1,
    "flags": [
        {
            "device_serial": "camera-0001",
            "day": "2026-11-30",
            "mode": "flag",
            "pictures": 940,
            "usual": 31.5,
            "days_compared": 14,
            "threshold": 315,
            "flagged_at": _TIME,
            "reviewed_at": None,
            "device_family": "Android",
            "status": "active",
        }
    ],
    "next_cursor": None,
}
REVIEWED_FLAGS = {"device_serial": "camera-0001", "reviewed": 1}
VALIDATION: dict[str, Any] = {
    "id": 1024,
    "validated_at": _TIME,
    "validation_result": "FAIL",
    "reason": "device_suspended",
    "repeat": None,
    "device_serial": "camera-0001",
    "table_id": 42,
    "key_index": 234,
    "caller": "ijk3l2mn4o",
    "request_ip": "192.0.2.7",
    "request_id": "5d41b7a09c2e-1f3",
    "batch_position": None,
    "token_digest": _HEX[:32],
    "waited_us": 1800,
    "is_coarse": False,
}
VALIDATIONS = {"validations": [VALIDATION], "next_cursor": None, "looked_back_to": None}
REQUEST = {
    "request_id": "5d41b7a09c2e-1f3",
    "validations": [
        VALIDATION
        | {
            "meaning": "The device is suspended.",
            "advice": "Reinstate it if the suspension has no reason any more.",
            "repeat_meaning": None,
            "repeat_advice": None,
            "first_seen_at": _TIME,
            "first_caller": "key:ijk3l2mn4o",
            "seen_again": [],
        }
    ],
    "callers": {"key:ijk3l2mn4o": "newsroom-1"},
}
_TABLE: dict[str, Any] = {
    "table_id": 42,
    "epoch": 0,
    "rotated_at": None,
    "accepted_until": None,
}
TABLES = {"total": 2500, "open_overlaps": 0, "tables": [_TABLE], "next_cursor": "42"}
TABLE = _TABLE | {"devices": 1200, "passes": 88000, "fails": 12}
ISSUERS = {
    "issuers": [
        {
            "name": "intermediate",
            "role": "intermediate",
            "state": "active",
            "state_changed_at": None,
            "signed_by": "root",
            "devices": 1000,
            "subject": "CN=Simulated Mfg Intermediate CA,O=Birthmark Simulated Manufacturer",
            "issuer": "CN=Simulated Mfg Root CA,O=Birthmark Simulated Manufacturer",
            "serial_number": "4f0c2a9b7d6e5f40",
            "not_before": "2026-11-22T09:00:00Z",
            "not_after": "2031-11-21T09:00:00Z",
            "sha256_fingerprint": "9F:86:...",
            "certificate": _PEM,
        }
    ],
    "next_cursor": None,
}
ACT_ITEM: dict[str, Any] = {
    "id": 17,
    "acted_at": _TIME,
    "act": "device.suspend",
    "actor": "night-shift",
    "role": "operate",
    "source": "api",
    "request_id": "5d41b7a09c2e-1f3",
    "subject_kind": "device",
    "subject": "camera-0001",
    "subjects": 1,
    "reason": "certificate_hold",
    "before": {"status": "active"},
    "after": {"status": "suspended", "reason": "certificate_hold"},
    "more": {},
}
ACTS = {"acts": [ACT_ITEM], "next_cursor": None}
ACT = ACT_ITEM | {"listed": [], "next_cursor": None}
