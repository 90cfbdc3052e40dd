"""The files of vectors: what the generator makes, as the schemas say, and true of this project."""

import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_public_key,
)
from jsonschema_rs import Draft202012Validator
from jwcrypto import jwe, jwk
from jwcrypto.common import JWException

from birthmark_sma.client.bundle_verification import verify_bundle
from birthmark_sma.device import Enrolment
from birthmark_sma.device.certification import UnusableAnswerError
from birthmark_sma.device.provisioning import begin
from birthmark_sma.device.provisioning_response import make_identity
from birthmark_sma.device.table_key_decryption import open_table_keys
from birthmark_sma.errors import BirthmarkError, MalformedCameraTokenError
from birthmark_sma.pki.names import device_urn
from birthmark_sma.pki.path_validation import verify_path
from birthmark_sma.protocol.bundle import parse_bundle, parse_time
from birthmark_sma.protocol.bundle_signature import SigningKey, sign_bundle, verify_signature
from birthmark_sma.protocol.camera_token import CameraToken, open_camera_token
from birthmark_sma.protocol.key_derivation import (
    NORMATIVE,
    PUBLISHED_CLIENTS,
    Derivation,
    derive_key,
)
from birthmark_sma.protocol.key_table import STANDARD_SIZES
from birthmark_sma.protocol.renewal import make_proof, sign_renewal, verify_renewal
from birthmark_sma.web.api.models.provisioning import ProvisionResponse
from vectors.generator import seeded_keys
from vectors.generator.all_files import all_files
from vectors.generator.sealing import RSA_2048, agree, public_jwk, recipient_key

_DEVICE_KEYS: dict[str, Callable[[str], SigningKey]] = {
    "EC P-256": seeded_keys.p256,
    "EC P-384": seeded_keys.p384,
    "RSA 2048": seeded_keys.rsa_key,
    "Ed25519": seeded_keys.ed25519_key,
}
VECTORS = Path(__file__).parents[2] / "vectors"
NAMES = (
    "key_derivation",
    "camera_token",
    "provisioning_response",
    "certificate_chain",
    "bundle_signature",
    "renewal_proof",
    "verdict",
)
MADE_ELSEWHERE = ("key_derivation", "key_derivation_published_clients", "camera_token")


def read(name: str) -> dict[str, Any]:
    """A file of vectors."""
    document: dict[str, Any] = json.loads((VECTORS / f"{name}_test.json").read_text("ascii"))
    return document


def cases(name: str, *kinds: str) -> list[Any]:
    """The tests of a file, each with its group, as parameters."""
    return [
        pytest.param(group, test, id=f"{test['tcId']}-{test['comment']}".replace(" ", "_"))
        for group in read(name)["testGroups"]
        for test in group["tests"]
        if not kinds or group["type"] in kinds
    ]


def assert_result(test: dict[str, Any], name: str, given: object) -> None:
    """What is valid is accepted, what is invalid is refused. `given` is None if it was refused.

    What was accepted is what the test has under `name`.
    """
    if given is None:
        assert test["result"] != "valid"
    else:
        assert test["result"] != "invalid"
        assert given == test[name]


# --- the files themselves


