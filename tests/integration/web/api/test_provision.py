"""POST /api/v1/devices/provision, field by field, on both kinds of database."""

import json
import re
import subprocess
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa, x448, x25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from jwcrypto import jwe, jwk

from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    csr_pem,
    new_key,
    provision_body,
    public_pem,
    sealed_fields,
    wire,
)
from tests.support.problems import assert_problem, fields_of
from tests.support.programs.commands import sma
from tests.support.programs.running import Running, new_serial

JSON = {"Content-Type": "application/json"}
VERIFY = ("openssl", "verify", "-x509_strict")
HEX_64 = re.compile(r"[0-9a-f]{64}")


def ask(client: httpx2.Client, **fields: Any) -> dict[str, Any]:
    """Provision a new device; return the answer."""
    response = client.post(PROVISION, json=provision_body(new_serial()) | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def ask_with(
    client: httpx2.Client, key: str | None = None, **fields: Any
) -> tuple[str, httpx2.Response]:
    """Send a request of these fields (None leaves one out); return the serial and the response."""
    serial = new_serial()
    body = {name: v for name, v in (provision_body(serial) | fields).items() if v is not None}
    headers = {} if key is None else {"Idempotency-Key": key}
    return serial, client.post(PROVISION, json=body, headers=headers)


# --- the answer


def test_the_answer_has_the_fields_of_the_contract(client: httpx2.Client) -> None:
    """Threat 7: the answer carries the table keys, without which no token could be made."""
    before = datetime.now(UTC)
    response = client.post(PROVISION, json=provision_body(new_serial(), app_version="1.4.0"))
    after = datetime.now(UTC)

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    answer = response.json()
    assert list(answer) == [
        "device_certificate",
        "certificate_chain",
        "table_assignments",
        "provisioning_id",
        "simulated_nuc_hash",
        "table_keys",
    ]
    tables = answer["table_assignments"]
    assert len(tables) == len(set(tables)) == 3
    assert tables == sorted(tables)
    assert all(type(table) is int and 0 <= table < 2_500 for table in tables)
    assert list(answer["table_keys"]) == [str(table) for table in tables]
    assert all(HEX_64.fullmatch(key) for key in answer["table_keys"].values())
    assert len(set(answer["table_keys"].values())) == 3
    assert HEX_64.fullmatch(answer["simulated_nuc_hash"])
    shape = re.fullmatch(r"PROV-(\d{8})-([0-9A-Za-z]{12,})", answer["provisioning_id"])
    assert shape
    assert shape[1] in {f"{before:%Y%m%d}", f"{after:%Y%m%d}"}


def test_the_chain_is_intermediate_then_root(client: httpx2.Client) -> None:
    """Each element is one PEM certificate, and the last is the root that verifiers fetch."""
    answer = ask(client)
    device, intermediate, root = (
        x509.load_pem_x509_certificate(pem.encode())
        for pem in (answer["device_certificate"], *answer["certificate_chain"])
    )
    pems = [answer["device_certificate"], *answer["certificate_chain"]]
    assert all(pem.count("-----BEGIN CERTIFICATE-----") == 1 for pem in pems)
    device.verify_directly_issued_by(intermediate)
    intermediate.verify_directly_issued_by(root)
    der = serialization.Encoding.DER
    assert client.get("/pki/root.crt").content == root.public_bytes(der)
    assert client.get("/pki/intermediate.crt").content == intermediate.public_bytes(der)


def test_openssl_accepts_the_chain(client: httpx2.Client, tmp_path: Path) -> None:
    """Threat 1: the intermediate is a v3 CA, and OpenSSL accepts the chain at its strictest."""
    answer = ask(client)
    intermediate, root = answer["certificate_chain"]
    certificate = x509.load_pem_x509_certificate(intermediate.encode())
    assert certificate.version is x509.Version.v3
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    for name, pem in (
        ("root", root),
        ("intermediate", intermediate),
        ("device", answer["device_certificate"]),
    ):
        (tmp_path / name).write_text(pem)
    judged = subprocess.run(
        [*VERIFY, "-CAfile", "root", "-untrusted", "intermediate", "device"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.stdout == "device: OK\n", judged.stderr


def test_the_device_certificate_says_what_the_contract_says(client: httpx2.Client) -> None:
    """Threat 2: a serial that is no host name stands in the URN alone, beside all extensions."""
    serial = new_serial("No host name/")
    key = new_key()
    response = client.post(
        PROVISION, json=provision_body(serial, device_public_key=public_pem(key))
    )
    certificate = x509.load_pem_x509_certificate(response.json()["device_certificate"].encode())
    assert certificate.public_key() == key.public_key()
    common_name = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert [attribute.value for attribute in common_name] == [serial]
    extensions = certificate.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == []
    [urn] = names.get_values_for_type(x509.UniformResourceIdentifier)
    assert urn.startswith("urn:birthmark:device:No%20host%20name%2F-")
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)


def test_a_slow_clock_and_the_issuer_are_respected(client: httpx2.Client) -> None:
    """Threat 3: valid since before now, for 730 days, and no longer than its issuer."""
    answer = ask(client)
    certificate = x509.load_pem_x509_certificate(answer["device_certificate"].encode())
    issuer = x509.load_pem_x509_certificate(answer["certificate_chain"][0].encode())
    now = datetime.now(UTC)
    backdated = now - certificate.not_valid_before_utc
    assert timedelta(minutes=5) <= backdated <= timedelta(hours=1, minutes=1)
    assert certificate.not_valid_after_utc <= issuer.not_valid_after_utc
    lifetime = certificate.not_valid_after_utc - now
    assert timedelta(days=729) < lifetime <= timedelta(days=730)


def test_ids_are_never_shared(sqlite_client: httpx2.Client) -> None:
    """Threat 9: a provisioning_id is unique, and so are NUC hash and certificate serial."""
    answers = [ask(sqlite_client) for _ in range(20)]
    certificates = [
        x509.load_pem_x509_certificate(a["device_certificate"].encode()) for a in answers
    ]
    assert len({a["provisioning_id"] for a in answers}) == 20
    assert len({a["simulated_nuc_hash"] for a in answers}) == 20
    assert len({c.serial_number for c in certificates}) == 20
    assert all(64 <= c.serial_number.bit_length() <= 159 for c in certificates)


def test_tables_are_drawn_from_all_of_them(sqlite_client: httpx2.Client) -> None:
    """Threats 10 and 11. Threat 11: devices on one table have one master key.

    A hundred devices draw three hundred times from 2,500 tables: far apart, and with some in common
    nearly always.
    """
    answers = [ask(sqlite_client) for _ in range(100)]
    keys: dict[str, set[str]] = {}
    for answer in answers:
        for table, key in answer["table_keys"].items():
            keys.setdefault(table, set()).add(key)
    assert len(keys) > 200
    assert min(map(int, keys)) < 250
    assert max(map(int, keys)) >= 2_250
    assert len(keys) < 300, "no two devices share a table, which should not happen"
    assert all(len(different) == 1 for different in keys.values())


def test_no_module_draws_from_a_predictable_generator() -> None:
    """Threat 10: nothing imports `random` but the plan of a simulation, which a seed repeats."""
    package = Path(__file__).parents[4] / "src" / "birthmark_sma"
    modules = set(package.rglob("*.py")) - set((package / "simulation").rglob("*.py"))
    assert len(modules) > 100
    for module in modules:
        source = module.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import random\b|from random\b)", source, re.MULTILINE), module


# --- keys


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: ec.generate_private_key(ec.SECP256R1()), id="P-256"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP384R1()), id="P-384"),
        pytest.param(lambda: rsa.generate_private_key(65537, 2048), id="RSA-2048"),
        pytest.param(ed25519.Ed25519PrivateKey.generate, id="Ed25519"),
    ],
)
def test_keys_of_the_contract_are_certified(
    sqlite_client: httpx2.Client, make: Callable[[], Any]
) -> None:
    key = make()
    response = ask_with(sqlite_client, device_public_key=public_pem(key))[1]
    certificate = x509.load_pem_x509_certificate(response.json()["device_certificate"].encode())
    assert certificate.public_key() == key.public_key()


