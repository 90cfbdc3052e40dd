"""The caller of a request: its address and the access key that it presented.

The authentication middleware creates callers. Rate limits count them by `Caller.partition`, and the
replay ledger stores `Caller.identity`.
"""

import socket
from dataclasses import dataclass, field
from functools import lru_cache

from birthmark_sma.authority.access.store import AccessKey


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request.

    `address` is None for the command line. `key` is None if the authority has open access.
    """

    address: str | None
    key: AccessKey | None = field(default=None, repr=False)
    identity: str = field(init=False)
    """The name of the caller: its key id, or else its address. At most 49 characters."""
    partition: str = field(init=False)
    """The name under which rate limits and queues count the caller: its key, or else its address.

    An IPv6 address counts as its /64 network, because a caller usually has all 2^64 addresses of
    it. An IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2) counts as the IPv4 address.
    """

    key_id: str | None = field(init=False)
    """The id of the presented access key, or None."""

    def __post_init__(self) -> None:
        # Made here, because several steps of each request need these names.
        object.__setattr__(self, "key_id", None if self.key is None else self.key.key_id)
        address = self.address
        if self.key is not None:
            identity = partition = f"key:{self.key.key_id}"
        elif address is None:
            identity = partition = "local"
        else:
            identity = f"ip:{address}"
            partition = _network(address) if ":" in address else identity
        object.__setattr__(self, "identity", identity)
        object.__setattr__(self, "partition", partition)

    @property
    def may_read_serials(self) -> bool:
        """Return True unless the access key is for exports and API responses without serials."""
        return self.key is None or self.key.may_export_serials


@dataclass(frozen=True, slots=True)
class RenewingDevice(Caller):
    """A device that has proved to have the key of its certificate. It counts by its serial."""

    device_serial: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key_id", None)
        name = f"device:{self.device_serial}"
        object.__setattr__(self, "identity", name)
        object.__setattr__(self, "partition", name)


@lru_cache(4_096)
def keyless_caller(address: str | None) -> Caller:
    """Return the caller at an address that presented no access key."""
    return Caller(address)


@lru_cache(4_096)
def _network(address: str) -> str:
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return f"ip:{address}"
    if packed.startswith(b"\0" * 10 + b"\xff\xff"):
        return f"ip:{socket.inet_ntop(socket.AF_INET, packed[12:])}"
    return f"ip:{socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8))}/64"