def test_the_files_are_what_the_generator_makes() -> None:
    """To the byte, and nothing else is there. `python -m vectors` writes them."""
    made = all_files(VECTORS)
    assert all_files(VECTORS) == made, "the generator is not the same twice"
    for name, content in made.items():
        assert (VECTORS / name).read_bytes() == content, f"{name}: type python -m vectors"
    there = {str(each.relative_to(VECTORS)) for each in VECTORS.rglob("*.json")}
    assert there == made.keys() | {f"{name}.json" for name in MADE_ELSEWHERE}


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_holds(name: str) -> None:
    document = read(name)
    schema = json.loads((VECTORS / document["schema"]).read_text("ascii"))
    validator = Draft202012Validator(schema)
    assert [str(error) for error in validator.iter_errors(document)] == []
    test = document["testGroups"][0]["tests"][0]
    for spoilt in ({"result": "maybe"}, {"surplus": 1}, {"tcId": "1"}):
        kept = dict(test)
        test |= spoilt
        assert not validator.is_valid(document), spoilt
        test.clear()
        test |= kept
    del document["notes"]
    assert not validator.is_valid(document)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_and_notes_are_complete(name: str) -> None:
    document = read(name)
    tests = [test for group in document["testGroups"] for test in group["tests"]]
    assert [test["tcId"] for test in tests] == list(range(1, document["numberOfTests"] + 1))
    assert {flag for test in tests for flag in test["flags"]} == document["notes"].keys()
    for test in tests:
        assert test["flags"] or test["result"] == "valid", "why is it not valid?"
    for group in document["testGroups"]:
        fields = [_without_names(test) for test in group["tests"]]
        assert all(fields.count(each) == 1 for each in fields), "two tests are the same"


def _without_names(test: dict[str, Any]) -> dict[str, Any]:
    return {name: test[name] for name in test.keys() - {"tcId", "comment", "flags", "result"}}


def test_no_private_key_is_in_any_file() -> None:
    for file in VECTORS.rglob("*"):
        if file.is_file() and file.suffix != ".pyc":
            assert not re.search(r"-----BEGIN [A-Z ]*PRIVATE KEY", file.read_text("utf-8")), file
    assert '"d"' not in "".join(file.read_text("ascii") for file in VECTORS.glob("*_test.json"))


def test_what_was_computed_elsewhere_is_all_there() -> None:
    """The normative files were not made with Python: not a value of theirs is lost or changed."""
    groups = read("key_derivation")["testGroups"]
    for group, name in zip(groups, MADE_ELSEWHERE[:2], strict=True):
        source = json.loads((VECTORS / f"{name}.json").read_text("ascii"))["tests"]
        fields = ("masterKey", "keyIndex", "derivedKey")
        assert [[t[f] for f in fields] for t in group["tests"]] == [
            [t[f] for f in fields] for t in source
        ]
    source = json.loads((VECTORS / "camera_token.json").read_text("ascii"))["tests"]
    [group] = read("camera_token")["testGroups"]
    for was, test in zip(source, group["tests"], strict=True):
        token = test["cameraToken"]
        assert test["result"] == ("valid" if was["result"] == "valid" else "invalid")
        assert (was["masterKey"], was["keyIndex"], was["nonce"], was["encryptedNucHash"]) == (
            test["masterKey"],
            token["key_index"],
            token["nonce"],
            token["encrypted_nuc_hash"],
        )
        assert was.get("nucHash") == test.get("nucHash")


_ZERO_BYTES = {"P-256": (1, 1), "P-384": (1, 1), "X25519": (1, 0), RSA_2048: (0, 0)}
"""How many shared secrets and coordinates among the valid tests begin with a zero byte."""


@pytest.mark.parametrize("kind", _ZERO_BYTES)
def test_zero_bytes_are_where_the_comments_say(kind: str) -> None:
    """The values that lose a byte in a program that reads them as numbers."""
    [group] = [
        group
        for group in read("provisioning_response")["testGroups"]
        if group["type"] == "Sealed" and group["recipientKind"] == kind
    ]
    valid = [test["sealedSecrets"] for test in group["tests"] if test["result"] == "valid"]
    heads, encrypted_keys = ([_part(each, part) for each in valid] for part in (0, 1))
    assert any(each[0] == 0 for each in encrypted_keys) == (kind == RSA_2048)
    points = [json.loads(head).get("epk", {}) for head in heads]
    assert sum(_part(point["x"])[0] == 0 for point in points if point) == _ZERO_BYTES[kind][1]
    own = recipient_key(kind, group["recipientLabel"])
    secrets = [agree(_other_half(kind, point), own) for point in points if point]
    assert sum(secret[0] == 0 for secret in secrets) == _ZERO_BYTES[kind][0]


