"""The Birthmark protocol in Python, with the standard library and `cryptography` only.

Copy this file. Invalid input raises RefusedError. Its message never contains a secret.
"""

import base64
import hashlib
import hmac
import json
import re
from datetime import datetime, timedelta
from typing import Any, TypeAlias
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

SALT = b"Birthmark"
PrivateKey: TypeAlias = (
    ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | rsa.RSAPrivateKey
    | x25519.X25519PrivateKey
)


class RefusedError(Exception):
    """The input does not follow the protocol, or does not verify."""


# --- keys and camera tokens


def derive_key(
    master_key: bytes, key_index: int, salt: bytes = SALT, info_suffix: bytes = b""
) -> bytes:
    """Derive a key of 32 bytes with HKDF-SHA256 (RFC 5869)."""
    pseudorandom_key = hmac.digest(salt, master_key, "sha256")
    info = key_index.to_bytes(4, "big") + info_suffix
    return hmac.digest(pseudorandom_key, info + b"\x01", "sha256")


def seal(
    nuc_hash: bytes, master_key: bytes, table_id: int, key_index: int, nonce: bytes
) -> dict[str, Any]:
    """Make a camera token. The nonce is 12 new random bytes, and is never used twice."""
    sealed = AESGCM(derive_key(master_key, key_index)).encrypt(nonce, nuc_hash, None)
    return {
        "encrypted_nuc_hash": sealed.hex(),
        "table_id": table_id,
        "key_index": key_index,
        "nonce": nonce.hex(),
    }


def open_token(token: dict[str, Any], master_key: bytes, keys_per_table: int = 1_000) -> bytes:
    """Return the NUC hash inside a camera token."""
    sealed = _hex(token["encrypted_nuc_hash"], 48)
    nonce = _hex(token["nonce"], 12)
    if type(token["key_index"]) is not int or not 0 <= token["key_index"] < keys_per_table:
        raise RefusedError("no such key")
    try:
        return AESGCM(derive_key(master_key, token["key_index"])).decrypt(nonce, sealed, None)
    except InvalidTag:
        raise RefusedError("it does not open") from None


def _hex(text: object, size: int) -> bytes:
    if not isinstance(text, str) or not re.fullmatch(f"[0-9a-fA-F]{{{2 * size}}}", text):
        raise RefusedError(f"not {size} bytes in hex")
    return bytes.fromhex(text)


# --- sealed secrets: compact JWE, ECDH-ES+A256KW or RSA-OAEP-256, and A256GCM

_SECRETS = {"device_serial", "certificate_sha256", "nuc_hash", "table_keys"}


def open_secrets(jwe: str, key: PrivateKey) -> dict[str, Any]:
    """Decrypt a compact JWE and return its JSON object (RFC 7516, 5.2; RFC 7518, 4.3 and 4.6)."""
    try:
        head, *rest = jwe.split(".")
        wrapped, nonce, text, tag = map(_base64url, rest)
        if (len(nonce), len(tag)) != (12, 16):
            raise RefusedError("no such lengths")
        content_key = _content_key(_parse_strictly(_base64url(head)), wrapped, key)
        opened = AESGCM(content_key).decrypt(nonce, text + tag, head.encode())
        return _parse_strictly(opened)
    except (AttributeError, KeyError, TypeError, ValueError, InvalidTag, InvalidUnwrap):
        raise RefusedError("it does not open") from None


