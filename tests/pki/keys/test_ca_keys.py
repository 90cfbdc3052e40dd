"""CA keys: their kinds, their hashes, and that they leave the process only encrypted."""

import re
import subprocess

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from birthmark_sma.errors import BirthmarkError, WrongSecretError
from birthmark_sma.pki.keys.ca_keys import CaKeyType, Signer, generate, load_encrypted
from birthmark_sma.pki.keys.encrypted_key import is_slow_to_guess
from tests.support.pki.chains import ca_signers, device_key, sound_chain

PASSPHRASE = "correct hörse battery".encode()
KEY = "PRIVATE KEY"
"""Apart from its armour, which the scan for secrets would take for a key."""


@pytest.mark.parametrize(
    ("key_type", "kind", "bits", "hash_algorithm"),
    [
        (CaKeyType.RSA_4096, rsa.RSAPrivateKey, 4096, hashes.SHA256),
        (CaKeyType.EC_P384, ec.EllipticCurvePrivateKey, 384, hashes.SHA384),
        (CaKeyType.EC_P256, ec.EllipticCurvePrivateKey, 256, hashes.SHA256),
    ],
)
def test_the_kinds_of_key(
    key_type: CaKeyType, kind: type, bits: int, hash_algorithm: type[hashes.HashAlgorithm]
) -> None:
    """Each type has its size and the hash of its strength."""
    signer, another = ca_signers(key_type)
    assert isinstance(signer.key, kind)
    assert signer.key.key_size == bits
    assert isinstance(signer.hash_algorithm, hash_algorithm)
    assert signer.public_key == signer.key.public_key()
    assert signer.public_key != another.public_key


def test_rsa_keys_have_the_usual_exponent() -> None:
    """An RSA key of the authority obeys the policy that it holds devices to."""
    public_key = ca_signers(CaKeyType.RSA_4096)[0].public_key
    assert isinstance(public_key, rsa.RSAPublicKey)
    assert public_key.public_numbers().e == 65537


@pytest.mark.parametrize("key_type", CaKeyType)
def test_an_encrypted_key_opens_with_its_passphrase(key_type: CaKeyType) -> None:
    """PKCS#8 goes out and comes back, and is the same key."""
    signer = ca_signers(key_type)[0]
    pem = signer.encrypted_pem(PASSPHRASE)
    assert pem.startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert load_encrypted(pem, PASSPHRASE).public_key == signer.public_key


def openssl_reads(pem: str, passphrase: str) -> bool:
    """Ask `openssl pkey` whether the passphrase opens the key."""
    ran = subprocess.run(
        ["openssl", "pkey", "-noout", "-passin", "stdin"],
        input=f"{passphrase}\n{pem}",
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ran.returncode == 0


def test_openssl_reads_the_encrypted_key() -> None:
    """Operators can open an exported key with OpenSSL, and only with the passphrase."""
    pem = ca_signers(CaKeyType.EC_P256)[0].encrypted_pem(b"the passphrase")
    assert openssl_reads(pem, "the passphrase")
    assert not openssl_reads(pem, "another passphrase")


@pytest.mark.parametrize("passphrase", [b"", b"wrong", PASSPHRASE + b" ", PASSPHRASE[:-1]])
def test_another_passphrase_is_refused(passphrase: bytes) -> None:
    """The error names the setting, and holds neither of the passphrases."""
    pem = ca_signers(CaKeyType.EC_P256)[0].encrypted_pem(PASSPHRASE)
    with pytest.raises(WrongSecretError, match="CA_PASSWORD") as caught:
        load_encrypted(pem, passphrase)
    assert caught.value.__cause__ is None
    assert PASSPHRASE.decode() not in str(caught.value)


def test_an_empty_passphrase_never_means_an_unencrypted_key() -> None:
    """Threat 5: there is no way to get the key out in the clear."""
    with pytest.raises((ValueError, BirthmarkError)):
        ca_signers(CaKeyType.EC_P256)[0].encrypted_pem(b"")


def test_a_key_in_the_clear_is_refused() -> None:
    """Threat 5: a key that lies about unencrypted is not quietly taken into service."""
    pem = (
        ca_signers(CaKeyType.EC_P256)[0]
        .key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
    )
    with pytest.raises(WrongSecretError):
        load_encrypted(pem, PASSPHRASE)
    with pytest.raises(WrongSecretError):
        load_encrypted(pem, b"")


@pytest.mark.parametrize("pem", ["", "garbage", "\0", "\ud800", "-----BEGIN PRIVATE KEY-----"])
def test_garbage_is_refused(pem: str) -> None:
    """What is no key at all is refused in the same way."""
    with pytest.raises(WrongSecretError):
        load_encrypted(pem, PASSPHRASE)


def test_a_certificate_is_refused() -> None:
    """A certificate in place of its key is refused in the same way."""
    pem = sound_chain().root.public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(WrongSecretError):
        load_encrypted(pem, PASSPHRASE)


def test_a_key_of_a_kind_that_is_not_made_here_is_refused() -> None:
    """An Ed25519 key cannot sign as this authority does."""
    pem = (
        ed25519.Ed25519PrivateKey.generate()
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(PASSPHRASE),
        )
        .decode()
    )
    with pytest.raises(WrongSecretError, match="neither RSA nor EC"):
        load_encrypted(pem, PASSPHRASE)