def _part(jwe_: str, number: int = 0) -> bytes:
    part = jwe_.split(".")[number]
    return urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _other_half(kind: str, point: dict[str, str]) -> Any:
    """The private key of an ephemeral key, which has a label too."""
    labels = ["test ephemeral key", *(f"test ephemeral key {number}" for number in range(1, 400))]
    return next(
        key
        for key in (recipient_key(kind, label) for label in labels)
        if public_jwk(kind, key) == point
    )


# --- this project, by the files


@pytest.mark.parametrize(("group", "test"), cases("key_derivation"))
def test_key_derivation(group: dict[str, Any], test: dict[str, Any]) -> None:
    derivation = {"Normative": NORMATIVE, "PublishedClients": PUBLISHED_CLIENTS}[group["type"]]
    stated = Derivation(bytes.fromhex(group["salt"]), bytes.fromhex(group["infoSuffix"]))
    assert stated == derivation
    key = derive_key(bytes.fromhex(test["masterKey"]), test["keyIndex"], derivation)
    assert key.hex() == test["derivedKey"]


@pytest.mark.parametrize(("group", "test"), cases("camera_token"))
def test_camera_tokens(group: dict[str, Any], test: dict[str, Any]) -> None:
    assert group["keysPerTable"] == STANDARD_SIZES.keys_per_table
    try:
        opened = _open(test)
    except BirthmarkError:
        opened = None
    assert_result(test, "nucHash", opened)


def _open(test: dict[str, Any]) -> str:
    sent = test["cameraToken"]
    if not all(re.fullmatch("([0-9a-fA-F]{2})*", sent[f]) for f in ("encrypted_nuc_hash", "nonce")):
        raise MalformedCameraTokenError("no hex")
    if not STANDARD_SIZES.has_key_index(sent["key_index"]):
        raise MalformedCameraTokenError("no such index")
    token = CameraToken(
        encrypted_nuc_hash=bytes.fromhex(sent["encrypted_nuc_hash"]),
        table_id=sent["table_id"],
        key_index=sent["key_index"],
        nonce=bytes.fromhex(sent["nonce"]),
    )
    key = derive_key(bytes.fromhex(test["masterKey"]), sent["key_index"])
    return open_camera_token(token, key).hex()


@pytest.mark.parametrize(("group", "test"), cases("provisioning_response", "Response"))
def test_provisioning_responses(group: dict[str, Any], test: dict[str, Any]) -> None:
    """As the authority writes them, and as the camera takes them: it takes sealed secrets alone."""
    if test["result"] == "valid":
        answer = ProvisionResponse.model_validate(test["response"])
        assert answer.model_dump(exclude_none=True) == test["response"]
    root = x509.load_pem_x509_certificate(group["root"].encode())
    enrolment = Enrolment(
        "https://sma.example.org",
        group["deviceSerial"],
        "Test",
        root_fingerprint=root.fingerprint(SHA256()).hex(),
    )
    pending = replace(
        begin(enrolment),
        private_key=_pem(seeded_keys.p256(group["deviceLabel"])),
        key_encryption_private_key=_pem(
            recipient_key(group["recipientKind"], group["recipientLabel"])
        ),
    )
    try:
        identity = make_identity(
            pending,
            json.dumps(test["response"]).encode(),
            root_fingerprints=enrolment.root_fingerprints,
        )
        kept = {"nuc_hash": identity.nuc_hash, "table_keys": identity.table_keys}
        secrets = test.get("secrets", {}) | kept
    except UnusableAnswerError:
        secrets = None
    assert_result(test, "secrets", secrets)