def _content_key(header: dict[str, Any], wrapped: bytes, key: PrivateKey) -> bytes:
    """Decrypt the content key. The kind of the key alone decides the algorithm."""
    by_rsa = isinstance(key, rsa.RSAPrivateKey)
    algorithm = "RSA-OAEP-256" if by_rsa else "ECDH-ES+A256KW"
    epk = {} if by_rsa else header.pop("epk")
    # No other header members: no zip, no crit, no party information.
    sealing = {"alg": algorithm, "enc": "A256GCM"}
    if header not in (sealing, sealing | {"cty": "json"}):
        raise RefusedError("no such way of sealing")
    if isinstance(key, rsa.RSAPrivateKey):
        sha256 = hashes.SHA256()
        content_key = key.decrypt(wrapped, padding.OAEP(padding.MGF1(sha256), sha256, None))
        if len(wrapped) != key.key_size // 8 or len(content_key) != 32:
            raise RefusedError("no such lengths")
        return content_key
    if len(wrapped) != 40:
        raise RefusedError("no such lengths")
    name = algorithm.encode()
    other = len(name).to_bytes(4, "big") + name + bytes(8) + (256).to_bytes(4, "big")
    wrapping = ConcatKDFHash(hashes.SHA256(), 32, other).derive(_agree(key, _point(epk, key)))
    return aes_key_unwrap(wrapping, wrapped)


def open_response(
    response: dict[str, Any],
    root: str,
    now: datetime,
    *,
    device_serial: str,
    device_key: object,
    key: PrivateKey,
) -> dict[str, Any]:
    """Return the secrets that an authority gave a device. `key` is the device's recipient key."""
    try:
        chain = [response["device_certificate"], *response["certificate_chain"]]
        tables = response["table_assignments"]
        secrets = open_secrets(response["sealed_secrets"], key)
    except KeyError:
        raise RefusedError("something is missing") from None
    if len(chain) != 3 or verify_chain(chain[:2], root, now) != device_serial:
        raise RefusedError("the certificate is another device's")
    leaf, _, top, pinned = (x509.load_pem_x509_certificate(pem.encode()) for pem in (*chain, root))
    if leaf.public_key() != device_key or top != pinned:
        raise RefusedError("the certificate is for another key, or not under this root")
    if secrets.keys() != _SECRETS or not isinstance(secrets["table_keys"], dict):
        raise RefusedError("not the secrets of a device")
    sealed_for = (secrets["device_serial"], secrets["certificate_sha256"])
    if sealed_for != (device_serial, leaf.fingerprint(hashes.SHA256()).hex()):
        raise RefusedError("the secrets of another certificate")
    keys = secrets["table_keys"]
    if len(tables) != 3 or {str(table) for table in tables} != keys.keys() or len(keys) != 3:
        raise RefusedError("not the keys of its three tables")
    for secret in (secrets["nuc_hash"], *keys.values()):
        _hex(secret, 32)
    return secrets


def _point(epk: dict[str, Any], key: Any) -> ec.EllipticCurvePublicKey | x25519.X25519PublicKey:
    """Return the ephemeral key. Other members and lengths are refused."""
    if isinstance(key, x25519.X25519PrivateKey):
        raw = _base64url(epk.pop("x"))
        if epk != {"kty": "OKP", "crv": "X25519"}:
            raise RefusedError("no such point")
        return x25519.X25519PublicKey.from_public_bytes(raw)
    x, y = (_base64url(epk.pop(name)) for name in ("x", "y"))
    size = (key.key_size + 7) // 8
    if epk != {"kty": "EC", "crv": f"P-{key.key_size}"} or {len(x), len(y)} != {size}:
        raise RefusedError("no such point")
    point = ec.EllipticCurvePublicNumbers(
        int.from_bytes(x, "big"), int.from_bytes(y, "big"), key.curve
    )
    return point.public_key()


def _agree(key: Any, point: Any) -> bytes:
    if isinstance(key, x25519.X25519PrivateKey):
        return key.exchange(point)
    shared: bytes = key.exchange(ec.ECDH(), point)
    return shared


def _base64url(part: str) -> bytes:
    """Decode base64url. Only the canonical encoding is accepted; the library accepts others too."""
    decoded = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if base64.urlsafe_b64encode(decoded).rstrip(b"=").decode() != part:
        raise RefusedError("not base64url")
    return decoded