def private_pem() -> str:
    return (
        new_key()
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
    )


# Functions, because every process that collects this file would generate the keys.
REFUSED_KEYS: dict[str, tuple[Callable[[], str], str]] = {
    "RSA-1024": (lambda: public_pem(rsa.generate_private_key(65537, 1024)), "1024"),
    "RSA-e3": (lambda: public_pem(rsa.generate_private_key(3, 2048)), "e = 3"),
    "P-521": (lambda: public_pem(ec.generate_private_key(ec.SECP521R1())), "secp521r1"),
    "secp256k1": (lambda: public_pem(ec.generate_private_key(ec.SECP256K1())), "secp256k1"),
    "X25519": (lambda: public_pem(x25519.X25519PrivateKey.generate()), "X25519"),
    "X448": (lambda: public_pem(x448.X448PrivateKey.generate()), "X448"),
    "DSA": (lambda: public_pem(dsa.generate_private_key(2048)), "DSA"),
    "private": (private_pem, "private key"),
    "text": (lambda: "no key", "PEM"),
    "damaged": (lambda: public_pem(new_key()).replace("M", "N", 1), "read"),
    "NUL": (lambda: "-----BEGIN PUBLIC KEY-----\0-----END PUBLIC KEY-----", "PEM"),
    "csr": (lambda: csr_pem(new_key()), "PEM"),
}
"""For what is never certified: how it is made, and a word that the reason has to have."""


