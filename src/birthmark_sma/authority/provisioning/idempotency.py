"""Idempotency of provisioning: a repeated request gets the stored response of the first one.

Called by `provisioning.service` and `provisioning.registration`. Responses to requests with an
Idempotency-Key are kept for 24 hours. They hold table keys and NUC hashes, so they must only be
stored encrypted under the key-encryption key, each bound to its Idempotency-Key. A key is claimed
in the transaction that registers the device.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime

from sqlalchemy import Connection

from birthmark_sma.authority.access import store as access_key_store
from birthmark_sma.authority.access.store import KeyScope
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.idempotency import store as idempotency_store
from birthmark_sma.authority.idempotency.sealing import decrypt, digest, storage_key
from birthmark_sma.authority.idempotency.store import StoredResponse
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKey, KeyEncryptionKeys
from birthmark_sma.authority.provisioning.issuance import (
    IssuedDevice,
    Provisioned,
    ProvisioningRequest,
)
from birthmark_sma.errors import (
    BirthmarkError,
    IdempotencyKeyReusedError,
    KeyEncryptionKeyChangedError,
)


class StoredResponses:
    """Finds the stored responses of repeated requests, and stores those of new devices."""

    def __init__(self, keks: KeyEncryptionKeys) -> None:
        self._keks = keks

    def find(
        self, connection: Connection, request: ProvisioningRequest, since: datetime
    ) -> Provisioned | None:
        """Return the response that this request got after `since`, or None.

        Raises IdempotencyKeyReusedError if another request used the Idempotency-Key.
        """
        key = idempotency_storage_key(request)
        if key is None:
            return None
        found = idempotency_store.find(connection, [key]).get(key)
        if found is None or found.created_at <= since:
            return None
        return self._open(connection, found, request_digest(request))

    def find_of_lapsed_key(
        self, connection: Connection, request: ProvisioningRequest, since: datetime, now: datetime
    ) -> Provisioned | None:
        """Return the response that a request got after `since` under a lapsed access key, or None.

        A camera loses the response, then its access key is revoked or expires, and the camera
        repeats the request with a new access key: it must get the response. While an access key is
        in force, only callers with that key get its responses.
        """
        if request.idempotency_key is None or request.enrolled_with is None:
            return None
        device = device_store.find_device(connection, request.device_serial)
        if device is None or device.provisioned_at <= since:
            return None
        wanted = request_digest(request)
        for found in idempotency_store.given_at(connection, device.provisioned_at):
            # Only the very same request gets here, so the number of lapsed keys needs no limit.
            if found.request_digest == wanted and any(
                found.idempotency_key == storage_key(key_id, request.idempotency_key)
                for key_id in access_key_store.lapsed_since(
                    connection, KeyScope.PROVISION, since, now
                )
            ):
                return self._open(connection, found, wanted)
        return None

    def claim(
        self, transaction: Connection, candidates: Sequence[IssuedDevice]
    ) -> dict[str, Provisioned | BirthmarkError]:
        """Store the responses of a batch, and return the outcomes of candidates to leave out.

        The outcomes are by provisioning id: the first response or an IdempotencyKeyReusedError for
        a repeated request, a KeyEncryptionKeyChangedError for a candidate whose response could not
        be stored because this process does not have the newest key-encryption key.
        """
        wanting = [
            (c, key) for c in candidates if (key := idempotency_storage_key(c.request)) is not None
        ]
        if not wanting:
            return {}
        try:
            kek = self._keks.lock_newest(transaction)
        except KeyEncryptionKeyChangedError as error:
            return {c.provisioning_id: error for c, _ in wanting}
        # Insert, then read back: the primary key decides which of two requests was first.
        claims = {c.provisioning_id: _sealed(c, key, kek) for c, key in wanting}
        idempotency_store.claim(transaction, list(claims.values()))
        kept = idempotency_store.find(
            transaction, [claim.idempotency_key for claim in claims.values()]
        )
        outcomes: dict[str, Provisioned | BirthmarkError] = {}
        for provisioning_id, claim in claims.items():
            if kept[claim.idempotency_key] == claim:  # this candidate's own response was stored
                continue
            try:
                outcomes[provisioning_id] = self._open(
                    transaction, kept[claim.idempotency_key], claim.request_digest
                )
            except (IdempotencyKeyReusedError, KeyEncryptionKeyChangedError) as error:
                outcomes[provisioning_id] = error
        return outcomes

    @staticmethod
    def release(transaction: Connection, refused: Sequence[IssuedDevice]) -> None:
        """Delete the claims of requests that were refused, so that their keys can be used again."""
        keys = [key for c in refused if (key := idempotency_storage_key(c.request)) is not None]
        if keys:
            idempotency_store.release(transaction, keys)

    def _open(self, connection: Connection, found: StoredResponse, asked: bytes) -> Provisioned:
        if found.request_digest != asked:
            raise IdempotencyKeyReusedError
        fields = json.loads(decrypt(found, self._keks, connection))
        # Responses stored by an earlier version have this field. A repeat of a request that it
        # encrypted keys for is refused before it gets here.
        fields.pop("table_keys_jwe", None)
        return Provisioned(
            **fields
            | {
                "certificate_chain": tuple(fields["certificate_chain"]),
                "table_assignments": tuple(fields["table_assignments"]),
                "provisioned_at": datetime.fromisoformat(fields["provisioned_at"]),
            }
        )


def request_digest(request: ProvisioningRequest) -> bytes:
    """Return the SHA-256 of a request, without Idempotency-Key, access key and actor: 32 bytes."""
    fields = asdict(
        replace(request, idempotency_key=None, nuc_hash=None, enrolled_with=None, actor=None)
    )
    del fields["enrolled_with"]  # it is a part of the storage key instead
    del fields["actor"]  # another operator may repeat the request
    fields["nuc_hash"] = request.nuc_hash.hex() if request.nuc_hash else None  # JSON has no bytes
    return digest(json.dumps(fields, sort_keys=True))


def idempotency_storage_key(request: ProvisioningRequest) -> bytes | None:
    """Return the key of the stored response, 32 bytes, or None without an Idempotency-Key."""
    if request.idempotency_key is None:
        return None
    enrolled_with = request.enrolled_with
    return storage_key(
        None if enrolled_with is None else enrolled_with.key_id, request.idempotency_key
    )


def _sealed(candidate: IssuedDevice, key: bytes, kek: KeyEncryptionKey) -> StoredResponse:
    answer = json.dumps(asdict(candidate.answer), default=str).encode()
    return StoredResponse(
        idempotency_key=key,
        request_digest=request_digest(candidate.request),
        sealed_response=kek.wrap(answer, key),
        kek_id=kek.kek_id,
        created_at=candidate.device.provisioned_at,
    )
