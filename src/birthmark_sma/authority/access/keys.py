"""Create, rotate and revoke access keys, for `sma keys` and the dashboard.

A secret is returned once, by the function that creates it. This module must never store it: the
database gets its SHA-256 digest.
"""

import base64
import hashlib
import secrets
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Connection

from birthmark_sma.authority.access import store as access_key_store
from birthmark_sma.authority.access.cache import ID_CHARACTERS, PREFIX, digest
from birthmark_sma.authority.access.store import AccessKey, KeyScope
from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind, Actor
from birthmark_sma.authority.acts.trail import Facts, Subject
from birthmark_sma.authority.provisioning.issuance import MAX_DESCRIPTION, is_description
from birthmark_sma.errors import (
    AccessKeyNameError,
    AccessKeyRefusedError,
    RateRefusedError,
    UnknownAccessKeyError,
)
from birthmark_sma.rates import parse_rates
from birthmark_sma.storage.engine import Database

MAX_NAME = 64
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"  # base32, in small letters
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key and its secret, as a caller sends it. `secret` is None for a certificate's key."""

    key: AccessKey
    secret: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyTerms:
    """The properties of a new key. `AccessKey` explains each."""

    name: str
    scope: KeyScope
    expires_at: datetime | None = None
    device_family: str | None = None
    uses_allowed: int | None = None
    may_re_enrol: bool = False
    disclosure: str | None = None
    rate_limit: str | None = None
    certificate_fingerprint: bytes | None = None
    certificate_issuer: x509.Certificate | None = None


def create_key(database: Database, terms: KeyTerms, actor: Actor) -> IssuedKey:
    """Create an access key and return it with its secret. A key of a certificate has no secret.

    Raises AccessKeyRefusedError for terms that contradict each other, and AccessKeyNameError if a
    key that is not revoked has this name or this certificate.
    """
    now = database.clock.now()
    return database.transact(lambda transaction: add_key(transaction, terms, actor, now))


def add_key(transaction: Connection, terms: KeyTerms, actor: Actor, now: datetime) -> IssuedKey:
    """Create an access key in the caller's transaction, as `create_key` does."""
    _check(terms, now)
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(ID_CHARACTERS))
    issuer = terms.certificate_issuer
    by_certificate = terms.certificate_fingerprint is not None or issuer is not None
    secret = None if by_certificate else _new_secret(key_id)
    key = AccessKey(
        key_id=key_id,
        name=terms.name,
        scope=terms.scope,
        created_at=now,
        secret_digest=None if secret is None else digest(secret),
        certificate_fingerprint=terms.certificate_fingerprint,
        certificate_issuer=None if issuer is None else issuer.subject.rfc4514_string(),
        certificate_issuer_der=None if issuer is None else issuer.public_bytes(Encoding.DER),
        device_family=terms.device_family,
        uses_allowed=terms.uses_allowed,
        may_re_enrol=terms.may_re_enrol,
        disclosure=terms.disclosure,
        rate_limit=terms.rate_limit,
        expires_at=terms.expires_at,
    )
    _refuse_second(transaction, key)
    access_key_store.add_key(transaction, key)
    _record(transaction, actor, ActKind.ACCESS_KEY_CREATE, None, key)
    return IssuedKey(key, secret)


def revoke_key(
    database: Database, name_or_id: str, actor: Actor, *, expected: str | None = None
) -> AccessKey:
    """Revoke a key permanently and return it as it was. Servers refuse it within a second.

    Raises UnknownAccessKeyError if no key that is not revoked has this name or id, and
    AccessKeyRefusedError if `expected` is not its fingerprint.
    """

    def revoke(transaction: Connection) -> AccessKey:
        key = lock_living(transaction, name_or_id, expected)
        end_key(transaction, key, actor, database.clock.now())
        return key

    return database.transact(revoke)


def end_key(transaction: Connection, key: AccessKey, actor: Actor, now: datetime) -> None:
    """Revoke a key that `lock_living` has returned in the same transaction."""
    access_key_store.change_key(transaction, key.key_id, revoked_at=now)
    _record(transaction, actor, ActKind.ACCESS_KEY_REVOKE, key, replace(key, revoked_at=now))


def rotate_key(
    database: Database,
    name_or_id: str,
    grace: timedelta,
    actor: Actor,
    *,
    expected: str | None = None,
) -> IssuedKey:
    """Give a key a new secret. The old secret stays valid for `grace`; 0 ends it at once.

    Raises UnknownAccessKeyError, or AccessKeyRefusedError if the key has a certificate and no
    secret, or if `expected` is not its fingerprint.
    """
    now = database.clock.now()

    def rotate(transaction: Connection) -> IssuedKey:
        key = lock_living(transaction, name_or_id, expected)
        return replace_secret(transaction, key, grace, actor, now)

    return database.transact(rotate)