@pytest.mark.parametrize(("make", "reason"), REFUSED_KEYS.values(), ids=REFUSED_KEYS)
def test_other_keys_are_refused_with_the_reason(
    sqlite_client: httpx2.Client,
    running_on_sqlite: Running,
    make: Callable[[], str],
    reason: str,
) -> None:
    """Threat 4: weak keys, keys that cannot sign, and whatever is no public key."""
    before = running_on_sqlite.count("registered_devices")
    document = assert_problem(ask_with(sqlite_client, device_public_key=make())[1], 422)
    assert reason in document["detail"]
    assert running_on_sqlite.count("registered_devices") == before


CASES = Path(__file__).parents[3] / "pki" / "keys" / "refused_keys"
RFC_6979_P256 = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721
FACTORABLE = {
    "rsa_close_primes.pem": "close primes",
    "rsa_close_primes_500_bits.pem": "close primes",
    "rsa_factor_757.pem": "small factor",
    "rsa_factor_65537.pem": "small factor",
    "rsa_pss_without_parameters.pem": "RSASSA-PSS",
    "pem_encryption_headers.pem": "encryption headers",
    "ec_raw_point_base64.pem": "bare EC point",
    "ec_raw_point_in_pem.pem": "bare EC point",
}


@pytest.mark.parametrize("field", ["device_public_key", "key_encryption_public_key"])
@pytest.mark.parametrize("name", [*FACTORABLE, "RFC 6979"])
def test_keys_that_anybody_can_use_are_refused(
    sqlite_client: httpx2.Client, name: str, field: str
) -> None:
    """Threat 39: inputs that got a wrong answer, as signing key and as recipient key."""
    if name in FACTORABLE:
        key, cause = (CASES / name).read_text(), FACTORABLE[name]
    else:
        key, cause = public_pem(ec.derive_private_key(RFC_6979_P256, ec.SECP256R1())), "published"
    response = ask_with(sqlite_client, **{field: key})[1]
    document = assert_problem(response, 422)
    assert document["type"] == "urn:birthmark:problem:key-refused"
    assert cause in document["detail"]


def test_two_csrs_in_one_field_are_refused(sqlite_client: httpx2.Client) -> None:
    """Threat 41: the first was taken silently."""
    body = provision_body("csr-7", csr=(CASES / "csr_two_in_one_field.pem").read_text())
    del body["device_public_key"]
    document = assert_problem(sqlite_client.post(PROVISION, json=body), 422)
    assert "more than one PEM block" in document["detail"]


def test_spellings_of_one_name(client: httpx2.Client) -> None:
    """Threat 40: one 200, then 409 or 422."""
    serial = new_serial("Cam")
    wide = "".join(chr(ord(each) + 0xFEE0) for each in serial)
    spellings = [serial, serial.lower(), serial.upper(), f"{serial} ", f" {serial}", wide]
    answers = [client.post(PROVISION, json=provision_body(each)) for each in spellings]
    assert [each.status_code for each in answers] == [200, 409, 409, 422, 422, 409]
    cafe = new_serial("caf\u00e9")
    for spelling, status in ((cafe, 200), (unicodedata.normalize("NFD", cafe), 409)):
        assert client.post(PROVISION, json=provision_body(spelling)).status_code == status


@pytest.mark.parametrize(
    "serial",
    [
        "".join(chr(ord(c) + 0xFEE0) if c != " " else c for c in "Simulated Mfg Intermediate CA"),
        "Simulated Mfg Root CA\ufe0f",
        "\u2800",
        "\u3164",
    ],
)
def test_names_that_no_device_has(sqlite_client: httpx2.Client, serial: str) -> None:
    """Threat 40: a CA's name in disguise, and what nobody sees."""
    document = assert_problem(sqlite_client.post(PROVISION, json=provision_body(serial)), 422)
    assert document["type"] == "urn:birthmark:problem:serial-refused"