@pytest.mark.parametrize("key_type", CaKeyType)
def test_a_signer_does_not_show_its_key(key_type: CaKeyType) -> None:
    """Threat 28: neither repr nor str of a signer says anything of the key."""
    signer = ca_signers(key_type)[0]
    assert repr(signer) == str(signer) == "Signer()"


def test_every_call_makes_another_key() -> None:
    """Two authorities never share a key."""
    assert generate(CaKeyType.EC_P256).public_key != generate(CaKeyType.EC_P256).public_key


def test_two_encryptions_of_one_key_differ() -> None:
    """Salt and initialisation vector are fresh each time."""
    signer = Signer(ec.generate_private_key(ec.SECP256R1()))
    assert signer.encrypted_pem(PASSPHRASE) != signer.encrypted_pem(PASSPHRASE)
    assert signer.public_key != device_key("ec-p256").public_key()


@pytest.mark.usefixtures("full_derivation_cost")
@pytest.mark.parametrize("key_type", CaKeyType)
def test_a_guess_at_an_encrypted_key_is_slow(key_type: CaKeyType) -> None:
    """Threat 43: no file undercuts the key derivation of everything else, as OpenSSL sees it."""
    pem = ca_signers(key_type)[0].encrypted_pem(PASSPHRASE)
    parsed = subprocess.run(
        ["openssl", "asn1parse"], input=pem, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert ":PBKDF2" in parsed
    assert ":hmacWithSHA256" in parsed
    assert ":aes-256-cbc" in parsed
    [rounds] = re.findall(r"INTEGER +:([0-9A-F]+)", parsed)
    assert int(rounds, 16) >= 600_000
    assert is_slow_to_guess(pem)
    assert openssl_reads(pem, PASSPHRASE.decode())


@pytest.mark.usefixtures("full_derivation_cost")
@pytest.mark.parametrize(
    ("options", "slow"),
    [
        ([], False),
        (["-iter", "599999"], False),
        (["-iter", "600000"], True),
        (["-iter", "600000", "-v2prf", "hmacWithSHA512"], True),
        (["-v1", "PBE-SHA1-3DES"], False),
        (["-scrypt"], True),
        (["-scrypt", "-scrypt_N", "1024"], False),
    ],
)
def test_keys_that_others_encrypted_are_judged_by_their_derivation(
    options: list[str], *, slow: bool
) -> None:
    """Operators may encrypt the root's key anew by themselves."""
    plain = ca_signers(CaKeyType.EC_P256)[0].private_der()
    pem = subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-inform", "DER", "-passout", "pass:a test", *options],
        input=plain,
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout.decode()
    assert is_slow_to_guess(pem) is slow
    assert load_encrypted(pem, b"a test")


@pytest.mark.parametrize("pem", ["", "garbage", f"-----BEGIN {KEY}-----", "\ud800"])
def test_what_is_no_encrypted_key_is_not_slow_to_guess(pem: str) -> None:
    """What cannot be read is reported rather than believed."""
    assert not is_slow_to_guess(pem)
    for content in ("AAAA", "A"):
        armour = f"-----BEGIN ENCRYPTED {KEY}-----\n{content}\n-----END ENCRYPTED {KEY}-----\n"
        assert not is_slow_to_guess(armour)
