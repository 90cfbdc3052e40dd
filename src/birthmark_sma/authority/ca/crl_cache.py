"""The stored revocation lists, for whoever serves them."""

from typing import NamedTuple

from birthmark_sma.authority.ca import crl_store
from birthmark_sma.storage.engine import Database


class ServedCrl(NamedTuple):
    """A list as it is served."""

    number: int
    der: bytes


class ServedCrls:
    """Reads the newest lists, and keeps them as long as no newer one is stored.

    The database is asked for the newest number each time: kept for a second only, one process would
    still serve an older list after another one had served the newer. Safe to use from any thread.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: dict[str, ServedCrl] = {}

    def newest(self, issuer: str) -> ServedCrl | None:
        """Return an issuer's newest list; None where none is stored.

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
        """Return the list that was read last, without asking the database."""
        return self._kept.get(issuer)