def test_a_decomposed_name_in_a_csr(sqlite_client: httpx2.Client) -> None:
    """It is the name of the request, whose serial is composed; the certificate bears the serial."""
    body = provision_body(
        "\u00e9-cam", csr=(CASES.parents[1] / "csr_cn_decomposed.pem").read_text()
    )
    del body["device_public_key"]
    response = sqlite_client.post(PROVISION, json=body)
    assert response.status_code == 200, response.text
    pem = response.json()["device_certificate"]
    certificate = x509.load_pem_x509_certificate(pem.encode())
    [common_name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert common_name.value == "\u00e9-cam"


def test_a_csr_proves_possession(client: httpx2.Client) -> None:
    key = new_key()
    response = ask_with(client, csr=csr_pem(key), device_public_key=None)[1]
    certificate = x509.load_pem_x509_certificate(response.json()["device_certificate"].encode())
    assert certificate.public_key() == key.public_key()


def _csr(common_name: str | None = None, *, altered: bool = False) -> str:
    name = [] if common_name is None else [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name(name))
        .sign(new_key(), hashes.SHA256())
    )
    der = bytearray(request.public_bytes(serialization.Encoding.DER))
    if altered:
        der[-1] ^= 1
    damaged = x509.load_der_x509_csr(bytes(der))
    return damaged.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    "csr",
    [
        pytest.param(_csr(altered=True), id="signature"),
        pytest.param(_csr("another-device"), id="other-name"),
        pytest.param("-----BEGIN CERTIFICATE REQUEST-----", id="damaged"),
        pytest.param("no csr", id="text"),
    ],
)
def test_a_csr_without_proof_is_refused(sqlite_client: httpx2.Client, csr: str) -> None:
    """Threat 4: a request that its key did not sign, or that names another device."""
    document = assert_problem(ask_with(sqlite_client, csr=csr, device_public_key=None)[1], 422)
    assert document["type"] == "urn:birthmark:problem:csr-refused"


def test_a_key_or_a_csr_but_not_both_or_none(sqlite_client: httpx2.Client) -> None:
    key = new_key()
    both = ask_with(sqlite_client, csr=csr_pem(key), device_public_key=public_pem(key))[1]
    none = ask_with(sqlite_client, device_public_key=None)[1]
    for response in (both, none):
        assert "exactly one" in assert_problem(response, 422)["detail"]


def test_null_means_left_out(sqlite_client: httpx2.Client) -> None:
    optional = ("csr", "app_version", "nuc_hash", "key_encryption_public_key")
    ask(sqlite_client, **dict.fromkeys(optional))


# --- NUC hash


def test_a_device_may_bring_its_own_nuc_hash_in_either_case(client: httpx2.Client) -> None:
    """It is written in lower case, and belongs to one device however it is spelt."""
    digits = new_serial("ab")[3:] + "ABCDEFabcdef" + "0" * 40
    upper, lower = digits.upper(), digits.lower()
    assert ask(client, nuc_hash=upper)["simulated_nuc_hash"] == lower
    for spelt in (upper, lower, digits):
        document = assert_problem(ask_with(client, nuc_hash=spelt)[1], 409)
        assert document["type"] == "urn:birthmark:problem:nuc-hash-in-use"
        assert lower not in document["detail"].lower()


# --- JWE


