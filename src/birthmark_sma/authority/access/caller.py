"""Who calls: an address, and the access key that was shown."""

import socket
from functools import lru_cache
from typing import NamedTuple

from birthmark_sma.authority.access.store import AccessKey


class Caller(NamedTuple):
    """Whoever asks. No address means the command line; no key, that access is open."""

    address: str | None
    key: AccessKey | None = None

    @property
    def key_id(self) -> str | None:
        """The id of the key that was shown, if one was."""
        return None if self.key is None else self.key.key_id

    @property
    def identity(self) -> str:
        """What tells one caller from another: its key, else its address. At most 49 characters."""
        if self.key is not None:
            return f"key:{self.key.key_id}"
        return "local" if self.address is None else f"ip:{self.address}"


def ledger_partition(caller: Caller) -> str:
    """Return whose windows count: the key's, or else the address's.

    Who has one IPv6 address has a network of 2^64, so that is what counts. An IPv4 address in IPv6
    clothes is an IPv4 address.
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