def _parse_strictly(text: bytes) -> dict[str, Any]:
    """Parse JSON that has one meaning: the library takes a byte order mark, -0, and more."""
    value = json.loads(
        text.decode("utf-8"),
        object_pairs_hook=_each_once,
        parse_constant=_no_constant,
        parse_int=_integer,
    )
    json.dumps(value, ensure_ascii=False).encode("utf-8")  # fails for lone surrogates
    if not isinstance(value, dict):
        raise RefusedError("no object")
    return value


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError
    return dict(pairs)


def _no_constant(_: str) -> None:
    raise ValueError


def _integer(digits: str) -> int:
    if digits == "-0":
        raise ValueError
    return int(digits)


# --- certificates


def verify_chain(chain: list[str], root: str, now: datetime) -> str:
    """Return the device serial of a chain (device first) that leads to the pinned root."""
    return verify_path([x509.load_pem_x509_certificate(pem.encode()) for pem in chain], root, now)


def verify_path(path: list[x509.Certificate], root: str, now: datetime) -> str:
    """Return the device serial of a path. Each certificate must be issued by the next one."""
    leaf, *intermediates = path
    pinned = x509.load_pem_x509_certificate(root.encode())
    policy = (
        verification.PolicyBuilder()
        .store(verification.Store([pinned]))
        .time(now)
        .extension_policies(
            ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(),
            ee_policy=verification.ExtensionPolicy.webpki_defaults_ee(),
        )
    )
    try:
        verified = policy.build_client_verifier().verify(leaf, intermediates).chain
        extensions = leaf.extensions
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        basic = extensions.get_extension_for_class(x509.BasicConstraints).value
    except (verification.VerificationError, x509.ExtensionNotFound, ValueError):
        raise RefusedError("it does not chain to the root") from None
    if verified != [*path, pinned]:  # the library looks for any path
        raise RefusedError("not all certificates are on the path")
    if basic.ca or not usage.digital_signature or ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
        raise RefusedError("not a device's certificate")
    _check_kind(leaf.public_key())
    prefix = "urn:birthmark:device:"
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    urns = [uri for uri in uris if uri.startswith(prefix)]
    serial = unquote(urns[0].removeprefix(prefix)) if len(urns) == 1 else ""
    if serial == "" or device_urn(serial) != urns[0]:
        raise RefusedError("it names no device, or not in its one spelling")
    return serial


def device_urn(serial: str) -> str:
    """Return the URN of a device serial: UTF-8, percent-encoded (RFC 3986, section 2.1)."""
    return "urn:birthmark:device:" + quote(serial, safe="")


def _check_kind(key: object) -> None:
    if isinstance(key, rsa.RSAPublicKey) and 2_048 <= key.key_size <= 4_096:
        return
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in {"secp256r1", "secp384r1"}:
        return
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise RefusedError("no device has such a key")


# --- bundles

_FIELDS = {
    "version",
    "image_hash",
    "camera_token",
    "device_certificate_chain",
    "captured_at",
    "signature",
}
_TOKEN_FIELDS = {"encrypted_nuc_hash", "table_id", "key_index", "nonce"}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)