@pytest.mark.parametrize(
    ("make", "algorithm"),
    [
        pytest.param(lambda: ec.generate_private_key(ec.SECP256R1()), "ECDH-ES+A256KW", id="P-256"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP384R1()), "ECDH-ES+A256KW", id="P-384"),
        pytest.param(x25519.X25519PrivateKey.generate, "ECDH-ES+A256KW", id="X25519"),
        pytest.param(lambda: rsa.generate_private_key(65537, 2048), "RSA-OAEP-256", id="RSA"),
    ],
)
def test_secrets_come_sealed_where_the_device_has_a_key_for_it(
    sqlite_client: httpx2.Client, make: Callable[[], Any], algorithm: str
) -> None:
    """Another implementation of JWE opens them; they are nowhere in the clear."""
    serial, key = new_serial(), make()
    fields = {"device_serial": serial} | sealed_fields(serial, key)
    answer = ask(sqlite_client, **fields)
    assert list(answer) == [
        "device_certificate",
        "certificate_chain",
        "table_assignments",
        "provisioning_id",
        "sealed_secrets",
    ]
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    token = jwe.JWE(algs=[algorithm, "A256GCM"])
    token.deserialize(answer["sealed_secrets"], jwk.JWK.from_pem(private))
    assert token.jose_header["alg"] == algorithm
    assert token.jose_header["enc"] == "A256GCM"
    opened = json.loads(token.payload)
    assert list(opened) == ["device_serial", "certificate_sha256", "nuc_hash", "table_keys"]
    assert opened["device_serial"] == serial
    der = x509.load_pem_x509_certificate(answer["device_certificate"].encode())
    assert opened["certificate_sha256"] == der.fingerprint(hashes.SHA256()).hex()
    assert list(opened["table_keys"]) == [str(table) for table in answer["table_assignments"]]
    # They are the true ones.
    clear = {"simulated_nuc_hash": opened["nuc_hash"], "table_keys": opened["table_keys"]}
    camera = Camera.of(serial, answer | clear)
    verdict = sqlite_client.post(VALIDATE, json=wire(camera.token())).json()
    assert verdict["validation_result"] == "PASS"


@pytest.mark.parametrize("change", ["another key", "no key", "no CSR"])
def test_a_relay_cannot_choose_the_recipient_key(sqlite_client: httpx2.Client, change: str) -> None:
    """Threat 41: the request is refused, and nothing is registered."""
    serial = new_serial()
    changes: dict[str, dict[str, Any]] = {
        "another key": {"key_encryption_public_key": public_pem(new_key())},
        "no key": {"key_encryption_public_key": None},
        "no CSR": {"csr": None, "device_public_key": public_pem(new_key())},
    }
    fields = {"device_serial": serial} | sealed_fields(serial) | changes[change]
    document = assert_problem(ask_with(sqlite_client, **fields)[1], 422)
    assert document["type"] == "urn:birthmark:problem:csr-refused"
    assert "recipient key" in document["detail"]
    ask(sqlite_client, device_serial=serial)


@pytest.mark.parametrize(
    "key", [ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 1024)]
)
def test_a_key_that_cannot_keep_a_secret_is_refused(sqlite_client: httpx2.Client, key: Any) -> None:
    response = ask_with(sqlite_client, key_encryption_public_key=public_pem(key))[1]
    document = assert_problem(response, 422)
    assert document["type"] == "urn:birthmark:problem:key-refused"


# --- conflicts


def test_a_serial_is_provisioned_once(client: httpx2.Client, running: Running) -> None:
    """The second request changes nothing, and is told in the contract's words."""
    serial = new_serial()
    first = client.post(PROVISION, json=provision_body(serial)).json()
    again = client.post(PROVISION, json=provision_body(serial, device_family="Other"))
    document = assert_problem(again, 409)
    assert document["title"] == "Device already provisioned"
    [(family, provisioning_id)] = running.rows(
        "SELECT device_family, provisioning_id FROM registered_devices WHERE device_serial = ?",
        serial,
    )
    assert (family, provisioning_id) == ("Test", first["provisioning_id"])


def test_a_public_key_is_certified_once(client: httpx2.Client) -> None:
    """Threat 4: one public key never stands under two serials, sent as key or as CSR."""
    key = new_key()
    ask(client, device_public_key=public_pem(key))
    again = [
        ask_with(client, device_public_key=public_pem(key))[1],
        ask_with(client, csr=csr_pem(key), device_public_key=None)[1],
    ]
    for response in again:
        document = assert_problem(response, 409)
        assert document["type"] == "urn:birthmark:problem:public-key-in-use"


# --- Idempotency-Key


def test_the_same_request_gets_the_first_answer_again(client: httpx2.Client) -> None:
    """Threat 8: a lost response does not brick a device; the answer is the same to the byte."""
    body = provision_body(new_serial(), nuc_hash=new_serial("a")[2:] + "0" * 52)
    serial = new_serial()
    sealed = provision_body(serial, **sealed_fields(serial))
    for each in (body, sealed):
        headers = {"Idempotency-Key": new_serial("key")}
        first, *later = [client.post(PROVISION, json=each, headers=headers) for _ in range(3)]
        assert first.status_code == 200, first.text
        assert all(response.status_code == 200 for response in later)
        assert {response.content for response in later} == {first.content}


