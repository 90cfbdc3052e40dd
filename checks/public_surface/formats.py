"""Collect the stored formats that a later version of the program must still read.

Key derivations are recorded as digests of derived keys. If a digest changes, a later version can
no longer open data of an earlier one. The keys here are constants and protect nothing. The digests
hold at the full derivation cost, which tests lower (tests/support/derivation_cost.py).
"""

import dataclasses
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from checks.public_surface import places
from checks.public_surface.json_schema import inline, without_prose
from checks.public_surface.text import find_shape, format_type

_CONSTANT_KEY = bytes(range(32))
_CONSTANT_SALT = bytes(16)


def collect_formats() -> dict[str, Any]:
    """Return the formats of files, sealed values, access keys and the protocol."""
    return {
        "versions": places.list_format_versions(),
        "file_names": places.list_file_names(),
        "backup_manifest": _describe_manifest(),
        "wrapped_values": _describe_wrapping(),
        "key_encryption_key_sources": [each.value for each in places.KekSource],
        "access_keys": places.list_access_key_format(),
        "device": _describe_device(),
        "protocol": _describe_protocol(),
    }


def _describe_manifest() -> Any:
    schema = places.backup_manifest.Manifest.model_json_schema()
    return inline(without_prose(schema), schema["$defs"])


def _digest(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()[:16]


def _describe_wrapping() -> dict[str, Any]:
    key = places.make_key_encryption_key(_CONSTANT_KEY)
    nonce, place = bytes(12), b"place"
    # Sealed without the product's code, to prove the layout: nonce, ciphertext, tag.
    by_hand = nonce + AESGCM(_CONSTANT_KEY).encrypt(nonce, b"secret", place)
    given = places.KekSecret(lambda: b"constant")
    return {
        "additional_data": places.list_additional_data(),
        "bytes_added": len(key.wrap(b"", place)),
        "nonce_then_ciphertext_then_tag": key.unwrap(by_hand, place) == b"secret",
        "key_from_passphrase": _digest(given.obtain("passphrase", _CONSTANT_SALT)),
        "key_for_nuc_hashes": _digest(key.derive_nuc_hash_key()),
        "stored_nuc_hash": _digest(places.digest_nuc_hash(_CONSTANT_KEY, bytes(32))),
    }


def _describe_device() -> dict[str, Any]:
    sealing = places.state_encryption
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "key"
        path.touch(0o600)
        path.write_bytes(_CONSTANT_KEY)
        sealings = {
            "unsealed": sealing.UNSEALED,
            "passphrase": sealing.passphrase("constant"),
            "key file": sealing.key_file(path),
            "key command": sealing.key_command(["cat", str(path)]),
        }
        described = {
            name: {
                "kind": each.kind,
                "key": None if each.derive is None else _digest(each.derive(_CONSTANT_SALT)),
                "file": _describe_text_lengths(json.loads(sealing.seal(b"", each))),
            }
            for name, each in sealings.items()
        }
    return {
        "sealings": described,
        "states": {
            kind: {each.name: format_type(each.type) for each in dataclasses.fields(state)}
            for kind, state in places.list_device_states().items()
        },
        "files": places.list_device_files(),
        "records": {
            name: find_shape(json.loads(content))
            for name, content in places.make_device_records().items()
        },
    }


def _describe_text_lengths(fields: dict[str, str]) -> dict[str, Any]:
    """Return the fields of a sealed file. Random values are replaced by their length."""
    constant = {"format", "sealing"}
    return {
        name: value if name in constant else f"{len(value)} characters"
        for name, value in sorted(fields.items())
    }


def _describe_protocol() -> dict[str, Any]:
    return {
        "derivations": {
            name: {
                "salt": each.salt.decode(),
                "info_suffix": each.info_suffix.decode(),
                "number": each.number,
                "label": each.label.decode(),
            }
            for name, each in places.list_derivations().items()
        },
        "table_sizes": {
            name: [each.tables, each.keys_per_table]
            for name, each in places.list_table_sizes().items()
        },
        "bundle_limits": places.list_bundle_limits(),
        "reasons": {
            reason.value: [reason.verdict.value, reason.told_to_caller]
            for reason in places.verdict.Reason
        },
        "repeats": [each.value for each in places.replay.Repeat],
        "token_digest_bytes": places.camera_token.DIGEST_BYTES,
    }
