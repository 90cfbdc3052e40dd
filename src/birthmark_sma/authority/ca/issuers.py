"""The issuers of a process: the intermediates with their keys, and the other CA certificates.

Provisioning, the CRLs, the endpoints of `/pki` and the dashboard read them here. Other processes
change the register of CA certificates (`succession`); `poll` notices it by a generation. This
module must never load the key of a root, and must never write to the database.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection

from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.store import (
    FIRST_INTERMEDIATE,
    FIRST_ROOT,
    CaRole,
    CaState,
    StoredCa,
)
from birthmark_sma.errors import NotInitialisedError
from birthmark_sma.pki.certificates import Publication
from birthmark_sma.pki.keys.ca_keys import Signer

# CRL_PATH, INTERMEDIATE_PATH and OCSP_PATH are part of device certificates: they must never change.
CRL_PATH: Final = "/pki/intermediate.crl"
INTERMEDIATE_PATH: Final = "/pki/intermediate.crt"
ROOT_CRL_PATH: Final = "/pki/root.crl"
ROOT_PATH: Final = "/pki/root.crt"
OCSP_PATH: Final = "/pki/ocsp/"
"""Clients append a request. libc2pa drops the last segment of a URL without the final slash."""
CA_FILES: Final = "/pki/ca"
"""The directory of the files of all CAs: `NAME.crt`, `NAME.crl` and `NAME.chain.pem`."""
ROOTS_PATH: Final = "/pki/roots.pem"
ROOTS_SIGNATURE_PATH: Final = "/pki/roots.pem.p7s"

_FIRST = (FIRST_ROOT, FIRST_INTERMEDIATE)


def crl_path(name: str) -> str:
    """Return the path of a CA's CRL. The first CAs have the paths of version 0.1."""
    return f"/pki/{name}.crl" if name in _FIRST else f"{CA_FILES}/{name}.crl"


def certificate_path(name: str) -> str:
    """Return the path of a CA's certificate in DER."""
    return f"/pki/{name}.crt" if name in _FIRST else f"{CA_FILES}/{name}.crt"


@dataclass(frozen=True, slots=True)
class Issuer:
    """An intermediate CA: its certificate and private key.

    `name` is its name in `ca_certificates`. `chain` has the PEM certificates from the intermediate
    to its root. `publication` has the URLs of its CRL and certificate, or None if the authority has
    no public URL.
    """

    name: str
    certificate: x509.Certificate
    signer: Signer
    chain: tuple[str, ...]
    publication: Publication | None


@dataclass(frozen=True, slots=True)
class OpenCa:
    """A CA certificate of the register, loaded, with its row."""

    stored: StoredCa = field(repr=False)
    certificate: x509.Certificate

    @property
    def name(self) -> str:
        """Return the name in `ca_certificates`."""
        return self.stored.name

    def state_at(self, now: datetime) -> CaState:
        """Return the state: a retiring CA is retired once its certificate has ended."""
        ended = self.certificate.not_valid_after_utc < now
        return (
            CaState.RETIRED
            if self.stored.state is CaState.RETIRING and ended
            else (self.stored.state)
        )


@dataclass(frozen=True, slots=True)
class _Register:
    """All CAs as of one generation."""

    generation: int
    cas: dict[str, OpenCa]
    issuers: dict[str, Issuer] = field(repr=False)
    active: Issuer = field(repr=False)
    key_fingerprints: frozenset[bytes] = field(repr=False)
    roots_signature: bytes | None


