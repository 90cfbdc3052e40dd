"""Lower the cost of key derivations, which took more of the tests' time than all else.

The full cost (PBKDF2 with 600,000 rounds, scrypt with 64 MiB) makes guessing slow, and every
command of `sma` pays it several times. The product has no setting for it: this module replaces the
constants inside the test process and inside the programs that tests start. The cost is not stored
beside the data, so a program at one cost cannot open what a program at the other cost wrote.
That is why all of them lower it: `tests/conftest.py` for the tests, `programs/commands.py` for
forked commands, and `SMA` of `programs/server.py` for programs started by themselves, which is this
module run as a program. Processes that a command spawns run this module too, as their
`__mp_main__`.

The fixture `full_derivation_cost` gives a test the real values, and `REAL_SMA` the real program.
"""

from importlib import import_module
from typing import NamedTuple


class Cost(NamedTuple):
    """A constant of the product that sets how much a derivation costs."""

    module: str
    name: str
    low: int

    def read(self) -> int:
        """Return its value at the moment."""
        value: int = getattr(import_module(self.module), self.name)
        return value

    def write(self, value: int) -> None:
        """Replace its value in this process."""
        setattr(import_module(self.module), self.name, value)


OF_AUTHORITIES = (
    # More than the 2,048 rounds of older versions, which must still count as too few.
    Cost("birthmark_sma.pki.keys.encrypted_key", "ROUNDS", 4_096),
    Cost("birthmark_sma.authority.kek.sources", "_SCRYPT_N", 64),
)
# Apart, because a server must not import the packages of cameras: its memory is measured.
OF_CAMERAS = (Cost("birthmark_sma.device.state_encryption", "_SCRYPT_N", 64),)


def lower(costs: tuple[Cost, ...]) -> None:
    """Lower the costs in this process, until it ends."""
    for cost in costs:
        cost.write(cost.low)


if __name__ in {"__main__", "__mp_main__"}:
    lower(OF_AUTHORITIES)
if __name__ == "__main__":
    from birthmark_sma.__main__ import run

    run()