def test_the_key_is_of_that_request_alone(client: httpx2.Client, running: Running) -> None:
    """The same key with another body is 422; without the key the device is registered: 409."""
    body = provision_body(new_serial())
    headers = {"Idempotency-Key": new_serial("key")}
    assert client.post(PROVISION, json=body, headers=headers).status_code == 200
    before = running.count("registered_devices")
    others: list[dict[str, Any]] = [
        body | {"device_family": "Other"},
        body | {"app_version": "1"},
        body | {"nuc_hash": "0" * 64},
        provision_body(new_serial()),
    ]
    for other in others:
        document = assert_problem(client.post(PROVISION, json=other, headers=headers), 422)
        assert document["type"] == "urn:birthmark:problem:idempotency-key-reused"
    assert_problem(client.post(PROVISION, json=body), 409)
    assert_problem(client.post(PROVISION, json=body, headers={"Idempotency-Key": "another"}), 409)
    assert running.count("registered_devices") == before


def test_a_refused_request_leaves_its_key_free(client: httpx2.Client) -> None:
    headers = {"Idempotency-Key": new_serial("key")}
    weak = public_pem(rsa.generate_private_key(65537, 1024))
    body = provision_body(new_serial())
    refused = client.post(PROVISION, json=body | {"device_public_key": weak}, headers=headers)
    assert_problem(refused, 422)
    assert client.post(PROVISION, json=body, headers=headers).status_code == 200


def test_eight_copies_at_once_are_one_device(running: Running) -> None:
    """Threat 8: eight parallel requests under one key get one and the same answer.

    Tried several times, as the moments at which they meet differ.
    """

    def send(request: tuple[dict[str, Any], dict[str, str]]) -> httpx2.Response:
        body, headers = request
        with running.client() as own:
            return own.post(PROVISION, json=body, headers=headers)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(6):
            request = (provision_body(new_serial()), {"Idempotency-Key": new_serial("key")})
            responses = list(pool.map(send, [request] * 8))
            assert {response.status_code for response in responses} == {200}
            assert len({response.content for response in responses}) == 1


def test_eight_requests_at_once_for_one_serial(running: Running) -> None:
    """Threat 8: without a key exactly one of them wins, and the others are told why."""
    serial = new_serial()

    def send(_: int) -> httpx2.Response:
        with running.client() as own:
            return own.post(PROVISION, json=provision_body(serial))

    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(send, range(8)))
    losers = [response for response in responses if response.status_code != 200]
    assert len(losers) == 7
    for response in losers:
        assert_problem(response, 409)
    found = running.rows("SELECT 1 FROM registered_devices WHERE device_serial = ?", serial)
    assert len(found) == 1


@pytest.mark.parametrize("key", ["", "a" * 256, "two words", "caf\u00e9", "tab\there"])
def test_a_malformed_idempotency_key_is_422(sqlite_client: httpx2.Client, key: str) -> None:
    response = sqlite_client.post(
        PROVISION,
        json=provision_body(new_serial()),
        headers=[(b"Idempotency-Key", key.encode("utf-8"))],
    )
    assert fields_of(assert_problem(response, 422)) == {"Idempotency-Key"}


# --- malformed requests

SERIAL = "device_serial"
MALFORMED: dict[str, list[object]] = {
    SERIAL: [None, 5, 5.0, True, [], {}, "", "x" * 65, "\u00e9" * 65]
    + [f"camera{c}1" for c in "\0\n\r\t\x1b\x7f\x85\u2028\u202e\u200b"],
    "device_family": [None, 5, "", "x" * 51, "a\0b", "\n"],
    "app_version": [1.4, 5, "", "x" * 51, "a\0b", True],
    "nuc_hash": [
        5,
        2**63,
        "0" * 62 + "\uff10\uff10",
        "",
        "0" * 63,
        "0" * 65,
        "g" * 64,
        " " + "0" * 63,
        "0x" + "0" * 62,
    ],
    "device_public_key": [5, "", [], "x" * 8_193],
    "csr": [5, "", {}, "x" * 8_193],
    "key_encryption_public_key": [5, "", "x" * 8_193],
    "simulated_nuc_hash": ["0" * 64],
    "table_assignments": [[1, 2, 3]],
    "Device_Serial": ["x"],
    "__class__": ["x"],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in MALFORMED.items() for value in values]
)
def test_a_malformed_field_is_422_and_named(
    client: httpx2.Client, running: Running, field: str, value: object
) -> None:
    """Threats 16 and 21. Threat 16: nothing is coerced. Threat 21: no character chokes a database.

    The problem names the field, and nothing is registered.
    """
    before = running.count("registered_devices")
    body = provision_body(new_serial()) | {field: value}
    document = assert_problem(client.post(PROVISION, json=body), 422)
    assert field in fields_of(document)
    assert running.count("registered_devices") == before