def replace_secret(
    transaction: Connection, key: AccessKey, grace: timedelta, actor: Actor, now: datetime
) -> IssuedKey:
    """Give a new secret to a key that `lock_living` has returned in the same transaction.

    Raises AccessKeyRefusedError if the key has a certificate and no secret.
    """
    if key.secret_digest is None:
        raise AccessKeyRefusedError(
            f"{key.name} is a key for a client certificate and has no secret. Issue a new"
            " certificate, and create a key for it."
        )
    secret = _new_secret(key.key_id)
    until = now + grace if grace else None
    access_key_store.change_key(
        transaction,
        key.key_id,
        secret_digest=digest(secret),
        previous_digest=key.secret_digest if grace else None,
        previous_until=until,
    )
    _record(transaction, actor, ActKind.ACCESS_KEY_ROTATE, key, replace(key, previous_until=until))
    return IssuedKey(key, secret)


_RECORDED = (
    *("name", "expires_at", "device_family", "uses_allowed", "may_re_enrol", "disclosure"),
    *("rate_limit", "certificate_issuer", "previous_until", "revoked_at"),
)
"""The fields of a key that the trail of acts records. No digest of a secret is among them."""


def _record(
    transaction: Connection, actor: Actor, kind: ActKind, before: AccessKey | None, after: AccessKey
) -> None:
    subject = Subject(after.key_id, None if before is None else _facts(before), _facts(after))
    trail.record(transaction, actor, kind, [subject])


def _facts(key: AccessKey) -> Facts:
    fingerprint = key.certificate_fingerprint
    return {
        **{name: getattr(key, name) for name in _RECORDED},
        "scope": key.scope.value,
        "certificate_sha256": None if fingerprint is None else fingerprint.hex(),
    }


def fingerprint(key: AccessKey) -> str:
    """Return a digest of a key and its state in hex: another one after each change of the key.

    It tells nothing about the secret, which has 256 random bits.
    """
    state = (key.key_id, key.secret_digest, key.previous_digest, key.previous_until, key.revoked_at)
    return hashlib.sha256(repr(state).encode()).hexdigest()


def has_good_key(database: Database) -> bool:
    """Return whether any key is neither revoked nor expired.

    `sma serve` refuses to start if there is none and access is by keys.
    """
    now = database.clock.now()
    with database.read() as connection:
        return access_key_store.has_good_key(connection, now)


def _new_secret(key_id: str) -> str:
    random = base64.b32encode(secrets.token_bytes(_SECRET_BYTES)).decode().rstrip("=").lower()
    return f"{PREFIX}{key_id}_{random}"


def _check(terms: KeyTerms, now: datetime) -> None:
    if not (1 <= len(terms.name) <= MAX_NAME and terms.name.isprintable()):
        raise AccessKeyRefusedError(f"A key's name has 1 to {MAX_NAME} printable characters.")
    # It is the actor of acts: a blank one names nobody, and searches strip white space.
    if terms.name != terms.name.strip():
        raise AccessKeyRefusedError("A key's name has no white space at either end.")
    if terms.expires_at is not None and terms.expires_at <= now:
        raise AccessKeyRefusedError("The expiry of a new key must be in the future.")
    enrolment = terms.device_family is not None or terms.uses_allowed is not None
    if enrolment and terms.scope is not KeyScope.PROVISION:
        raise AccessKeyRefusedError("Only a key of scope provision has a family or uses.")
    if terms.may_re_enrol and terms.scope is not KeyScope.PROVISION:
        raise AccessKeyRefusedError("Only a key of scope provision may re-enrol devices.")
    if terms.device_family is not None and not is_description(terms.device_family):
        raise AccessKeyRefusedError(
            f"A device family has 1 to {MAX_DESCRIPTION} printable characters."
        )
    if terms.disclosure is not None and terms.scope not in {KeyScope.VALIDATE, KeyScope.READ}:
        raise AccessKeyRefusedError("Only a key of scope validate or read has a disclosure.")
    if terms.rate_limit is not None:
        try:
            parse_rates(terms.rate_limit)
        except RateRefusedError as error:
            raise AccessKeyRefusedError(f"The rate of a key cannot be used: {error}.") from None


def _refuse_second(transaction: Connection, new: AccessKey) -> None:
    """Raise AccessKeyNameError if a key in force has the same name or certificate."""
    # Lock before the read: two processes could otherwise both find the name free.
    access_key_store.lock_keys(transaction)
    for key in access_key_store.find_rivals(transaction, new):
        if key.name == new.name:
            raise AccessKeyNameError(
                f"There is already a key {new.name}. Revoke it, or choose another name."
            )
        raise AccessKeyNameError(
            f"The key {key.name} is for the same certificate. Revoke it first."
        )


def lock_living(transaction: Connection, name_or_id: str, expected: str | None = None) -> AccessKey:
    """Return the key that is not revoked and has this name or id. Lock all keys against changes.

    Raises UnknownAccessKeyError, and AccessKeyRefusedError if `expected` is not its fingerprint.
    """
    # Lock before the read: another process could otherwise revoke the key before it is changed.
    access_key_store.lock_keys(transaction)
    for key in access_key_store.find_keys(transaction, name_or_id):
        if key.revoked_at is None:
            if expected is not None and expected != fingerprint(key):
                raise AccessKeyRefusedError(
                    f"The key {key.name} changed since this page was made. Nothing was done."
                )
            return key
    raise UnknownAccessKeyError(
        f"No key in force has the name or id {name_or_id}. To see them, type: sma keys list"
    )
