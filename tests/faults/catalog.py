"""All faults, in the order in which they are played and printed: those of one bed together."""

from collections.abc import Sequence

from tests.faults import postgresql_faults, server_faults, sql_faults, sqlite_faults
from tests.faults.beds import BedKind
from tests.faults.fault import Fault

_ALL = (
    *postgresql_faults.FAULTS,
    *sql_faults.REFUSALS,
    *sql_faults.WAITS,
    *sql_faults.TRY_AGAIN,
    *sql_faults.POOLER,
    *sqlite_faults.FAULTS,
    *server_faults.FAULTS,
)
FAULTS: Sequence[Fault] = [each for kind in BedKind for each in _ALL if each.bed is kind]
