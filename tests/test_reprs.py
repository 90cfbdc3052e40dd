"""No object that holds a secret tells it: every class of the code base is looked at."""

import dataclasses
import gc
import importlib
import inspect
import pickle
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

import birthmark_sma
from birthmark_sma.authority.provisioning.issuance import ProvisioningRequest
from birthmark_sma.config import NewSecret, load_settings
from tests.support.authorities import new_authority, new_camera, request_for, small_settings
from tests.support.secret_search import found_in

_TELLING = re.compile(
    r"secret|passphrase|password|private|key|nuc_hash|nonce|token|jwe|sealed|wrapped|command"
    r"|database_url|salt|response"
)
_IN_THE_OPEN = {
    # public keys, numbers, names and digests that stand for nothing secret
    "kek_id", "key_id", "key_index", "keys_per_table", "key_tables", "ca_key", "ca_keys",
    "earlier_table_keys", "audit_keys",
    "device_public_key", "public_key", "public_key_fingerprint", "key_encryption_public_key",
    "nuc_hash_keys", "nuc_hash_index", "kek_file", "new_kek_file", "root_key", "root_key_file",
    "ca_key_type", "make_keys", "recipient", "passphrase_file", "keys", "tokens", "request_digest",
    "token_digest", "rewrapped", "key_usage", "extended_key_usage", "salt", "tls_key",
}  # fmt: skip

_OPEN_THERE = {
    "IssuedKey.key", "_CachedKey.key", "TlsFiles.key", "Manifest.key_encryption_keys",
    "Setting.commands", "TargetOptions.validate_key_file", "RunOptions.validate_key_file",
    "RunOptions.enrolment_key_file", "RotationPlan.keeps_passphrase", "Renewal.new_key",
    "Settings.server_key_file",
}  # fmt: skip
"""Records of keys, which hide digests and wrapped secrets themselves; paths; commands; a choice."""


def classes() -> Iterator[type]:
    """Every class that the package defines."""
    for module in pkgutil.walk_packages(birthmark_sma.__path__, "birthmark_sma."):
        if "migrations" in module.name or module.name.endswith("__main__"):
            continue
        for _, member in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if member.__module__ == module.name:
                yield member


def told_fields(of: type) -> Iterator[str]:
    """The fields that its repr tells, but for those whose type hides what they hold."""
    if dataclasses.is_dataclass(of):
        yield from (each.name for each in dataclasses.fields(of) if each.repr)
    elif issubclass(of, BaseModel):
        for name, each in of.model_fields.items():
            if each.repr and "SecretStr" not in str(each.annotation):
                yield name


CLASSES = sorted(
    {c for c in classes() if dataclasses.is_dataclass(c) or issubclass(c, BaseModel)},
    key=lambda c: f"{c.__module__}.{c.__qualname__}",
)


@pytest.mark.parametrize("of", CLASSES, ids=lambda c: f"{c.__module__}.{c.__qualname__}")
def test_no_field_that_may_be_secret_is_told(of: type) -> None:
    """Threat 28: a new field with such a name is hidden, or named above as one in the open."""
    open_here = {name.partition(".")[2] for name in _OPEN_THERE if name.startswith(of.__name__)}
    told = [n for n in told_fields(of) if _TELLING.search(n)]
    told = [n for n in told if n not in _IN_THE_OPEN | open_here]
    assert not told, f"{of.__qualname__} tells {told}"


def test_there_are_classes_to_look_at() -> None:
    names = {c.__qualname__ for c in CLASSES}
    assert {"Settings", "OpenedSecrets", "StoredCa", "KekRecord", "ProvisionResponse"} <= names


def test_nothing_alive_tells_a_secret(tmp_path: Path) -> None:
    """Threat 28: with an authority open and at work, every object of ours is asked."""
    settings = small_settings(tmp_path, None, data_dir=tmp_path / "data")
    with new_authority(settings) as authority:
        camera = new_camera(authority, "camera", idempotency_key="idempotent")
        token = camera.token()
        key = authority.issuer.signer.key.private_numbers()
        needles = {
            "passphrase": settings.ca_password.get_secret_value().encode(),  # type: ignore[union-attr]
            "NUC hash": camera.nuc_hash,
            "nonce": token.nonce,
            "kek": settings.kek_file.read_bytes(),  # type: ignore[union-attr]
            "CA key": key.private_value.to_bytes(32, "big"),  # type: ignore[union-attr]
        }
        needles |= {f"table {n}": k for n, k in camera.table_keys.items()}
        seen = 0
        # The collection of tests froze the objects of before.
        gc.unfreeze()
        for thing in [*gc.get_objects(), authority, settings, token]:
            if str(type(thing).__module__).startswith("birthmark_sma"):
                seen += 1
                told = repr(thing).encode()
                escaped = {name: repr(secret)[2:-1].encode() for name, secret in needles.items()}
                assert found_in(told, needles) == [], type(thing)
                assert not [name for name, it in escaped.items() if it in told], type(thing)
        assert seen > 20


def test_what_travels_to_workers_tells_nothing() -> None:
    """Settings are pickled for worker processes, over a pipe: there and after they hide as well."""
    secret = "c0rrect-horse-battery"
    settings = load_settings(
        {"ca_password": secret, "database_url": f"postgresql://u:{secret}@h/d"}, {}
    )
    settings = settings.model_copy(update={"kek_command": f"vault read {secret}"})
    travelled = pickle.loads(pickle.dumps(settings))
    assert travelled == settings
    new = NewSecret(new_ca_password=SecretStr(secret), new_kek_command=secret)
    for thing in (settings, travelled, new):
        assert secret not in f"{thing!r} {thing}"


def test_the_idempotency_key_is_hidden() -> None:
    shown: Any = repr(request_for("x", idempotency_key="n33dle", nuc_hash=b"n33dle"))
    assert "n33dle" not in shown
    assert isinstance(request_for("x"), ProvisioningRequest)