@pytest.mark.parametrize("field", ["device_serial", "device_family"])
def test_a_missing_field_is_422_and_named(sqlite_client: httpx2.Client, field: str) -> None:
    body = provision_body(new_serial())
    del body[field]
    assert fields_of(assert_problem(sqlite_client.post(PROVISION, json=body), 422)) == {field}


def test_several_faults_are_told_at_once(sqlite_client: httpx2.Client) -> None:
    body = provision_body("x" * 65, device_family="", nuc_hash="zz")
    document = assert_problem(sqlite_client.post(PROVISION, json=body), 422)
    assert fields_of(document) == {"device_serial", "device_family", "nuc_hash"}


def broken_bodies() -> dict[str, bytes]:
    """Bodies that are no JSON object of the contract, whatever a lenient parser thinks of them."""
    good = json.dumps(provision_body("never-registered", nuc_hash="0" * 64))
    return {
        "empty": b"",
        "null": b"null",
        "array": b"[]",
        "string": b'"x"',
        "number": b"5",
        "truncated": good[:-1].encode(),
        "trailing": (good + "x").encode(),
        "two": (good + good).encode(),
        "single-quotes": good.replace('"', "'").encode(),
        "comment": ("/* */" + good).encode(),
        "NaN": good.replace('"Test"', "NaN").encode(),
        "Infinity": good.replace('"Test"', "Infinity").encode(),
        "big-integer": good.replace('"Test"', str(2**63)).encode(),
        "huge-integer": good.replace('"Test"', "9" * 5_000).encode(),
        "huge-float": good.replace('"Test"', "1e999999").encode(),
        "deep-array": b"[" * 30_000,
        "deep-object": b'{"a":' * 10_000,
        "deep-field": good.replace('"Test"', "[" * 20_000 + "]" * 20_000).encode(),
        "lone-surrogate": good.replace("never", "\\ud800").encode(),
        "swapped-surrogates": good.replace("never", "\\udc00\\ud800").encode(),
        "escaped-NUL": good.replace("never", "\\u0000").encode(),
        "raw-NUL": good.replace("never", "\0").encode(),
        "invalid-UTF-8": good.encode().replace(b"never", b"\xff\xfe"),
        "overlong-UTF-8": good.encode().replace(b"never", b"\xc0\x80"),
        "surrogate-UTF-8": good.encode().replace(b"never", b"\xed\xa0\x80"),
        "latin-1": good.encode().replace(b"never", b"\xe9"),
        "UTF-16": good.encode("utf-16"),
        "BOM": good.encode("utf-8-sig"),
    }


@pytest.mark.parametrize("body", [pytest.param(b, id=name) for name, b in broken_bodies().items()])
def test_a_broken_body_is_422(client: httpx2.Client, running: Running, body: bytes) -> None:
    """Threat 21: NUL, surrogates, big numbers, deep and huge JSON; neither database sees them."""
    before = running.count("registered_devices")
    assert_problem(client.post(PROVISION, content=body, headers=JSON), 422)
    assert running.count("registered_devices") == before


def test_the_error_of_a_serial_names_the_invisible_character(sqlite_client: httpx2.Client) -> None:
    response = sqlite_client.post(PROVISION, json=provision_body("camera\u200b-1"))
    (error,) = assert_problem(response, 422)["errors"]
    assert error["field"] == "device_serial"
    assert error["detail"].endswith("Character 7 is U+200B (ZERO WIDTH SPACE)")


def test_a_field_given_twice_is_422(client: httpx2.Client, running: Running) -> None:
    """Threat 21: parsers disagree on which of two equal names counts (RFC 8259, section 4)."""
    before = running.count("registered_devices")
    body = json.dumps(provision_body(new_serial()))
    twice = body.replace("{", '{"device_serial": "another", ', 1).encode()
    assert_problem(client.post(PROVISION, content=twice, headers=JSON), 422)
    assert running.count("registered_devices") == before


