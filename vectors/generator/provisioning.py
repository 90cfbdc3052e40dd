"""Generate provisioning_response_test.json: responses to a device, with its secrets sealed."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vectors.generator import seeded_keys
from vectors.generator.authorities import NOW, SeededCa, authority, device_certificate, pem
from vectors.generator.document import Case, Document, Group, refused
from vectors.generator.sealing import (
    EPHEMERAL,
    RSA_2048,
    Padding,
    Recipient,
    base64url,
    oaep,
    pkcs1,
    public_jwk,
    recipient_key,
    seal,
    unbase64url,
)
from vectors.generator.seeded_keys import secret

_TABLES = (42, 1_337, 2_048)
_TABLE_KEYS = {str(table): secret(f"test table {table}").hex() for table in _TABLES}
_NOTES = {
    "AlteredJwe": "Header, key, nonce, ciphertext or tag was changed.",
    "OtherRecipient": "Sealed to a key that is not the recipient's.",
    "MalformedJwe": "Not five parts of base64url, or no JSON object where one must be.",
    "UnknownHeader": "An algorithm, or a critical header, that this protocol does not use.",
    "Forbidden": "Soundly sealed, but in a way that RFC 7518, RFC 7516 or RFC 8259 forbids: a"
    " length, a header parameter, a name that stands twice, a byte order mark. Many libraries take"
    " it.",
    "LeadingZero": "A shared secret, a coordinate or an encrypted key begins with a zero byte. It"
    " keeps its length: 32 or 48 bytes, or that of the modulus.",
    "OtherPadding": "The content key is not padded as RSA-OAEP-256 says: SHA-256 as hash and in"
    " MGF1, and an empty label.",
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
        algorithm="JWE",
        schema="schemas/provisioning_response_test_schema.json",
        header=[
            "Response: whole answers to POST /api/v1/devices/provision, as the device judges them"
            " that asked with devicePublicKey and deviceSerial, pinned root and sent a recipient"
            " key; secrets is what it keeps.",
            "Sealed: what stands in them as sealed_secrets, compact JWE (RFC 7516) to the device's"
            " recipient key; secrets is what must come out.",
            "No private key is here. recipientLabel and deviceLabel are the labels from which"
            " docs/vectors.md derives the recipient key and the device's own key.",
        ],
        notes=_NOTES,
        groups=[
            _responses(),
            *(_sealed(kind) for kind in ("P-256", "P-384", "X25519")),
            _sealed(RSA_2048),
        ],
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


def _plaintext(secrets: dict[str, Any] | None = None) -> bytes:
    return json.dumps(_secrets() if secrets is None else secrets).encode("ascii")


def _responses() -> Group:
    label = "test recipient P-256"
    recipient = recipient_key("P-256", label)
    ca = authority()
    key = seeded_keys.p256("test device").public_key()
    good = _response(sealed_secrets=seal("P-256", recipient, _plaintext()))
    shared = {
        "root": pem(ca.root),
        "now": NOW.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "deviceSerial": "camera-7",
        "devicePublicKey": key.public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        ).decode(),
        "deviceLabel": "test device",
        "recipientKind": "P-256",
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
        return good | {"sealed_secrets": seal("P-256", recipient, _plaintext(secrets))}

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
    jwe = seal("P-256", recipient_key("P-256", "another recipient"), _plaintext())
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


_LEADING_ZEROS = {
    "P-256": {"shared secret": "173", "coordinate": "5"},
    "P-384": {"shared secret": "118", "coordinate": "324"},
    "X25519": {"shared secret": "4"},
    RSA_2048: {"encrypted key": "95"},
}
"""What begins with a zero byte, and the number of the first label that makes it so."""


def _sealed(kind: str) -> Group:
    label = f"test recipient {kind}"
    recipient = recipient_key(kind, label)
    good = seal(kind, recipient, _plaintext())
    of_one_kind = _padded_otherwise if kind == RSA_2048 else _not_agreed
    bad = [
        *_altered(kind, recipient, good),
        *of_one_kind(kind, recipient),
        *_without_leading_zeros(kind, recipient),
        *((comment, "Forbidden", jwe) for comment, jwe in _forbidden(kind, recipient)),
    ]
    named = _secrets(device_serial="camera/7")
    slashes = _plaintext(named).replace(b"/", rb"\/").replace(b"camera", rb"\u0063amera")
    valid = [
        ("sealed", (), good, _secrets()),
        ("escapes inside", (), seal(kind, recipient, slashes), named),
        *(
            (f"{what} with a leading zero byte", ("LeadingZero",), jwe, _secrets())
            for what, jwe in _with_leading_zeros(kind, recipient)
        ),
    ]
    tests = [
        Case(comment, "valid", {"sealedSecrets": jwe, "secrets": secrets}, flags)
        for comment, flags, jwe, secrets in valid
    ]
    shared = {"recipientKind": kind, "recipientLabel": label}
    return Group("Sealed", [*tests, *refused("sealedSecrets", bad)], shared)


def _with_leading_zeros(kind: str, recipient: Recipient) -> Iterator[tuple[str, str]]:
    for what, number in _LEADING_ZEROS[kind].items():
        padding = partial(oaep, seed=f"test OAEP seed {number}")
        ephemeral = f"{EPHEMERAL} {number}"
        yield what, seal(kind, recipient, _plaintext(), ephemeral=ephemeral, padding=padding)


def _without_leading_zeros(kind: str, recipient: Recipient) -> Iterator[tuple[str, str, str]]:
    """Yield JWEs in which the zero byte was left out, where its place is fixed."""
    for what, sound in _with_leading_zeros(kind, recipient):
        ephemeral = f"{EPHEMERAL} {_LEADING_ZEROS[kind][what]}"
        if what == "shared secret":
            jwe = seal(kind, recipient, _plaintext(), ephemeral=ephemeral, zeros_kept=False)
        elif what == "coordinate":
            point = public_jwk(kind, recipient_key(kind, ephemeral))
            short = {"epk": point | {"x": base64url(unbase64url(point["x"])[1:])}}
            jwe = seal(kind, recipient, _plaintext(), short, ephemeral=ephemeral)
        else:
            jwe = _with_part(sound, 1, base64url(unbase64url(sound.split(".")[1])[1:]))
        yield f"{what} without its zero byte", "Forbidden", jwe


def _altered(kind: str, recipient: Recipient, good: str) -> Iterator[tuple[str, str, str]]:
    """Yield JWEs with other bytes, another recipient, or another way of sealing."""
    parts = good.split(".")
    yield "header altered", "AlteredJwe", _with_part(good, 0, _other_letter(parts[0], 8))
    for number, name in enumerate(("key", "nonce", "text", "tag"), 1):
        yield (
            f"{name} altered",
            "AlteredJwe",
            _with_part(good, number, _other_letter(parts[number])),
        )
    yield "tag cut", "AlteredJwe", good[:-2]
    other = recipient_key(kind, "another recipient")
    yield "sealed to another", "OtherRecipient", seal(kind, other, _plaintext())
    yield "four parts", "MalformedJwe", good.rpartition(".")[0]
    yield "six parts", "MalformedJwe", good + "."
    yield "no base64url", "MalformedJwe", _with_part(good, 4, "*" + parts[4][1:])
    yield "empty", "MalformedJwe", ""
    headers: dict[str, dict[str, Any]] = {
        "critical header": {"crit": ["exp"], "exp": 0},
        "alg dir": {"alg": "dir"},
        "enc A128GCM": {"enc": "A128GCM"},
    }
    for comment, changes in headers.items():
        yield comment, "UnknownHeader", seal(kind, recipient, _plaintext(), changes)


def _not_agreed(kind: str, recipient: Recipient) -> Iterator[tuple[str, str, str]]:
    """Yield JWEs whose ephemeral key is not one, or is not written as one."""
    point = public_jwk(kind, recipient_key(kind, EPHEMERAL))

    def with_point(**changes: str) -> str:
        return seal(kind, recipient, _plaintext(), {"epk": point | changes})

    if kind != "X25519":  # every 32 bytes are a point of X25519
        yield "point off the curve", "InvalidCurve", with_point(x=base64url(bytes(31) + b"\x05"))
    private = base64url(secret(EPHEMERAL))
    yield "private part in epk", "Forbidden", with_point(d=private)
    yield "epk that says another curve", "Forbidden", with_point(crv="P-521")
    yield "epk that says another key type", "Forbidden", with_point(kty="RSA")
    longer = base64url(b"\0" + unbase64url(point["x"]))
    yield "longer coordinate", "Forbidden", with_point(x=longer)


def _padded_otherwise(kind: str, recipient: Recipient) -> Iterator[tuple[str, str, str]]:
    """Yield JWEs whose content key is padded as other algorithms say, under the header of ours."""
    paddings: dict[str, Padding] = {
        "SHA-1 in MGF1, as Java has it unless told": partial(oaep, mask="sha1"),
        "OAEP with SHA-1 (RSA-OAEP)": partial(oaep, hashed="sha1", mask="sha1"),
        "PKCS#1 v1.5 (RSA1_5)": pkcs1,
        "a label that is not empty": partial(oaep, label=b"RSA-OAEP-256"),
    }
    for comment, padding in paddings.items():
        yield comment, "OtherPadding", seal(kind, recipient, _plaintext(), padding=padding)
    named = {"alg": "RSA-OAEP"}
    sha1 = partial(oaep, hashed="sha1", mask="sha1")
    yield "alg RSA-OAEP", "UnknownHeader", seal(kind, recipient, _plaintext(), named, padding=sha1)
    point = public_jwk("P-256", recipient_key("P-256", EPHEMERAL))
    yield "epk beside RSA", "Forbidden", seal(kind, recipient, _plaintext(), {"epk": point})
    good = seal(kind, recipient, _plaintext())
    longer = base64url(b"\0" + unbase64url(good.split(".")[1]))
    yield "longer encrypted key", "Forbidden", _with_part(good, 1, longer)


def _forbidden(kind: str, recipient: Recipient) -> Iterator[tuple[str, str]]:
    """Yield JWEs that decrypt, but that the RFCs forbid. Each violates one rule."""
    good = seal(kind, recipient, _plaintext())
    yield "zip", seal(kind, recipient, _plaintext(), {"zip": "DEF"})
    yield "empty crit", seal(kind, recipient, _plaintext(), {"crit": []})
    yield "alg twice", seal(kind, recipient, _plaintext(), twice=True)
    yield "content key of 128 bits", seal(kind, recipient, _plaintext(), key_bytes=16)
    longer = secret("test JWE nonce")[:16]
    yield "nonce of 128 bits", seal(kind, recipient, _plaintext(), nonce=longer)
    yield "tag of 96 bits", _with_part(good, 4, base64url(unbase64url(good.split(".")[4])[:12]))
    yield "loose bits at the end", _with_loose_bits(good)
    yield "padding", good + "=="
    zeros = f'"nuc_hash": "{"00" * 32}", "nuc_hash"'.encode()
    for comment, plaintext in {
        "a name twice inside": _plaintext().replace(b'"nuc_hash"', zeros),
        "a list inside": b"[]",
        "a byte order mark inside": b"\xef\xbb\xbf" + _plaintext(),
        "a lone surrogate inside": _plaintext(_secrets(device_serial="camera-\ud800")),
        "bytes inside that are no UTF-8": _plaintext().replace(b"camera", b"\xff"),
    }.items():
        yield comment, seal(kind, recipient, plaintext)


def _with_part(jwe: str, number: int, part: str) -> str:
    parts = jwe.split(".")
    return ".".join([*parts[:number], part, *parts[number + 1 :]])


def _with_loose_bits(jwe: str) -> str:
    """Set an unused bit of the last letter: 22 letters are 16 bytes and 4 unused bits."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return jwe[:-1] + letters[letters.index(jwe[-1]) | 1]


def _other_letter(part: str, place: int = 3) -> str:
    """Change one letter."""
    return part[:place] + ("A" if part[place] != "A" else "B") + part[place + 1 :]
