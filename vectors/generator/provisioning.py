"""Generate provisioning_response_test.json: responses to a device, with its secrets sealed.

This module builds the compact JWE itself (RFC 7518, section 4.6), with an ephemeral key and nonces
that are digests of labels. The authority uses a JOSE library and random values.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vectors.generator import seeded_keys
from vectors.generator.authorities import NOW, SeededCa, authority, device_certificate, pem
from vectors.generator.document import Case, Document, Group, refused
from vectors.generator.seeded_keys import secret

Recipient: TypeAlias = ec.EllipticCurvePrivateKey | x25519.X25519PrivateKey

_ALGORITHM = "ECDH-ES+A256KW"
_TABLES = (42, 1_337, 2_048)
_TABLE_KEYS = {str(table): secret(f"test table {table}").hex() for table in _TABLES}
_NOTES = {
    "AlteredJwe": "Header, key, nonce, ciphertext or tag was changed.",
    "OtherRecipient": "Sealed to a key that is not the recipient's.",
    "MalformedJwe": "Not five parts of base64url, or no JSON object where one must be.",
    "UnknownHeader": "An algorithm, or a critical header, that this protocol does not use.",
    "Forbidden": "Soundly sealed, but in a way that RFC 7518 or RFC 7516 forbids: a length, a"
    " header parameter, a name that stands twice. Many libraries take it.",
    "NotSealed": "The secrets are in the clear, though the device sent a recipient key.",
    "OtherSecrets": "Sealed for another serial or certificate than that of the response.",
    "InvalidCurve": "The ephemeral key is not a point of the curve.",
    "Incomplete": "Something is not there without which no camera token or bundle can be made.",
    "MalformedSecret": "A NUC hash and a master key have 32 bytes each, in hex.",
    "OtherTables": "There is one master key for each of the three tables assigned, and no other.",
    "OtherDevice": "The certificate is for another key or serial than the device asked for.",
    "OtherRoot": "The certificates do not chain to the pinned root.",
}


def make() -> Document:
    """Return valid responses and JWEs for each kind of key, and invalid ones."""
    return Document(
        algorithm="ECDH-ES+A256KW",
        schema="schemas/provisioning_response_test_schema.json",
        header=[
            "Response: whole answers to POST /api/v1/devices/provision, as the device judges them"
            " that asked with devicePublicKey and deviceSerial, pinned root and sent a recipient"
            " key; secrets is what it keeps.",
            "Sealed: what stands in them as sealed_secrets, compact JWE (RFC 7516) to the device's"
            " recipient key; secrets is what must come out.",
            "No private key is here. The recipient's is made of recipientLabel: the scalar of P-256"
            " is SHA-256 of the label, that of P-384 SHA-384, the 32 bytes of X25519 SHA-256.",
        ],
        notes=_NOTES,
        groups=[_responses(), *(_sealed(kind) for kind in ("P-256", "P-384", "X25519"))],
    )


def _response(**keys: Any) -> dict[str, Any]:
    ca = authority()
    leaf = device_certificate(ca, seeded_keys.p256("test device").public_key(), "camera-7")
    return {
        "device_certificate": pem(leaf),
        "certificate_chain": [pem(ca.intermediate), pem(ca.root)],
        "table_assignments": list(_TABLES),
        "provisioning_id": "PROV-20261123-11E3C9B113DD3612",
        **keys,
    }


def _secrets(**changes: Any) -> dict[str, Any]:
    leaf = x509.load_pem_x509_certificate(_response()["device_certificate"].encode())
    return {
        "device_serial": "camera-7",
        "certificate_sha256": leaf.fingerprint(SHA256()).hex(),
        "nuc_hash": secret("test NUC hash").hex(),
        "table_keys": _TABLE_KEYS,
    } | changes


def _responses() -> Group:
    label = "test recipient P-256"
    recipient = recipient_key("P-256", label)
    ca = authority()
    key = seeded_keys.p256("test device").public_key()
    good = _response(sealed_secrets=_jwe("P-256", recipient))
    shared = {
        "root": pem(ca.root),
        "now": NOW.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "deviceSerial": "camera-7",
        "devicePublicKey": key.public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        ).decode(),
        "curve": "P-256",
        "recipientLabel": label,
    }
    tests = [
        Case("secrets sealed", "valid", {"response": good, "secrets": _secrets()}),
        *refused("response", _with_other_secrets(good, recipient)),
        *refused("response", _with_other_certificates(good, ca, key)),
    ]
    return Group("Response", tests, shared)


def _with_other_secrets(
    good: dict[str, Any], recipient: Recipient
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield responses that lack a field, or whose secrets are not those of the device."""

    def sealing(secrets: dict[str, Any]) -> dict[str, Any]:
        return good | {"sealed_secrets": _jwe("P-256", recipient, text=json.dumps(secrets))}

    def sealed(**changes: Any) -> dict[str, Any]:
        return sealing(_secrets(**changes))

    two = dict(list(_TABLE_KEYS.items())[:2])
    for name in good:
        if name != "provisioning_id":
            yield f"without {name}", "Incomplete", _without(name, good)
    one = good["certificate_chain"][:1]
    yield "no root in the chain", "Incomplete", good | {"certificate_chain": one}
    for name in _secrets():
        yield f"without {name} in the secrets", "Incomplete", sealing(_without(name, _secrets()))
    in_the_clear = {"simulated_nuc_hash": secret("test NUC hash").hex(), "table_keys": _TABLE_KEYS}
    yield "secrets in the clear", "NotSealed", _response(**in_the_clear)
    yield "sealed for another serial", "OtherSecrets", sealed(device_serial="camera-8")
    other = secret("another certificate").hex()
    yield "sealed for another certificate", "OtherSecrets", sealed(certificate_sha256=other)
    yield "NUC hash of 31 bytes", "MalformedSecret", sealed(nuc_hash="00" * 31)
    yield "NUC hash that is no hex", "MalformedSecret", sealed(nuc_hash="zz" * 32)
    for comment, flag, keys in (
        ("key of 31 bytes", "MalformedSecret", two | {"2048": "00" * 31}),
        ("key that is no hex", "MalformedSecret", two | {"2048": "zz" * 32}),
        ("key for another table", "OtherTables", two | {"2047": "00" * 32}),
        ("key missing", "OtherTables", two),
        ("key too many", "OtherTables", _TABLE_KEYS | {"2049": "00" * 32}),
    ):
        yield comment, flag, sealed(table_keys=keys)
    for comment, tables in (("two tables", [42, 1_337]), ("one table twice", [42, 42, 1_337])):
        yield comment, "OtherTables", sealed(table_keys=two) | {"table_assignments": tables}
    jwe = _jwe("P-256", recipient_key("P-256", "another recipient"))
    yield "sealed to another", "OtherRecipient", good | {"sealed_secrets": jwe}


