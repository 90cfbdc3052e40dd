"""JSON Schemas (2020-12) of the files. They refuse fields that they do not define."""

from typing import Any

from birthmark_sma.protocol.verdict import DeviceStatus

_STATUSES = [each.value for each in DeviceStatus]
_DRAFT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
PEM: Schema = {"type": "string", "pattern": "^-----BEGIN [A-Z ]+-----\n"}
INTEGER: Schema = {"type": "integer"}
BOOLEAN: Schema = {"type": "boolean"}
MOMENT: Schema = {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z$"}
LOWER_HEX: Schema = {"type": "string", "pattern": "^([0-9a-f]{2})*$"}


def _hex(size: int) -> Schema:
    return {"type": "string", "pattern": f"^[0-9a-f]{{{2 * size}}}$"}


def _object(required: Schema, optional: Schema | None = None) -> Schema:
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _test(required: Schema, optional: Schema | None = None) -> Schema:
    return _object(
        {
            "tcId": {"type": "integer", "minimum": 1},
            "comment": TEXT,
            "flags": _list(TEXT),
            **required,
            "result": {"enum": ["valid", "invalid", "acceptable"]},
        },
        optional,
    )


def _sound_if_valid(test: Schema, response: Schema) -> Schema:
    """Return a schema in which only the responses of valid tests follow the API."""
    valid = {"properties": {"result": {"const": "valid"}}}
    return {**test, "if": valid, "then": {"properties": {"response": response}}}


def _group(kinds: list[str], shared: Schema, test: Schema) -> Schema:
    return _object({"type": {"enum": kinds}, **shared, "tests": _list(test)})


def _file(title: str, *groups: Schema) -> Schema:
    return {
        "$schema": _DRAFT,
        "title": title,
        **_object(
            {
                "algorithm": TEXT,
                "schema": TEXT,
                "generatorVersion": TEXT,
                "numberOfTests": {"type": "integer", "minimum": 1},
                "header": _list(TEXT),
                "notes": {"type": "object", "additionalProperties": _object({"description": TEXT})},
                "testGroups": {
                    "type": "array",
                    "minItems": 1,
                    "items": {"oneOf": list(groups)} if len(groups) > 1 else groups[0],
                },
            }
        ),
    }


_CAMERA_TOKEN = _object(
    {"encrypted_nuc_hash": TEXT, "table_id": INTEGER, "key_index": INTEGER, "nonce": TEXT}
)
_TABLE_KEYS: Schema = {"type": "object", "additionalProperties": _hex(32)}
_RESPONSE = _object(
    {
        "device_certificate": PEM,
        "certificate_chain": {"type": "array", "items": PEM, "minItems": 2, "maxItems": 2},
        "table_assignments": {"type": "array", "items": INTEGER, "minItems": 3, "maxItems": 3},
        "provisioning_id": {"type": "string", "pattern": "^PROV-[0-9]{8}-[0-9A-F]+$"},
        "sealed_secrets": TEXT,
    }
)
_SECRETS = _object(
    {
        "device_serial": TEXT,
        "certificate_sha256": _hex(32),
        "nuc_hash": _hex(32),
        "table_keys": _TABLE_KEYS,
    }
)
_RECIPIENT = {
    "recipientKind": {"enum": ["P-256", "P-384", "X25519", "RSA 2048"]},
    "recipientLabel": TEXT,
}
_SIZES = {"keySizeBits": {"const": 256}}

SCHEMAS: dict[str, Schema] = {
    "key_derivation": _file(
        "Key derivation",
        _group(
            ["Normative", "PublishedClients"],
            {"salt": LOWER_HEX, "infoSuffix": LOWER_HEX, **_SIZES},
            _test(
                {
                    "masterKey": _hex(32),
                    "keyIndex": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
                    "derivedKey": _hex(32),
                }
            ),
        ),
    ),
    "camera_token": _file(
        "Camera tokens",
        _group(
            ["CameraToken"],
            {
                **_SIZES,
                "ivSizeBits": {"const": 96},
                "tagSizeBits": {"const": 128},
                "keysPerTable": INTEGER,
            },
            _test({"masterKey": _hex(32), "cameraToken": _CAMERA_TOKEN}, {"nucHash": _hex(32)}),
        ),
    ),
    "provisioning_response": _file(
        "Provisioning responses",
        _group(
            ["Response"],
            {
                "root": PEM,
                "now": MOMENT,
                "deviceSerial": TEXT,
                "devicePublicKey": PEM,
                "deviceLabel": TEXT,
                **_RECIPIENT,
            },
            _sound_if_valid(
                _test({"response": {"type": "object"}}, {"secrets": _SECRETS}), _RESPONSE
            ),
        ),
        _group(["Sealed"], _RECIPIENT, _test({"sealedSecrets": TEXT}, {"secrets": _SECRETS})),
    ),
    "certificate_chain": _file(
        "Certification paths",
        _group(
            ["CertificateChain"],
            {"root": PEM},
            _test({"chain": _list(PEM), "now": MOMENT}, {"deviceSerial": TEXT, "deviceUrn": TEXT}),
        ),
    ),
    "bundle_signature": _file(
        "Bundles and their signatures",
        _group(
            ["BundleSignature"],
            {
                "keyKind": {"enum": ["EC P-256", "EC P-384", "RSA 2048", "Ed25519"]},
                "publicKey": PEM,
                "deviceLabel": TEXT,
            },
            _test({"bundle": TEXT, "signedBytes": LOWER_HEX, "signature": LOWER_HEX}),
        ),
        _group(
            ["Bundle"],
            {"root": PEM, "now": MOMENT, "deviceLabel": TEXT},
            _test({"bundle": TEXT}, {"deviceSerial": TEXT}),
        ),
    ),
    "renewal_proof": _file(
        "Proofs of renewals",
        _group(
            ["RenewalProof"],
            {
                "keyKind": {"enum": ["EC P-256", "EC P-384", "RSA 2048", "Ed25519"]},
                "publicKey": PEM,
                "deviceLabel": TEXT,
            },
            _test(
                {
                    "certificate": LOWER_HEX,
                    "csr": LOWER_HEX,
                    "recipientKey": {"oneOf": [LOWER_HEX, {"type": "null"}]},
                    "requestedAt": TEXT,
                    "supersede": BOOLEAN,
                    "signedBytes": LOWER_HEX,
                    "signature": LOWER_HEX,
                }
            ),
        ),
    ),
    "verdict": _file(
        "Verdicts",
        _group(
            ["Verdict"],
            {"tables": INTEGER, "keysPerTable": INTEGER},
            _test(
                {
                    "tableId": INTEGER,
                    "keyIndex": INTEGER,
                    "opened": BOOLEAN,
                    "device": {
                        "oneOf": [
                            {"type": "null"},
                            _object(
                                {
                                    "status": {"enum": _STATUSES},
                                    "tableAssignments": _list(INTEGER),
                                }
                            ),
                        ]
                    },
                    "verdict": {"enum": ["PASS", "FAIL"]},
                    "reason": TEXT,
                    "toldToCaller": {"type": ["string", "null"]},
                }
            ),
        ),
    ),
}