class OpenIssuers:
    """The register of CA certificates, with the opened keys of the intermediates.

    Safe to use from any thread: each change replaces the register as a whole.
    """

    def __init__(
        self,
        connection: Connection,
        open_key: Callable[[Connection, StoredCa], Signer],
        publication: Callable[[str], Publication | None],
        now: Callable[[], datetime],
    ) -> None:
        """Read the register. `open_key` opens the key of an intermediate, once for each.

        `publication` returns the URLs of a CA, by its name. `now` returns the database's time.

        Raises NotInitialisedError, and the errors of `open_key`.
        """
        self._open_key = open_key
        self._publication = publication
        self._now = now
        self._signers: dict[str, Signer] = {}
        self._register = self._read(connection, ca_store.read_generation(connection))

    def poll(self, connection: Connection) -> None:
        """Read the register again if it has changed. Raises the errors of `open_key`."""
        generation = ca_store.read_generation(connection)
        if generation != self._register.generation:
            self._register = self._read(connection, generation)

    @property
    def active(self) -> Issuer:
        """Return the intermediate that signs new device certificates."""
        return self._register.active

    @property
    def root(self) -> x509.Certificate:
        """Return the root above the active intermediate."""
        return self.root_of(self._register.active.name).certificate

    @property
    def cas(self) -> tuple[OpenCa, ...]:
        """Return all CA certificates, the oldest first."""
        return tuple(self._register.cas.values())

    @property
    def key_fingerprints(self) -> frozenset[bytes]:
        """Return the SHA-256 of the DER SubjectPublicKeyInfo of every CA."""
        return self._register.key_fingerprints

    @property
    def roots_signature(self) -> bytes | None:
        """Return the signature (CMS, DER) over the trusted roots, or None if there is none."""
        return self._register.roots_signature

    def signing(self) -> tuple[Issuer, ...]:
        """Return the intermediates that sign CRLs and OCSP responses: active and retiring ones."""
        register, now = self._register, self._now()
        return tuple(
            issuer
            for name, issuer in register.issuers.items()
            if register.cas[name].state_at(now) in {CaState.ACTIVE, CaState.RETIRING}
        )

    def find(self, name: str) -> OpenCa | None:
        """Return the CA of this name, or None."""
        return self._register.cas.get(name)

    def issuer(self, name: str) -> Issuer | None:
        """Return the intermediate of this name with its key, or None."""
        return self._register.issuers.get(name)

    def root_of(self, name: str) -> OpenCa:
        """Return the root above a CA that exists."""
        cas = self._register.cas
        return cas[cas[name].stored.issuer]

    def chain(self, name: str) -> tuple[str, ...]:
        """Return the certificates from the CA `name` to its root, with the cross-certificates.

        They are PEM, in this order: the CA itself, the certificates of roots under other roots, the
        root. A verifier that builds paths and trusts any one of the roots finds a path among them,
        also after several new roots.
        """
        cas = self._register.cas
        root = self.root_of(name)
        reached = [root]  # grows while it is read
        crosses = []
        for certified in reached:
            for cross in self._crosses_of(certified):
                issuer = cas[cross.stored.issuer]
                if issuer not in reached:
                    reached.append(issuer)
                    crosses.append(cross.stored.certificate)
        own = [] if name == root.name else [cas[name].stored.certificate]
        return (*own, *crosses, root.stored.certificate)

    def _crosses_of(self, root: OpenCa) -> list[OpenCa]:
        """Return the certificates of a root under other roots."""
        return [
            each
            for each in self.cas
            if each.stored.role is CaRole.CROSS
            and each.certificate.subject == root.certificate.subject
            and each.certificate.public_key() == root.certificate.public_key()
        ]

    def _read(self, connection: Connection, generation: int) -> _Register:
        """Read all CAs. The generation was read before them, so a later change is read again."""
        cas = {each.name: OpenCa(each, each.load()) for each in ca_store.list_cas(connection)}
        issuers = {
            name: self._issuer(connection, ca, cas)
            for name, ca in cas.items()
            if ca.stored.role is CaRole.INTERMEDIATE
        }
        active = next(
            (each for name, each in issuers.items() if cas[name].stored.state is CaState.ACTIVE),
            None,
        )
        if active is None:
            raise NotInitialisedError
        fingerprints = frozenset(_key_fingerprint(each.certificate) for each in cas.values())
        signature = ca_store.find_roots_signature(connection)
        return _Register(generation, cas, issuers, active, fingerprints, signature)

    def _issuer(self, connection: Connection, ca: OpenCa, cas: dict[str, OpenCa]) -> Issuer:
        if ca.stored.issuer not in cas:
            raise NotInitialisedError
        if ca.name not in self._signers:
            self._signers[ca.name] = self._open_key(connection, ca.stored)
        return Issuer(
            name=ca.name,
            certificate=ca.certificate,
            signer=self._signers[ca.name],
            chain=(ca.stored.certificate, cas[ca.stored.issuer].stored.certificate),
            publication=self._publication(ca.name),
        )


def trusted_roots(cas: Iterable[StoredCa]) -> bytes:
    """Return the roots that verifiers should trust, as PEM, the oldest first.

    The signature of `/pki/roots.pem.p7s` covers exactly these bytes.
    """
    return "".join(
        each.certificate
        for each in cas
        if each.role is CaRole.ROOT and each.state in {CaState.ACTIVE, CaState.RETIRING}
    ).encode()


def _key_fingerprint(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).digest()
