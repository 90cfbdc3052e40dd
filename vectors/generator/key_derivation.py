"""Generate key_derivation_test.json: the normative cases, and those of the published clients."""

import json
from pathlib import Path
from typing import Any

from vectors.generator.document import Case, Document, Group


def make(here: Path) -> Document:
    """Copy the values from the files that were computed with OpenSSL."""
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
