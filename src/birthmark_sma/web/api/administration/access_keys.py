"""/api/v1/keys: list, read, create, rotate and revoke access keys.

A secret is in the response that creates it, and nowhere else: a repeated request with the same
Idempotency-Key gets it again for 24 hours, because the first response may have been lost.
"""

from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import Response

from birthmark_sma.authority.access import keys as access_keys
from birthmark_sma.authority.access import store as access_key_store
from birthmark_sma.authority.access.keys import KeyTerms
from birthmark_sma.authority.access.store import AccessKey, KeyScope
from birthmark_sma.authority.acts.actor import Actor
from birthmark_sma.authority.representations.access_keys import (
    access_key_as_json,
    issued_key_as_json,
    revoked_key_as_json,
)
from birthmark_sma.errors import UnknownAccessKeyError
from birthmark_sma.web.api.administration import examples
from birthmark_sma.web.api.administration.calls import (
    Tagged,
    answer,
    check_precondition,
    check_query,
    entity_tag,
    parse_flag,
    parse_limit,
    path_parameter,
    perform,
    read_body,
)
from birthmark_sma.web.api.administration.documentation import IF_MATCH, PAGE, described, query
from birthmark_sma.web.api.administration.requests import (
    CreateKeyRequest,
    RevokeKeyRequest,
    RotateKeyRequest,
)
from birthmark_sma.web.api.administration.responses import (
    AccessKeyResponse,
    AccessKeysResponse,
    IssuedKeyResponse,
    RevokedKeyResponse,
)
from birthmark_sma.web.problems import FieldError, InvalidRequestError
from birthmark_sma.web.query_params import parse_text, refused
from birthmark_sma.web.routes import KEY, KEYS, REVOKE_KEY, ROTATE_KEY
from birthmark_sma.web.server_state import ApiRequest

_OF_PATH = ("key", "The key's id, or its name, percent-encoded", "newsroom-1")
_COUNTED = {"uses", "last_used_at"}  # they change with each use, and no operator changes them

router = APIRouter(tags=["administer"])


async def list_keys(request: ApiRequest) -> Response:
    """Return a page of access keys, the oldest first."""
    check_query(request, "all", "limit", "cursor")
    limit, cursor = parse_limit(request), parse_text(request, "cursor")
    everything = parse_flag(request, "all")
    clock = request.server.authority.database.clock

    def read(connection: Connection) -> dict[str, Any]:
        now = clock.now()
        # All keys are in the memory of every process anyway, so that pages need no index.
        found = [
            each
            for each in access_key_store.all_keys(connection)
            if everything or each.is_good(now) or each.key_id == cursor
        ]
        if cursor is not None:
            places = [place for place, each in enumerate(found) if each.key_id == cursor]
            if not places:
                raise refused("cursor is next_cursor of the page before.")
            found = found[places[0] + 1 :]
        return {
            "keys": [access_key_as_json(each, now) for each in found[:limit]],
            "next_cursor": found[limit - 1].key_id if len(found) > limit else None,
        }

    return await answer(request, read)


async def show_key(request: ApiRequest) -> Response:
    """Return an access key. Raises UnknownAccessKeyError."""
    check_query(request)
    name, clock = path_parameter(request), request.server.authority.database.clock

    def read(connection: Connection) -> Tagged:
        found = access_key_store.find_keys(connection, name)
        if not found:
            raise UnknownAccessKeyError(f"No key has the name or id {name}.")
        # Of several keys with a name, at most one is not revoked.
        key = next((each for each in found if each.revoked_at is None), found[-1])
        return Tagged(access_key_as_json(key, clock.now()), _tag(key))

    return await answer(request, read)


async def create_key(request: ApiRequest) -> Response:
    """Create an access key."""
    check_query(request)
    asked = await read_body(request, CreateKeyRequest)
    terms, clock = _terms_of(asked), request.server.authority.database.clock

    def work(transaction: Connection, actor: Actor) -> dict[str, Any]:
        now = clock.now()
        return issued_key_as_json(access_keys.add_key(transaction, terms, actor, now), now)

    return await perform(request, asked, work)