def signed_bytes(bundle: dict[str, Any]) -> bytes:
    """Return the bytes to sign: a prefix, then the other fields as canonical JSON (RFC 8785)."""
    content = {name: value for name, value in bundle.items() if name != "signature"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return b"birthmark-bundle-v1\0" + canonical.encode("ascii")


def renewal_bytes(
    certificate: bytes,
    csr: bytes,
    recipient_key: bytes | None,
    requested_at: str,
    *,
    supersede: bool,
) -> bytes:
    """Return the bytes to sign for a renewal: a prefix, then canonical JSON (RFC 8785)."""
    proof = {
        "certificate_sha256": hashlib.sha256(certificate).hexdigest(),
        "csr_sha256": hashlib.sha256(csr).hexdigest(),
        "recipient_key_sha256": recipient_key and hashlib.sha256(recipient_key).hexdigest(),
        "requested_at": requested_at,
        "supersede": supersede,
    }
    canonical = json.dumps(proof, sort_keys=True, separators=(",", ":"))
    return b"birthmark-renew-v1\0" + canonical.encode("ascii")


def sign(message: bytes, key: PrivateKey) -> bytes:
    """Sign as a device. The kind of key decides the algorithm."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(message, ec.ECDSA(_hash(key)))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    raise RefusedError("no device has such a key")


def _hash(
    key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey,
) -> hashes.SHA256 | hashes.SHA384:
    return hashes.SHA384() if key.key_size == 384 else hashes.SHA256()


def verify_signature(signature: bytes, message: bytes, key: object) -> None:
    """Raise RefusedError unless `key` made the signature. The kind of key decides the algorithm."""
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message, ec.ECDSA(_hash(key)))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        else:
            raise RefusedError("no device has such a key")
    except InvalidSignature:
        raise RefusedError("the signature does not fit") from None


def verify_bundle(text: str, root: str, now: datetime) -> str:
    """Verify form, time, certificates and signature of a bundle, and return its device serial."""
    bundle = _parse(text)
    captured = datetime.fromisoformat(bundle["captured_at"])
    if captured > now + timedelta(hours=1):
        raise RefusedError("captured in the future")
    try:
        chain = bundle["device_certificate_chain"]
        path = [x509.load_der_x509_certificate(base64.b64decode(each)) for each in chain]
    except ValueError:
        raise RefusedError("no certificate") from None
    serial = verify_path(path, root, now)
    verify_path(path, root, min(captured, now))
    key = path[0].public_key()
    verify_signature(base64.b64decode(bundle["signature"]), signed_bytes(bundle), key)
    return serial


def _parse(text: str) -> dict[str, Any]:
    """Parse a bundle. It has exactly these fields, each in its canonical encoding."""
    try:
        if len(text.encode("utf-8")) > 32_768:
            raise RefusedError("a bundle has at most 32,768 bytes")
        bundle = _parse_strictly(text.encode("utf-8"))
        token = bundle["camera_token"]
        chain = bundle["device_certificate_chain"]
        one_spelling = (
            set(bundle) == _FIELDS
            and set(token) == _TOKEN_FIELDS
            and bundle["version"] == 1
            and {type(bundle["version"]), type(token["table_id"]), type(token["key_index"])}
            == {int}
            and _lower_hex(bundle["image_hash"], 32)
            and _lower_hex(token["encrypted_nuc_hash"], 48)
            and _lower_hex(token["nonce"], 12)
            and min(token["table_id"], token["key_index"]) >= 0
            and isinstance(chain, list)
            and len(chain) == 2
            and all(map(_one_base64, [*chain, bundle["signature"]]))
            and _TIME.fullmatch(bundle["captured_at"])
        )
        datetime.fromisoformat(bundle["captured_at"])
    except (KeyError, TypeError, ValueError):
        raise RefusedError("not a bundle") from None
    if not one_spelling:
        raise RefusedError("not a bundle")
    return dict(bundle)


def _lower_hex(value: str, size: int) -> bool:
    return re.fullmatch(f"[0-9a-f]{{{2 * size}}}", value) is not None


def _one_base64(value: str) -> bool:
    decoded = base64.b64decode(value, validate=True)
    return base64.b64encode(decoded).decode() == value != ""


# --- verdicts


def judge(  # noqa: PLR0911  one return a rule reads best
    tables: int,
    keys_per_table: int,
    table: int,
    index: int,
    *,
    opened: bool,
    device: dict[str, Any] | None,
) -> str:
    """Return the reason for the verdict on a well-formed token. Only `genuine` means PASS."""
    if not 0 <= table < tables:
        return "unknown_table"
    if not 0 <= index < keys_per_table:
        return "unknown_key_index"
    if not opened:
        return "not_opened"
    if device is None:
        return "unknown_device"
    if table not in device["tableAssignments"]:
        return "table_not_assigned"
    if device["status"] != "active":
        return f"device_{device['status']}"
    return "genuine"
