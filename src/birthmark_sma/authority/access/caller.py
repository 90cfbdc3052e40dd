"""The caller of a request: its address and the access key that it presented.

The authentication middleware creates callers. Rate limits count them by
`ledger_partition`, and the replay ledger stores `Caller.identity`.
"""

import socket
from functools import lru_cache
from typing import NamedTuple

from birthmark_sma.authority.access.store import AccessKey


class Caller(NamedTuple):
    """The caller of a request.

    `address` is None for the command line. `key` is None if the authority has open access.
    """

    address: str | None
    key: AccessKey | None = None

    @property
    def key_id(self) -> str | None:
        """The id of the presented access key, or None."""
        return None if self.key is None else self.key.key_id

    @property
    def identity(self) -> str:
        """The name of the caller: its key id, or else its address. At most 49 characters."""
        if self.key is not None:
            return f"key:{self.key.key_id}"
        return "local" if self.address is None else f"ip:{self.address}"


def ledger_partition(caller: Caller) -> str:
    """Return the name under which rate limits count a caller: its key, or else its address.

    An IPv6 address counts as its /64 network, because a caller usually has all 2^64 addresses of
    it. An IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2) counts as the IPv4 address.
    """
    if caller.key is None and caller.address is not None and ":" in caller.address:
        return _network(caller.address)
    return caller.identity


@lru_cache(4_096)
def _network(address: str) -> str:
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return f"ip:{address}"
    if packed.startswith(b"\0" * 10 + b"\xff\xff"):
        return f"ip:{socket.inet_ntop(socket.AF_INET, packed[12:])}"
    return f"ip:{socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8))}/64"