async def rotate_key(request: ApiRequest) -> Response:
    """Give a key a new secret."""
    check_query(request)
    asked, locked = await read_body(request, RotateKeyRequest), _locking(request)
    clock, grace = request.server.authority.database.clock, timedelta(seconds=asked.grace_seconds)

    def work(transaction: Connection, actor: Actor) -> dict[str, Any]:
        now = clock.now()
        issued = access_keys.replace_secret(transaction, locked(transaction), grace, actor, now)
        return issued_key_as_json(issued, now)

    return await perform(request, asked, work)


async def revoke_key(request: ApiRequest) -> Response:
    """Revoke a key for ever."""
    check_query(request)
    asked, locked = await read_body(request, RevokeKeyRequest), _locking(request)
    clock = request.server.authority.database.clock

    def work(transaction: Connection, actor: Actor) -> dict[str, Any]:
        key = locked(transaction)
        access_keys.end_key(transaction, key, actor, clock.now())
        return revoked_key_as_json(key)

    return await perform(request, asked, work)


def _locking(request: ApiRequest) -> Callable[[Connection], AccessKey]:
    """Return the function that locks the key in the path, and checks that it is unchanged."""
    name = path_parameter(request)

    def lock(transaction: Connection) -> AccessKey:
        key = access_keys.lock_living(transaction, name)
        check_precondition(request, lambda: _tag(key))
        return key

    return lock


def _tag(key: AccessKey) -> str:
    """Return the entity tag of a key. It changes with every change, a new secret included."""
    fields = {name: value for name, value in asdict(key).items() if name not in _COUNTED}
    return entity_tag(
        {name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()}
    )


def _terms_of(asked: CreateKeyRequest) -> KeyTerms:
    client = _certificate(asked.client_certificate, "client_certificate")
    return KeyTerms(
        name=asked.name,
        scope=KeyScope(asked.scope),
        expires_at=asked.expires_at,
        device_family=asked.device_family,
        uses_allowed=asked.uses_allowed,
        may_re_enrol=asked.may_re_enrol,
        disclosure=asked.disclosure,
        rate_limit=asked.rate_limit,
        certificate_fingerprint=None if client is None else client.fingerprint(SHA256()),
        certificate_issuer=_certificate(asked.client_issuer, "client_issuer"),
    )


def _certificate(pem: str | None, field: str) -> x509.Certificate | None:
    if pem is None:
        return None
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except (ValueError, x509.InvalidVersion):
        fault = FieldError(field=field, detail="it is no certificate in PEM")
        raise InvalidRequestError([fault]) from None


router.add_api_route(
    endpoint=list_keys,
    **described(
        KEYS,
        "List access keys",
        AccessKeysResponse,
        examples.ACCESS_KEYS,
        parameters=(
            query("all", "`true`: also revoked and expired keys", enum=["true", "false"]),
            *PAGE,
        ),
    ),
)
router.add_api_route(
    endpoint=create_key,
    **described(
        KEYS,
        "Create an access key",
        IssuedKeyResponse,
        examples.ISSUED_KEY,
        description="The secret is shown this once, as `key`. Send an `Idempotency-Key`: if the"
        " response is lost, the same request gets it again for 24 hours.",
        body=CreateKeyRequest,
        errors=("access-key-name", "access-key-refused"),
    ),
)
router.add_api_route(
    endpoint=show_key,
    **described(
        KEY,
        "Read an access key",
        AccessKeyResponse,
        examples.ACCESS_KEY,
        of_path=_OF_PATH,
        errors=("unknown-access-key",),
        tagged=True,
    ),
)
router.add_api_route(
    endpoint=rotate_key,
    **described(
        ROTATE_KEY,
        "Give an access key a new secret",
        IssuedKeyResponse,
        examples.ISSUED_KEY,
        of_path=_OF_PATH,
        parameters=(IF_MATCH,),
        body=RotateKeyRequest,
        errors=("unknown-access-key", 412, "access-key-refused"),
    ),
)
router.add_api_route(
    endpoint=revoke_key,
    **described(
        REVOKE_KEY,
        "Revoke an access key",
        RevokedKeyResponse,
        examples.REVOKED_KEY,
        of_path=_OF_PATH,
        parameters=(IF_MATCH,),
        body=RevokeKeyRequest,
        errors=("unknown-access-key", 412),
    ),
)