def _pem(key: PrivateKeyTypes) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.mark.parametrize(("group", "test"), cases("provisioning_response", "Sealed"))
def test_sealed_secrets(group: dict[str, Any], test: dict[str, Any]) -> None:
    """By a JOSE library that had no part in making them; on P-256 also by the camera's own code.

    That library takes some of what the RFC forbids.
    """
    key = recipient_key(group["recipientKind"], group["recipientLabel"])
    opened = jwe.JWE(algs=["ECDH-ES+A256KW", "RSA-OAEP-256", "A256GCM"])
    if "Forbidden" not in test["flags"]:
        try:
            opened.deserialize(test["sealedSecrets"], jwk.JWK.from_pem(_pem(key).encode()))
            secrets = json.loads(opened.payload)
        except (JWException, ValueError):
            secrets = None
        assert_result(test, "secrets", secrets)
    if isinstance(key, ec.EllipticCurvePrivateKey) and group["recipientKind"] == "P-256":
        try:
            secrets = open_table_keys(test["sealedSecrets"], key)
        except BirthmarkError:
            secrets = None
        assert_result(test, "secrets", secrets)


@pytest.mark.parametrize(("group", "test"), cases("certificate_chain"))
def test_certificate_chains(group: dict[str, Any], test: dict[str, Any]) -> None:
    root = x509.load_pem_x509_certificate(group["root"].encode())
    leaf, *between = (x509.load_pem_x509_certificate(pem.encode()) for pem in test["chain"])
    try:
        serial = verify_path(leaf, between, root=root, now=datetime.fromisoformat(test["now"]))
    except BirthmarkError:
        serial = None
    assert_result(test, "deviceSerial", serial)
    if test["result"] != "invalid":
        assert device_urn(test["deviceSerial"]) == test["deviceUrn"]


@pytest.mark.parametrize(("group", "test"), cases("bundle_signature", "BundleSignature"))
def test_signatures_of_bundles(group: dict[str, Any], test: dict[str, Any]) -> None:
    bundle = parse_bundle(test["bundle"])
    assert bundle.content.signed_bytes().hex() == test["signedBytes"]
    assert bundle.signature.hex() == test["signature"]
    if test["result"] == "valid":
        key = _DEVICE_KEYS[group["keyKind"]](group["deviceLabel"])
        signed = sign_bundle(bundle.content, key)
        verify_signature(signed, load_pem_public_key(group["publicKey"].encode()))
        assert isinstance(key, ec.EllipticCurvePrivateKey) or signed == bundle
    try:
        verify_signature(bundle, load_pem_public_key(group["publicKey"].encode()))
    except BirthmarkError:
        assert test["result"] == "invalid"
    else:
        assert test["result"] == "valid"


@pytest.mark.parametrize(("group", "test"), cases("renewal_proof", "RenewalProof"))
def test_proofs_of_renewals(group: dict[str, Any], test: dict[str, Any]) -> None:
    recipient = test["recipientKey"]
    at = parse_time(test["requestedAt"])
    assert at is not None
    proof = make_proof(
        bytes.fromhex(test["certificate"]),
        bytes.fromhex(test["csr"]),
        None if recipient is None else bytes.fromhex(recipient),
        requested_at=at,
        supersede=test["supersede"],
    )
    assert proof.signed_bytes().hex() == test["signedBytes"]
    public_key = load_pem_public_key(group["publicKey"].encode())
    signed = sign_renewal(proof, _DEVICE_KEYS[group["keyKind"]](group["deviceLabel"]))
    verify_renewal(proof, signed, public_key)
    try:
        verify_renewal(proof, bytes.fromhex(test["signature"]), public_key)
    except BirthmarkError:
        assert test["result"] == "invalid"
    else:
        assert test["result"] == "valid"


@pytest.mark.parametrize(("group", "test"), cases("bundle_signature", "Bundle"))
def test_whole_bundles(group: dict[str, Any], test: dict[str, Any]) -> None:
    root = x509.load_pem_x509_certificate(group["root"].encode())
    now = datetime.fromisoformat(group["now"])
    try:
        serial = verify_bundle(test["bundle"].encode(), root=root, now=now).device_serial
    except BirthmarkError:
        serial = None
    assert_result(test, "deviceSerial", serial)
