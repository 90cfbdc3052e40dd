"""`python check.py check <vectors>`, or `seal` / `open` with JSON on standard input."""

import hashlib
import json
import os
import sys
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import birthmark
from birthmark import RefusedError
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import load_pem_public_key

Fields = dict[str, Any]

# --- test keys: docs/vectors.md


def test_key(label: str, kind: str) -> birthmark.PrivateKey:
    """Return the test key of a label. Anyone can compute it, so use it only in tests."""
    if kind == "RSA 2048":
        return _rsa_key(label)
    digest = hashlib.sha384 if kind.endswith("P-384") else hashlib.sha256
    secret = digest(label.encode()).digest()
    if kind == "X25519":
        return x25519.X25519PrivateKey.from_private_bytes(secret)
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.from_private_bytes(secret)
    curve = ec.SECP384R1() if kind.endswith("P-384") else ec.SECP256R1()
    return ec.derive_private_key(int.from_bytes(secret, "big"), curve)


@cache
def _rsa_key(label: str) -> rsa.RSAPrivateKey:
    p, q = (_prime(f"{label}, prime {number}") for number in (1, 2))
    d = pow(65537, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(65537, p * q)
    rest = (d % (p - 1), d % (q - 1), rsa.rsa_crt_iqmp(p, q))
    return rsa.RSAPrivateNumbers(p, q, d, *rest, public).private_key()


def _prime(label: str) -> int:
    """Return the first prime (to Fermat's test) at or above the number of a label."""
    blocks = (hashlib.sha256(f"{label}, block {n}".encode()).digest() for n in range(4))
    candidate = int.from_bytes(b"".join(blocks), "big") | 0b11 << 1022 | 1
    while any(candidate % small == 0 for small in _SMALL) or any(
        pow(base, candidate - 1, candidate) != 1 for base in (2, 3, 5, 7)
    ):
        candidate += 2
    return candidate


_SMALL = [n for n in range(3, 2_000, 2) if all(n % d for d in range(3, int(n**0.5) + 1, 2))]


# Each function returns True if the result is the expected one. Invalid input raises RefusedError.


def key_derivation(group: Fields, test: Fields) -> bool:
    salt, suffix = bytes.fromhex(group["salt"]), bytes.fromhex(group["infoSuffix"])
    key = birthmark.derive_key(bytes.fromhex(test["masterKey"]), test["keyIndex"], salt, suffix)
    return key == bytes.fromhex(test["derivedKey"])


def camera_token(group: Fields, test: Fields) -> bool:
    token, master_key = test["cameraToken"], bytes.fromhex(test["masterKey"])
    nuc_hash: bytes = birthmark.open_token(token, master_key, group["keysPerTable"])
    if test["result"] != "valid":
        return nuc_hash.hex() == test.get("nucHash")
    nonce = bytes.fromhex(token["nonce"])
    again = birthmark.seal(nuc_hash, master_key, token["table_id"], token["key_index"], nonce)
    same = again == {k: v.lower() if isinstance(v, str) else v for k, v in token.items()}
    return same and nuc_hash == bytes.fromhex(test["nucHash"])


def provisioning_response(group: Fields, test: Fields) -> bool:
    key = test_key(group["recipientLabel"], group["recipientKind"])
    opened: Fields
    if group["type"] == "Response":
        opened = birthmark.open_response(
            test["response"],
            group["root"],
            datetime.fromisoformat(group["now"]),
            device_serial=group["deviceSerial"],
            device_key=load_pem_public_key(group["devicePublicKey"].encode()),
            key=key,
        )
    else:
        opened = birthmark.open_secrets(test["sealedSecrets"], key)
    return opened == test.get("secrets")


def certificate_chain(group: Fields, test: Fields) -> bool:
    now = datetime.fromisoformat(test["now"])
    serial: str = birthmark.verify_chain(test["chain"], group["root"], now)
    urn: str = birthmark.device_urn(serial)
    return bool(serial == test.get("deviceSerial") and urn == test["deviceUrn"])


def bundle_signature(group: Fields, test: Fields) -> bool:
    if group["type"] == "Bundle":
        now = datetime.fromisoformat(group["now"])
        serial: str = birthmark.verify_bundle(test["bundle"], group["root"], now)
        return bool(serial == test.get("deviceSerial"))
    return _signs_alike(group, test, birthmark.signed_bytes(json.loads(test["bundle"])))


def renewal_proof(group: Fields, test: Fields) -> bool:
    recipient = test["recipientKey"]
    message: bytes = birthmark.renewal_bytes(
        bytes.fromhex(test["certificate"]),
        bytes.fromhex(test["csr"]),
        None if recipient is None else bytes.fromhex(recipient),
        test["requestedAt"],
        supersede=test["supersede"],
    )
    return _signs_alike(group, test, message)


def _signs_alike(group: Fields, test: Fields, message: bytes) -> bool:
    if message.hex() != test["signedBytes"]:
        return False
    key = load_pem_public_key(group["publicKey"].encode())
    birthmark.verify_signature(bytes.fromhex(test["signature"]), message, key)
    signature = birthmark.sign(message, test_key(group["deviceLabel"], group["keyKind"]))
    birthmark.verify_signature(signature, message, key)
    return bool(group["keyKind"].startswith("EC ") or signature.hex() == test["signature"])


def verdict(group: Fields, test: Fields) -> bool:
    reason = birthmark.judge(
        group["tables"],
        group["keysPerTable"],
        test["tableId"],
        test["keyIndex"],
        opened=test["opened"],
        device=test["device"],
    )
    if reason == test["reason"] != "genuine":
        raise RefusedError(reason)  # FAIL, and for that reason
    return bool(reason == test["reason"])


FILES = (
    key_derivation,
    camera_token,
    provisioning_response,
    certificate_chain,
    bundle_signature,
    renewal_proof,
    verdict,
)


def check(vectors: Path) -> int:
    """Run the tests of all files, and return the number of failures."""
    wrong = 0
    for agrees in FILES:
        name = agrees.__name__
        document = json.loads((vectors / f"{name}_test.json").read_text(encoding="ascii"))
        tests = [(group, test) for group in document["testGroups"] for test in group["tests"]]
        for group, test in tests:
            try:  # to accept something else is no refusal
                right = agrees(group, test) and test["result"] != "invalid"
            except RefusedError:
                right = test["result"] != "valid"
            if not right:
                wrong += 1
                print(f"{name} {test['tcId']}: {test['comment']}: {test['result']}")
        print(f"{name}: {len(tests)} tests")
    return wrong


def main() -> int:
    """Run the command that the first argument names."""
    if sys.argv[1] == "check":
        return 1 if check(Path(sys.argv[2])) else 0
    given = json.load(sys.stdin)
    master_key = bytes.fromhex(given["master_key"])
    if sys.argv[1] == "seal":
        nuc_hash = bytes.fromhex(given["nuc_hash"])
        table, index = given["table_id"], given["key_index"]
        print(json.dumps(birthmark.seal(nuc_hash, master_key, table, index, os.urandom(12))))
        return 0
    print(birthmark.open_token(given["camera_token"], master_key).hex())
    return 0


if __name__ == "__main__":
    sys.exit(main())
