"""Make the keys and certificates of new CAs: intermediates, roots, cross-certificates.

`succession` calls it and stores the result. Nothing here reads or writes the database, so a dry run
makes the same certificates. A server must never call it: it has no key of a root.
"""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509

from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.ceremony import random_serial_number, to_pem
from birthmark_sma.authority.ca.intermediate_key import seal_ca_key
from birthmark_sma.authority.ca.store import CaRole, StoredCa
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKey
from birthmark_sma.pki import certificates, names, profiles
from birthmark_sma.pki.keys import ca_keys
from birthmark_sma.pki.keys.ca_keys import CaKeyType, Signer


def generate_like(ca: StoredCa, key_type: CaKeyType | None) -> Signer:
    """Return a new key of this type, or else of the type that the key of a CA has."""
    return ca_keys.generate(key_type or ca_keys.key_type_of(ca.load().public_key()))


def new_intermediate(
    cas: Sequence[StoredCa],
    root: StoredCa,
    root_signer: Signer,
    key_type: CaKeyType | None,
    *,
    kek: KeyEncryptionKey,
    now: datetime,
) -> StoredCa:
    """Return a new intermediate of `root`, with its key wrapped under `kek`.

    Raises IssuerExpiredError if the root has expired.
    """
    signer = generate_like(ca_store.pick_active(cas, CaRole.INTERMEDIATE), key_type)
    number = _next_number(cas, CaRole.INTERMEDIATE)
    issuer = root.load()
    prepared = certificates.prepare_intermediate(
        signer.public_key,
        issuer=issuer,
        now=now,
        serial_number=random_serial_number(),
        profile=profiles.numbered(_profile(issuer, CaRole.INTERMEDIATE), number),
    )
    return StoredCa(
        f"{CaRole.INTERMEDIATE.value}-{number}",
        to_pem(certificates.sign(prepared, root_signer, issuer=issuer)),
        CaRole.INTERMEDIATE,
        sealed_private_key=seal_ca_key(signer, kek),
        kek_id=kek.kek_id,
        issuer=root.name,
    )


def new_root(cas: Sequence[StoredCa], signer: Signer, now: datetime) -> StoredCa:
    """Return a new root with the key `signer`."""
    number = _next_number(cas, CaRole.ROOT)
    old = ca_store.pick_active(cas, CaRole.ROOT).load()
    prepared = certificates.prepare_root(
        signer.public_key,
        now=now,
        serial_number=random_serial_number(),
        profile=profiles.numbered(_profile(old, CaRole.ROOT), number),
    )
    name = f"{CaRole.ROOT.value}-{number}"
    return StoredCa(name, to_pem(certificates.sign(prepared, signer)), CaRole.ROOT, issuer=name)


def new_crosses(
    cas: Sequence[StoredCa],
    old: tuple[StoredCa, Signer],
    new: tuple[StoredCa, Signer],
    now: datetime,
) -> tuple[StoredCa, StoredCa]:
    """Return the certificates of the new root under the old one, and of the old under the new."""
    number = _next_number(cas, CaRole.CROSS)
    return _cross(number, new[0], *old, now), _cross(number + 1, old[0], *new, now)


def _cross(
    number: int, certified: StoredCa, issuer: StoredCa, signer: Signer, now: datetime
) -> StoredCa:
    issuing = issuer.load()
    prepared = certificates.prepare_cross(
        certified.load(), issuer=issuing, now=now, serial_number=random_serial_number()
    )
    pem = to_pem(certificates.sign(prepared, signer, issuer=issuing))
    return StoredCa(f"{CaRole.CROSS.value}-{number}", pem, CaRole.CROSS, issuer=issuer.name)


def _next_number(cas: Sequence[StoredCa], role: CaRole) -> int:
    return 1 + sum(each.role is role for each in cas)


def _profile(root: x509.Certificate, role: CaRole) -> profiles.Profile:
    if names.is_of_sandbox(root.subject):
        return profiles.SANDBOX_ROOT if role is CaRole.ROOT else profiles.SANDBOX_INTERMEDIATE
    return profiles.ROOT if role is CaRole.ROOT else profiles.INTERMEDIATE
