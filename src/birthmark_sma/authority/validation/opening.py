"""Open camera tokens under the keys of their tables.

Called by `validation.service` in the writer thread. While the overlap of a rotated table is open,
both of its keys are tried for every token, so the number of tries depends only on the table id,
which is public: neither an answer nor its time tells which key opened a token, or if any did.
"""

from collections.abc import Sequence
from typing import NamedTuple

from birthmark_sma.authority.kek.wrapping import NucHashIndex
from birthmark_sma.authority.key_tables.cache import TableKeys
from birthmark_sma.authority.server_metrics import TABLE_RANGES, ServerMetrics, tables_a_range
from birthmark_sma.authority.validation.records import Attempt
from birthmark_sma.errors import UnopenedCameraTokenError
from birthmark_sma.protocol.camera_token import CameraToken, open_camera_token
from birthmark_sma.protocol.key_derivation import NORMATIVE, Derivation
from birthmark_sma.protocol.key_table import PUBLISHED_SIZES, TableSizes
from birthmark_sma.protocol.verdict import unknown_address


class Opening(NamedTuple):
    """The result of opening a submitted token."""

    submitted: Attempt
    attempt: Attempt
    """The attempt with the one token to judge: of several alternatives, the one that opened."""
    nuc_hash: bytes | None
    """The HMAC of the NUC hash inside, or None if no key opens a token, or more than one."""
    epochs: Sequence[int]
    """The epochs of the keys that opened a token."""
    keys: TableKeys
    """The keys that were tried."""


class TokenOpener:
    """Opens tokens, and counts them by range of key tables. Owned by one writer thread."""

    def __init__(
        self, sizes: TableSizes, nuc_hash_index: NucHashIndex, figures: ServerMetrics
    ) -> None:
        self._sizes = sizes
        # Published clients draw one of 1,000 key indices, whatever this authority's sizes are.
        self._published_sizes = TableSizes(sizes.tables, PUBLISHED_SIZES.keys_per_table)
        self._nuc_hash_index = nuc_hash_index
        self._figures = figures
        # Shared memory: the slots of the ranges are adjacent, and this is the first one.
        self._ranges = TABLE_RANGES.place["0",]
        self._tables_a_range = tables_a_range(sizes.tables)

    def sizes(self, derivation: Derivation) -> TableSizes:
        """Return the sizes of the tables under a key derivation."""
        return self._sizes if derivation is NORMATIVE else self._published_sizes

    def open(self, submitted: Attempt, keys: TableKeys) -> Opening:
        """Try all keys of all alternatives of a token."""
        derivation = submitted.derivation
        opened = self._try(submitted.camera_token, derivation, keys)
        if not submitted.alternatives:
            nuc_hash = opened[0][1] if len(opened) == 1 else None
            return Opening(submitted, submitted, nuc_hash, [each[0] for each in opened], keys)
        # All are tried, so that the time does not tell which token opened, or if any did. GCM does
        # not commit to a key: a token that opens under two keys was forged to do so, and fails.
        attempt = submitted
        for camera_token in dict.fromkeys(submitted.alternatives):
            if camera_token != submitted.camera_token:
                found = self._try(camera_token, derivation, keys)
                if found:
                    attempt = submitted._replace(camera_token=camera_token)
                opened += found
        epochs = [epoch for epoch, _ in opened]
        if len(opened) != 1:
            return Opening(submitted, submitted, None, epochs, keys)
        return Opening(submitted, attempt, opened[0][1], epochs, keys)

    def _try(
        self, camera_token: CameraToken, derivation: Derivation, keys: TableKeys
    ) -> list[tuple[int, bytes]]:
        """Return the epoch of each key that opens the token, with the HMAC of the NUC hash."""
        table_id, key_index = camera_token.table_id, camera_token.key_index
        if unknown_address(self.sizes(derivation), table_id, key_index) is not None:
            return []
        # No lock: only the writer thread adds to these slots.
        self._figures.own_counters[self._ranges + table_id // self._tables_a_range] += 1
        opened = []
        for table_key in keys.live_keys(table_id):
            try:
                nuc_hash = open_camera_token(camera_token, table_key.derive(key_index, derivation))
            except UnopenedCameraTokenError:
                continue
            opened.append((table_key.epoch, self._nuc_hash_index.of(nuc_hash)))
        return opened
