"""The examples in the OpenAPI document.

`web.api.models`, `web.api.openapi` and the endpoints use them. All values are made up; no key is in
use anywhere.
"""

from pydantic import JsonValue

_HEX = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

_PUBLIC_KEY = """-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt
6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==
-----END PUBLIC KEY-----
"""
REQUEST_ID = "5d41b7a09c2e-1f3"
"""A request id in the form that the server makes if the sender gave none."""

_CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIC...\n-----END CERTIFICATE-----\n"

CAMERA_TOKEN: dict[str, JsonValue] = {
    "encrypted_nuc_hash": _HEX + _HEX[:32],
    "table_id": 42,
    "key_index": 234,
    "nonce": _HEX[:24],
}

PUBLISHED_REQUEST: dict[str, JsonValue] = {
    "camera_token": {
        "ciphertext": _HEX,
        "auth_tag": _HEX[:32],
        "nonce": _HEX[:24],
        "table_id": 42,
        "key_index": 234,
    },
    "manufacturer_authority_id": "SimulatedMfg",
}
LEGACY_REQUEST: dict[str, JsonValue] = {
    "ciphertext": (_HEX + _HEX[:16]).encode().hex(),
    "table_references": [12, 87, 203],
    "key_indices": [5, 77, 901],
}
PUBLISHED_VALID: dict[str, object] = {"valid": True, "message": "The camera token is valid."}
PUBLISHED_NOT_VALID: dict[str, object] = {
    "valid": False,
    "message": "The camera token is not valid.",
}

PROVISION_REQUESTS: list[JsonValue] = [
    {
        "device_serial": "camera-0001",
        "device_family": "Android",
        "app_version": "1.4.0",
        "device_public_key": _PUBLIC_KEY,
    },
    {
        "device_serial": "camera-0001",
        "device_family": "Android",
        "csr": "-----BEGIN CERTIFICATE REQUEST-----\nMIIB...\n-----END CERTIFICATE REQUEST-----\n",
        "key_encryption_public_key": _PUBLIC_KEY,
    },
]

PROVISIONED: dict[str, object] = {
    "device_certificate": _CERTIFICATE,
    "certificate_chain": [_CERTIFICATE, _CERTIFICATE],
    "table_assignments": [42, 1337, 2048],
    "provisioning_id": "PROV-20261122-11E3C9B113DD3612",
    "simulated_nuc_hash": _HEX,
    "table_keys": {"42": _HEX, "1337": _HEX, "2048": _HEX},
}

RENEW_REQUESTS: list[JsonValue] = [
    {
        "device_certificate": _CERTIFICATE,
        "csr": "-----BEGIN CERTIFICATE REQUEST-----\nMIIB...\n-----END CERTIFICATE REQUEST-----\n",
        "key_encryption_public_key": _PUBLIC_KEY,
        "supersede": False,
        "requested_at": "2028-03-22T17:11:36.476000Z",
        "signature": "MEUCIQDx...(base64)",
    }
]
RENEWED: dict[str, object] = {
    "device_certificate": _CERTIFICATE,
    "certificate_chain": [_CERTIFICATE, _CERTIFICATE],
    "table_assignments": [42, 1337, 2048],
    "renewed_at": "2028-03-22T17:11:36.871Z",
    "sealed_secrets": "eyJhbGciOiJFQ0RILUVTK0EyNTZLVyIsImVuYyI6IkEyNTZHQ00ifQ.(four more parts)",
}
RENEWAL_WINDOW: dict[str, object] = {
    "suggestedWindow": {"start": "2028-03-20T09:30:00Z", "end": "2028-04-19T09:30:00Z"}
}

_VERDICT: dict[str, object] = {
    "manufacturer_id": "SimulatedMfg",
    "timestamp": "2026-11-22T17:11:36.476Z",
}
PASS: dict[str, object] = {
    "validation_result": "PASS",
    "device_family": "Android",
    "device_serial": "camera-0001",
    **_VERDICT,
}
FAIL: dict[str, object] = {
    "validation_result": "FAIL",
    "device_family": None,
    "device_serial": None,
    **_VERDICT,
}

BATCH: dict[str, object] = {
    "results": [PASS, FAIL, {"validation_result": "FAIL", "error": "Unknown table ID"}]
}

_IN_THE_CLEAR = {"simulated_nuc_hash", "table_keys"}
PROVISIONED_SEALED: dict[str, object] = {
    **{name: value for name, value in PROVISIONED.items() if name not in _IN_THE_CLEAR},
    "sealed_secrets": "eyJhbGciOiJFQ0RILUVTK0EyNTZLVyIsImVuYyI6IkEyNTZHQ00ifQ.(four more parts)",
}

HEALTHY: dict[str, object] = {
    "status": "healthy",
    "service": "birthmark-sma",
    "version": "0.1.0",
    "database": "connected",
    "devices_registered": 1200,
}
UNHEALTHY: dict[str, object] = {
    "status": "unhealthy",
    "service": "birthmark-sma",
    "version": "0.1.0",
    "database": "disconnected",
    "devices_registered": None,
}

STATS: dict[str, object] = {
    "total_devices": 1200,
    "recent_validations_24h": {"PASS": 86210, "FAIL": 14},
    "fail_reasons_24h": {"not_opened": 11, "unknown_device": 3},
    "repeats_24h": {"replayed": 2, "dual_submission": 40170},
    "validations_per_hour": [{"hour": "2026-11-22T17:00:00.000Z", "PASS": 702, "FAIL": 0}],
    "top_devices": [{"device_serial": "camera-0001", "count": 412}],
    "devices_by_family": {"Android": 900, "iOS": 300},
    "key_tables": 2500,
    "since": "2026-11-21T17:11:36.871Z",
    "until": "2026-11-22T17:11:36.871Z",
}
