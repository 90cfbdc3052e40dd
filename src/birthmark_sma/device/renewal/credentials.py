"""The part of a camera's identity that a renewal replaces, as one value.

A capture takes the value once, so a bundle never mixes an old certificate with a new key, or old
table keys with new ones. `camera` keeps the current one.
"""

import secrets
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark_sma.device.renewal.messages import certificate_of
from birthmark_sma.device.state import Identity, load_private_key
from birthmark_sma.protocol import camera_token, key_derivation


@dataclass(frozen=True, slots=True)
class Credentials:
    """The certificate and the keys of a capture."""

    certificate: x509.Certificate
    chain: tuple[bytes, ...]
    """The device certificate and the intermediate certificate, in DER."""
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    tables: dict[int, bytes] = field(repr=False)
    """The pseudorandom key of each table: it halves the cost of deriving a key."""
    nuc_hash: bytes = field(repr=False)
    keys_per_table: int

    @classmethod
    def of(cls, identity: Identity) -> "Credentials":
        """Return the credentials of an identity."""
        certificate = certificate_of(identity)
        intermediate = x509.load_pem_x509_certificate(identity.certificate_chain[0].encode())
        return cls(
            certificate=certificate,
            chain=tuple(
                each.public_bytes(serialization.Encoding.DER)
                for each in (certificate, intermediate)
            ),
            key=load_private_key(identity.private_key),
            tables={
                int(table): key_derivation.extract(bytes.fromhex(master_key))
                for table, master_key in identity.table_keys.items()
            },
            nuc_hash=bytes.fromhex(identity.nuc_hash),
            keys_per_table=identity.keys_per_table,
        )

    def make_token(self, nonce: bytes) -> camera_token.CameraToken:
        """Return a new camera token under a random table and key. `nonce` must be a new one."""
        table_id = secrets.choice(list(self.tables))
        key_index = secrets.randbelow(self.keys_per_table)
        return camera_token.seal(
            self.nuc_hash,
            key=key_derivation.expand(self.tables[table_id], key_index),
            table_id=table_id,
            key_index=key_index,
            nonce=nonce,
        )
