"""Who calls: an address, and the access key that was shown."""

from typing import NamedTuple

from birthmark_sma.storage.access_keys import AccessKey


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