@pytest.mark.parametrize(
    "serial",
    [
        "a",
        "x" * 64,
        "Kamera S\u00fcd \u2116 \u6771\u4eac",
        "SN 100%/&+#?",
        "'; DROP TABLE registered_devices; --",
        pytest.param("\u00fc" * 64, id="64-umlauts"),
        pytest.param("\U0001f4f7" * 64, id="64-cameras"),
    ],
)
def test_every_printable_serial_up_to_64_characters_works(
    client: httpx2.Client, running: Running, serial: str
) -> None:
    """The bound is one of characters, as X.520 means it, not of bytes."""
    held = running.rows("SELECT 1 FROM registered_devices WHERE device_serial = ?", serial)
    response = client.post(PROVISION, json=provision_body(serial))
    assert response.status_code == (409 if held else 200), response.text


# --- what HTTP itself finds fault with


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""]
)
def test_a_body_that_is_not_declared_json_is_415(
    sqlite_client: httpx2.Client, media_type: str
) -> None:
    """A page of another site can send anything else to a loopback address unasked."""
    body = json.dumps(provision_body(new_serial())).encode()
    headers = {"Content-Type": media_type} if media_type else {}
    assert_problem(sqlite_client.post(PROVISION, content=body, headers=headers), 415)


def test_a_media_type_with_parameters_is_json_too(sqlite_client: httpx2.Client) -> None:
    body = json.dumps(provision_body(new_serial())).encode()
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    response = sqlite_client.post(PROVISION, content=body, headers=headers)
    assert response.status_code == 200


def _chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 1_000):
        yield b" " * 1_000


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413(sqlite_client: httpx2.Client, chunked: bool) -> None:
    """Threat 16: bodies are bounded, with and without a Content-Length."""
    content = _chunks(70_000) if chunked else b" " * 70_000
    document = assert_problem(sqlite_client.post(PROVISION, content=content, headers=JSON), 413)
    assert "65536" in document["detail"]


def test_a_chunked_body_within_the_limit_is_taken(sqlite_client: httpx2.Client) -> None:
    body = json.dumps(provision_body(new_serial())).encode()
    parts = iter([body[:10], body[10:]])
    assert sqlite_client.post(PROVISION, content=parts, headers=JSON).status_code == 200


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_another_method_is_405(sqlite_client: httpx2.Client, method: str) -> None:
    response = sqlite_client.request(method, PROVISION)
    assert_problem(response, 405)
    assert response.headers["allow"] == "GET, HEAD, POST"


def test_get_reads_the_device_of_this_name(sqlite_client: httpx2.Client) -> None:
    """Fixed names apply only to the methods that they define."""
    assert assert_problem(sqlite_client.get(PROVISION), 404)["type"].endswith("unknown-device")


@pytest.mark.parametrize("path", ["/nowhere", "/api/v2/devices/provision"])
def test_another_path_is_404(sqlite_client: httpx2.Client, path: str) -> None:
    assert_problem(sqlite_client.get(path), 404)


# --- re-enrolment


def test_a_device_is_re_enrolled_over_http(running: Running, client: httpx2.Client) -> None:
    """An operator allows it; then the ordinary request is answered, and the old tokens fail."""
    serial = new_serial()
    old = Camera.provisioned(client, serial)
    body = {
        "device_serial": serial,
        "device_family": "Test",
        "csr": csr_pem(new_key(), serial),
    }

    def refuse(status: int, slug: str, **changed: Any) -> str:
        problem = assert_problem(client.post(PROVISION, json=body | changed), status)
        assert problem["type"] == f"urn:birthmark:problem:{slug}"
        return str(problem["detail"])

    refuse(409, "device-already-provisioned")
    allowed = sma("devices", "re-enrol", serial, environ=running.environ)
    assert allowed.returncode == 0, allowed.stderr
    bare = client.post(PROVISION, json=provision_body(serial))
    assert assert_problem(bare, 422)["type"].endswith("csr-refused")
    refuse(422, "description-refused", device_family="Phone")
    spelled = {"device_serial": serial.upper(), "csr": csr_pem(new_key(), serial.upper())}
    assert repr(serial) in refuse(409, "re-enrolment-refused", **spelled)
    answer = client.post(PROVISION, json=body, headers={"Idempotency-Key": serial})
    assert answer.status_code == 200, answer.text
    again = client.post(PROVISION, json=body, headers={"Idempotency-Key": serial})
    assert again.content == answer.content
    new = Camera.of(serial, answer.json())
    assert set(new.table_keys) == set(old.table_keys)
    for camera, verdict in ((old, "FAIL"), (new, "PASS")):
        found = client.post(VALIDATE, json=wire(camera.token())).json()
        assert found["validation_result"] == verdict
    page = client.get("/dashboard/device", params={"serial": serial}).text
    assert "Earlier certificates" in page
    assert "superseded" in page
