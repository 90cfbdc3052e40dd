"""Measure the bare cryptography in a loop on one core: the upper limit of a server's throughput.

The parts `validation` and `provisioning` call it. It does no I/O.
"""

import json
import time
from collections.abc import Callable, Sequence

from birthmark_sma.authority.authority import Authority
from birthmark_sma.pki.keys.ca_keys import Signer
from birthmark_sma.protocol.camera_token import CameraToken, open_camera_token

_TBS_BYTES = 900  # about the size of a device certificate's signed part


def openings_per_second(authority: Authority, bodies: Sequence[bytes], seconds: float) -> float:
    """Derive the key of each camera token and open it, for `seconds`. Return tokens per second."""
    tokens = [_camera_token(body) for body in bodies]
    tables = authority.table_cache.keys.current

    def open_all() -> int:
        for token in tokens:
            open_camera_token(token, tables[token.table_id].derive(token.key_index))
        return len(tokens)

    return _per_second(open_all, seconds)


def signatures_per_second(signer: Signer, seconds: float) -> float:
    """Sign data as long as a device certificate, for `seconds`. Return signatures per second."""
    data = bytes(_TBS_BYTES)

    def sign() -> int:
        signer.sign(data)
        return 1

    return _per_second(sign, seconds)


def _per_second(work: Callable[[], int], seconds: float) -> float:
    """Call `work` for `seconds`. Return the sum of its results per second."""
    done = 0
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        done += work()
    return done / elapsed


def _camera_token(body: bytes) -> CameraToken:
    fields = json.loads(body)
    return CameraToken(
        encrypted_nuc_hash=bytes.fromhex(fields["encrypted_nuc_hash"]),
        table_id=fields["table_id"],
        key_index=fields["key_index"],
        nonce=bytes.fromhex(fields["nonce"]),
    )
