"""Make the camera's identity of the authority's response to a provisioning request. PURE.

`provisioning` calls `make_identity`. `certification` checks the response.
"""

from collections.abc import Collection, Iterable

from birthmark_sma.device.certification import (
    foreign_answer,
    hex_of,
    read_certified,
    text,
)
from birthmark_sma.device.state import Identity, Pending
from birthmark_sma.protocol.camera_token import NUC_HASH_BYTES
from birthmark_sma.protocol.key_table import PROTOTYPE_SIZES, STANDARD_SIZES


def make_identity(
    pending: Pending,
    answer: bytes,
    *,
    authority_url: str | None = None,
    root_fingerprints: Collection[str] = (),
    keys_per_table: int | None = None,
) -> Identity:
    """Check a response, and return the camera's identity.

    `root_fingerprints` are those of the pinned roots, in lower-case hex; empty to accept any root.

    Raises UnusableAnswerError with the reason.
    """
    certified = read_certified(
        answer,
        device_serial=pending.device_serial,
        private_key=pending.private_key,
        key_encryption_private_key=pending.key_encryption_private_key,
        is_trusted=lambda each: not root_fingerprints or each in root_fingerprints,
        more_secrets=frozenset({"nuc_hash"}),
    )
    try:
        nuc_hash = hex_of(certified.secret["nuc_hash"], NUC_HASH_BYTES)
        provisioning_id = text(certified.fields["provisioning_id"])
    except (KeyError, TypeError, ValueError):
        raise foreign_answer() from None
    return Identity(
        device_serial=pending.device_serial,
        provisioning_id=provisioning_id,
        device_certificate=certified.device_certificate,
        certificate_chain=certified.certificate_chain,
        private_key=pending.private_key,
        nuc_hash=nuc_hash,
        table_keys=certified.table_keys,
        nonce_secret=pending.nonce_secret,
        keys_per_table=keys_per_table or keys_in(certified.table_keys),
        authority_url=authority_url,
        root_fingerprints=tuple(root_fingerprints),
    )


def keys_in(tables: Iterable[str]) -> int:
    """Return the number of keys per table, as far as the table ids reveal it.

    A prototype has only the tables 0 to 9. A camera of a full authority whose three tables are all
    among them (one in twenty million) uses only the first 100 keys of each. Its tokens pass as
    well.
    """
    is_prototype = all(PROTOTYPE_SIZES.has_table(int(table)) for table in tables)
    return (PROTOTYPE_SIZES if is_prototype else STANDARD_SIZES).keys_per_table