def _with_other_certificates(
    good: dict[str, Any], ca: SeededCa, key: ec.EllipticCurvePublicKey
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield responses whose certificates are not those of the device under the pinned root."""

    def changed(leaf: x509.Certificate | None, chain: list[str]) -> dict[str, Any]:
        own = {} if leaf is None else {"device_certificate": pem(leaf)}
        return good | own | {"certificate_chain": chain}

    foreign = authority("another authority")
    other_key = seeded_keys.p256("another test device").public_key()
    chain = good["certificate_chain"]
    foreign_chain = [pem(foreign.intermediate), pem(foreign.root)]
    yield (
        "certificate of another key",
        "OtherDevice",
        changed(device_certificate(ca, other_key, "camera-7"), chain),
    )
    yield (
        "certificate of another serial",
        "OtherDevice",
        changed(device_certificate(ca, key, "camera-8"), chain),
    )
    below_foreign = changed(device_certificate(foreign, key, "camera-7"), foreign_chain)
    yield "another authority", "OtherRoot", below_foreign
    yield "another authority's chain", "OtherRoot", changed(None, foreign_chain)
    yield "another authority's root", "OtherRoot", changed(None, [chain[0], foreign_chain[1]])
    yield "chain the wrong way round", "OtherRoot", changed(None, chain[::-1])


def _without(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {each: value for each, value in fields.items() if each != name}


def _sealed(curve: str) -> Group:
    label = f"test recipient {curve}"
    recipient = recipient_key(curve, label)
    good = _jwe(curve, recipient)
    parts = good.split(".")
    point = _epk(curve, recipient_key(curve, "test ephemeral key"))
    off_curve = point | {"x": _base64url(bytes(31) + b"\x05")}

    def with_part(number: int, part: str) -> str:
        return ".".join([*parts[:number], part, *parts[number + 1 :]])

    bad = [("header altered", "AlteredJwe", with_part(0, _altered(parts[0], 8)))]
    bad += [
        (f"{name} altered", "AlteredJwe", with_part(number, _altered(parts[number])))
        for number, name in enumerate(("key", "nonce", "text", "tag"), 1)
    ]
    bad += [
        ("tag cut", "AlteredJwe", good[:-2]),
        (
            "sealed to another",
            "OtherRecipient",
            _jwe(curve, recipient_key(curve, "another recipient")),
        ),
        ("four parts", "MalformedJwe", good.rpartition(".")[0]),
        ("six parts", "MalformedJwe", good + "."),
        ("no base64url", "MalformedJwe", with_part(4, "*" + parts[4][1:])),
        ("empty", "MalformedJwe", ""),
        ("critical header", "UnknownHeader", _jwe(curve, recipient, {"crit": ["exp"], "exp": 0})),
        ("alg dir", "UnknownHeader", _jwe(curve, recipient, {"alg": "dir"})),
        ("enc A128GCM", "UnknownHeader", _jwe(curve, recipient, {"enc": "A128GCM"})),
    ]
    if curve != "X25519":  # every 32 bytes are a point of X25519
        jwe = _jwe(curve, recipient, {"epk": off_curve})
        bad.append(("point off the curve", "InvalidCurve", jwe))
    bad += [(comment, "Forbidden", jwe) for comment, jwe in _forbidden(curve, recipient, point)]
    tests = [
        Case("sealed", "valid", {"sealedSecrets": good, "secrets": _secrets()}),
        *refused("sealedSecrets", bad),
    ]
    return Group("Sealed", tests, {"curve": curve, "recipientLabel": label})


def _forbidden(
    curve: str, recipient: Recipient, point: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield JWEs that decrypt, but that the RFCs forbid. Each violates one rule."""

    def with_point(**changes: str) -> str:
        return _jwe(curve, recipient, {"epk": point | changes})

    yield "zip", _jwe(curve, recipient, {"zip": "DEF"})
    yield "empty crit", _jwe(curve, recipient, {"crit": []})
    yield "alg twice", _jwe(curve, recipient, twice=True)
    yield "private part in epk", with_point(d=_base64url(secret("test ephemeral key")))
    yield "epk that says another curve", with_point(crv="P-521")
    yield "epk that says another key type", with_point(kty="RSA")
    yield "longer coordinate", with_point(x=_base64url(b"\0" + _unbase64url(point["x"])))
    yield "content key of 128 bits", _jwe(curve, recipient, key_bytes=16)
    yield "nonce of 128 bits", _jwe(curve, recipient, nonce=secret("test JWE nonce")[:16])
    yield (
        "tag of 96 bits",
        _jwe(curve, recipient)[: -len(_base64url(bytes(16)))]
        + _base64url(_unbase64url(_jwe(curve, recipient).rpartition(".")[2])[:12]),
    )
    yield "loose bits at the end", _with_loose_bits(_jwe(curve, recipient))
    yield "padding", _jwe(curve, recipient) + "=="
    twice = json.dumps(_secrets()).replace('"nuc_hash"', f'"nuc_hash": "{"00" * 32}", "nuc_hash"')
    yield "a name twice inside", _jwe(curve, recipient, text=twice)
    yield "a list inside", _jwe(curve, recipient, text="[]")


def _with_loose_bits(jwe: str) -> str:
    """Set an unused bit of the last letter: 22 letters are 16 bytes and 4 unused bits."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return jwe[:-1] + letters[letters.index(jwe[-1]) | 1]


def recipient_key(curve: str, label: str) -> Recipient:
    """Return the key of a label."""
    makers: dict[str, Callable[[str], Recipient]] = {
        "P-256": seeded_keys.p256,
        "P-384": seeded_keys.p384,
        "X25519": seeded_keys.x25519_key,
    }
    return makers[curve](label)


def _epk(curve: str, key: Recipient) -> dict[str, str]:
    """Return the public key as a JWK (RFC 7518, section 6.2.1; RFC 8037, section 2)."""
    if isinstance(key, x25519.X25519PrivateKey):
        raw = key.public_key().public_bytes_raw()
        return {"kty": "OKP", "crv": curve, "x": _base64url(raw)}
    numbers = key.public_key().public_numbers()
    size = (key.key_size + 7) // 8
    x, y = (_base64url(each.to_bytes(size, "big")) for each in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": curve, "x": x, "y": y}


def _jwe(
    curve: str,
    recipient: Recipient,
    changes: Mapping[str, Any] | None = None,
    *,
    text: str | None = None,
    twice: bool = False,
    key_bytes: int = 32,
    nonce: bytes = secret("test JWE nonce")[:12],
) -> str:
    ephemeral = recipient_key(curve, "test ephemeral key")
    header = {"alg": _ALGORITHM, "enc": "A256GCM", "cty": "json", "epk": _epk(curve, ephemeral)}
    header |= dict(changes or {})
    written = json.dumps(header, separators=(",", ":"))
    if twice:
        written = f'{{"alg":"{_ALGORITHM}",{written[1:]}'
    head = _base64url(written.encode())
    if isinstance(ephemeral, x25519.X25519PrivateKey):
        assert isinstance(recipient, x25519.X25519PrivateKey)  # noqa: S101 - of one curve
        shared = ephemeral.exchange(recipient.public_key())
    else:
        assert isinstance(recipient, ec.EllipticCurvePrivateKey)  # noqa: S101 - of one curve
        shared = ephemeral.exchange(ec.ECDH(), recipient.public_key())
    # AlgorithmID, PartyUInfo, PartyVInfo, SuppPubInfo: section 4.6.2.
    name = _ALGORITHM.encode()
    other = len(name).to_bytes(4, "big") + name + bytes(8) + (256).to_bytes(4, "big")
    wrapping = ConcatKDFHash(SHA256(), 32, other).derive(shared)
    content_key = secret("test content key")[:key_bytes]
    inside = json.dumps(_secrets()) if text is None else text
    sealed = AESGCM(content_key).encrypt(nonce, inside.encode(), head.encode())
    parts = (aes_key_wrap(wrapping, content_key), nonce, sealed[:-16], sealed[-16:])
    return ".".join([head, *map(_base64url, parts)])


def _altered(part: str, place: int = 3) -> str:
    """Change one letter."""
    return part[:place] + ("A" if part[place] != "A" else "B") + part[place + 1 :]


def _unbase64url(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _base64url(value: bytes) -> str:
    return urlsafe_b64encode(value).rstrip(b"=").decode()
