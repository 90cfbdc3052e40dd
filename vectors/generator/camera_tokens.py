"""Generate camera_token_test.json: the normative cases as they are on the wire."""

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


def make(here: Path) -> Document:
    """Copy the values from the file that was computed with OpenSSL."""
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
