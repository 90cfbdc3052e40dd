"""Lower the cost of key derivations, which took most of the tests' CPU time.

The full cost (PBKDF2 with 600,000 rounds, scrypt with 64 MiB) makes guessing slow, and every
command of `sma` pays it several times. The product has no setting for it, so this module replaces
the constants in the test process and in the programs that tests start. The cost is not stored with
the data, so a program with one cost cannot open data of a program with the other cost. Therefore
all of them lower it: `tests/conftest.py` for the tests, `programs/commands.py` for forked commands,
`programs/workers.py` for the workers of forked servers, and `SMA` of `programs/server.py` for
separate programs, which run this module. Their workers run it too, as their `__mp_main__`.

The fixture `full_derivation_cost` gives a test the real values, and `REAL_SMA` the real program.
"""

from importlib import import_module
from typing import NamedTuple


class Cost(NamedTuple):
    """A constant of the product that sets the cost of a derivation, and its low value."""

    module: str
    name: str
    low: int

    def read(self) -> int:
        """Return the present value in this process."""
        value: int = getattr(import_module(self.module), self.name)
        return value

    def write(self, value: int) -> None:
        """Replace the value in this process."""
        setattr(import_module(self.module), self.name, value)


OF_AUTHORITIES = (
    # Above the 2,048 rounds of older versions, which must still count as too few.
    Cost("birthmark_sma.pki.keys.encrypted_key", "ROUNDS", 4_096),
    Cost("birthmark_sma.authority.kek.sources", "_SCRYPT_N", 64),
)
# A tuple of its own: a server must not import the packages of cameras, because a test measures its
# memory.
OF_CAMERAS = (Cost("birthmark_sma.device.state_encryption", "_SCRYPT_N", 64),)


def lower(costs: tuple[Cost, ...]) -> None:
    """Set the costs to their low values in this process."""
    for cost in costs:
        cost.write(cost.low)


if __name__ in {"__main__", "__mp_main__"}:
    lower(OF_AUTHORITIES)
if __name__ == "__main__":
    from birthmark_sma.__main__ import run

    run()
