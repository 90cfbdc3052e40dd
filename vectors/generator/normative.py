"""Generate key_derivation_test.json and camera_token_test.json.

The values are those of the normative files, which were computed with OpenSSL.
"""

import json
from pathlib import Path
from typing import Any

from vectors.generator.document import Case, Document, Group, Result

_TABLE_ID = 7
_KEYS_PER_TABLE = 1_000
_NOTES = {
    "Altered": "Well formed, but something is not as it was sealed: the tag does not verify.",
    "Malformed": "To be refused before any cryptography: lengths, hex, or an index that no table"
    " has.",
}


def key_derivation(here: Path) -> Document:
    """Return the normative derivation, and that of the published clients."""
    groups = []
    for kind, name, suffix in (
        ("Normative", "key_derivation.json", ""),
        ("PublishedClients", "key_derivation_published_clients.json", b"Birthmark".hex()),
    ):
        source: dict[str, Any] = json.loads((here / name).read_text(encoding="ascii"))
        tests = [
            Case(
                case["comment"],
                "valid",
                {name: case[name] for name in ("masterKey", "keyIndex", "derivedKey")},
                ("BigIndex",) if case["keyIndex"] > 999 else (),
            )
            for case in source["tests"]
        ]
        shared = {"salt": source["salt"], "infoSuffix": suffix, "keySizeBits": 256}
        groups.append(Group(kind, tests, shared))
    notes = {"BigIndex": "An index beyond the 1,000 keys of a table: all four bytes of it count."}
    used = {flag for group in groups for test in group.tests for flag in test.flags}
    return Document(
        algorithm="HKDF-SHA256",
        schema="schemas/key_derivation_test_schema.json",
        header=[
            "From a key table's master key to one of its keys (RFC 5869).",
            "info is the key index as 4 bytes big-endian, followed by infoSuffix.",
        ],
        notes={name: text for name, text in notes.items() if name in used},
        groups=groups,
    )


def camera_tokens(here: Path) -> Document:
    """Return the camera tokens as they are on the wire."""
    source: dict[str, Any] = json.loads((here / "camera_token.json").read_text(encoding="ascii"))
    tests = [_test(case) for case in source["tests"]]
    return Document(
        algorithm="AES-256-GCM",
        schema="schemas/camera_token_test_schema.json",
        header=[
            "A NUC hash sealed under one key of a key table (SP 800-38D), without additional data.",
            "The key is derived from masterKey and key_index as key_derivation_test.json says.",
            "valid: opens to nucHash, and sealing again under the same nonce gives the same token.",
            "Hex is taken in either case, and written in lower case. A bundle has it in lower case"
            " alone: see bundle_signature_test.json.",
        ],
        notes=_NOTES,
        groups=[
            Group(
                "CameraToken",
                tests,
                {
                    "keySizeBits": 256,
                    "ivSizeBits": 96,
                    "tagSizeBits": 128,
                    "keysPerTable": _KEYS_PER_TABLE,
                },
            )
        ],
    )


def _test(case: dict[str, Any]) -> Case:
    results: dict[str, tuple[Result, tuple[str, ...]]] = {
        "valid": ("valid", ()),
        "invalid": ("invalid", ("Altered",)),
        "malformed": ("invalid", ("Malformed",)),
    }
    result, flags = results[case["result"]]
    return Case(case["comment"], result, _fields(case), flags)


def _fields(case: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "masterKey": case["masterKey"],
        "cameraToken": {
            "encrypted_nuc_hash": case["encryptedNucHash"],
            "table_id": _TABLE_ID,
            "key_index": case["keyIndex"],
            "nonce": case["nonce"],
        },
    }
    if "nucHash" in case:
        fields["nucHash"] = case["nucHash"]
    return fields
