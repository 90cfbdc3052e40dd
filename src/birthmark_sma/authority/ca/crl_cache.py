"""Cache of the stored certificate revocation lists (CRLs), for the endpoints that serve them.

Called by `web.api.crl` and by `crl_publication`. It must never return an older list than another
process has served before.
"""

from typing import NamedTuple

from birthmark_sma.authority.ca import crl_store
from birthmark_sma.storage.engine import Database


class ServedCrl(NamedTuple):
    """A CRL as it is served: its CRL number and its DER."""

    number: int
    der: bytes


class ServedCrls:
    """Returns the newest CRL of each issuer, and caches its DER until a newer one is stored.

    Each call queries the newest number. If that were cached too, even for a second, this process
    would serve an older list after another process has served the newer one. Safe to use from any
    thread.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: dict[str, ServedCrl] = {}

    def newest(self, issuer: str) -> ServedCrl | None:
        """Return the newest CRL of an issuer, or None if none is stored.

        Raises DatabaseUnavailableError.
        """
        kept = self._kept.get(issuer)
        with self._database.read() as connection:
            number = crl_store.find_newest_number(connection, issuer)
            if kept is not None and kept.number == number:
                return kept
            der = None if number is None else crl_store.find_der(connection, issuer, number)
        if number is None or der is None:
            return None
        found = self._kept[issuer] = ServedCrl(number, der)
        return found

    def last_known(self, issuer: str) -> ServedCrl | None:
        """Return the CRL that `newest` returned last, without a query, or None.

        Use it while the database is unavailable.
        """
        return self._kept.get(issuer)
