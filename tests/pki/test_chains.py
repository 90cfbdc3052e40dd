"""Whole certification paths before judges from outside: the sound pass, the bad do not."""

from functools import cache

import pytest

from birthmark_sma.pki.keys.ca_keys import CaKeyType
from tests.support.pki.certificate_verifiers import judges, lint_certificate, lint_pair
from tests.support.pki.chains import (
    BAD_CHAINS,
    DEVICE_KEY_KINDS,
    DEVICE_SERIALS,
    PUBLICATIONS,
    Chain,
    ca,
    sound_chain,
    sound_chains,
)

# What `openssl verify` answers: X509_V_ERR_* of its x509_vfy.h.
OPENSSL_ERRORS = {
    "v1_intermediate": 79,  # invalid CA certificate
    "foreign_root": 20,  # unable to get local issuer certificate
    "altered_signature": 7,  # certificate signature failure
    "altered_serial": 7,
    "expired_leaf": 10,  # certificate has expired
    "leaf_of_tomorrow": 9,  # certificate is not yet valid
    "expired_intermediate": 10,
    "ca_below_path_length_0": 25,  # path length constraint exceeded
    "device_as_ca": 79,
    "server_certificate": 26,  # unsuitable certificate purpose
}


def test_the_judges() -> None:
    """Four are always asked; Java and GnuTLS where they are installed."""
    assert {"openssl", "pyhanko", "pyca", "ourselves"} <= set(judges())


@pytest.mark.parametrize("key_type", CaKeyType)
@pytest.mark.parametrize("judge", judges())
def test_sound_chains_pass(judge: str, key_type: CaKeyType) -> None:
    """Threats 1 and 2: every kind of key, serial and publication passes before every judge."""
    chains = sound_chains(key_type)
    assert len(chains) == len(DEVICE_KEY_KINDS) * len(DEVICE_SERIALS) * len(PUBLICATIONS)
    verdicts = judges()[judge](chains)
    complaints = {
        chain.name: complaint
        for chain, complaint in zip(chains, verdicts, strict=True)
        if complaint
    }
    assert complaints == {}


@pytest.mark.parametrize("character", ["a", "é", "東"])
@pytest.mark.parametrize("judge", judges())
def test_the_longest_serials_pass(judge: str, character: str) -> None:
    """Threat 2: 64 characters of any script are a serial, whatever their length in UTF-8."""
    assert judges()[judge]([sound_chain(character * 64)]) == [None]


@pytest.mark.parametrize("key_type", CaKeyType)
def test_pkilint_finds_nothing(key_type: CaKeyType) -> None:
    """Threat 2: no finding at WARNING or above, in each certificate and between the pairs."""
    authority = ca(key_type)
    assert lint_certificate(authority.root) == []
    assert lint_certificate(authority.intermediate) == []
    assert lint_pair(authority.root, authority.intermediate) == []
    for chain in sound_chains(key_type):
        assert lint_certificate(chain.leaf) == [], chain.name
        assert lint_pair(authority.intermediate, chain.leaf) == [], chain.name


@cache
def bad_chains() -> dict[str, Chain]:
    """Make every bad chain, by the name of the function that makes it."""
    return {make.__name__: make() for make in BAD_CHAINS}


@cache
def verdicts_on_bad_chains(judge: str) -> dict[str, str | None]:
    """Ask a judge about all bad chains at once, and keep its answers for the tests below."""
    verdicts = judges()[judge](list(bad_chains().values()))
    return dict(zip(bad_chains(), verdicts, strict=True))


@pytest.mark.parametrize("name", [make.__name__ for make in BAD_CHAINS])
@pytest.mark.parametrize("judge", judges())
def test_bad_chains_are_refused(judge: str, name: str) -> None:
    """Threats 1, 3 and 4: every judge, `verify_path` among them, refuses every bad chain."""
    assert verdicts_on_bad_chains(judge)[name] is not None


@pytest.mark.parametrize("name", [make.__name__ for make in BAD_CHAINS])
def test_bad_chains_are_refused_for_what_is_bad(name: str) -> None:
    """Threat 1: OpenSSL names the fault that each chain was made for, error 79 for version 1."""
    complaint = verdicts_on_bad_chains("openssl")[name]
    assert complaint is not None
    assert f"error {OPENSSL_ERRORS[name]} at" in complaint


def test_the_v1_intermediate_is_what_it_says() -> None:
    """Threat 1: the bad chain has indeed the fault that the plain way of making it leads to."""
    (intermediate,) = bad_chains()["v1_intermediate"].intermediates
    assert intermediate.version.name == "v1"
    assert len(intermediate.extensions) == 0
    assert intermediate.public_key() == ca().signer.public_key
