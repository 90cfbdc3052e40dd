"""The state that the parts of a run share: options, folder, PostgreSQL, report and authorities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import fleet, history, sites
from bench.figures import Report
from bench.fleet import FleetCamera
from bench.options import Options
from bench.sites import Site
from birthmark_sma.pki.keys.ca_keys import CaKeyType
from tests.support.databases.postgres import Postgres


@dataclass(frozen=True, slots=True)
class Filled:
    """An authority with a fleet, and camera tokens of the fleet as JSON request bodies."""

    site: Site
    bodies: list[bytes]
    cameras: Sequence[FleetCamera]


@dataclass(frozen=True, slots=True)
class Stage:
    """The state of a run. An authority is created when a part first needs it, and then shared."""

    options: Options
    folder: Path
    postgres: Postgres
    report: Report
    say: Callable[[str], None]
    _filled: dict[str, Filled] = field(default_factory=dict)

    def filled(
        self,
        name: str,
        *,
        devices: int | None = None,
        sqlite: bool = False,
        key_type: CaKeyType = CaKeyType.RSA_4096,
    ) -> Filled:
        """Return the authority `name`. The first call creates and fills it.

        `devices` defaults to the option of that name. Later calls ignore all other arguments.
        """
        if name not in self._filled:
            count = self.options.devices if devices is None else devices
            self.say(f"creating `{name}` with {count:,} devices")
            postgres = None if sqlite else self.postgres
            site = sites.create(self.folder, postgres, name, key_type=key_type)
            with site.opened() as authority:
                cameras = fleet.fill(authority, count, keep=self.options.tokens)
                bodies = fleet.bodies(authority, cameras, self.options.tokens) if cameras else []
            self._filled[name] = Filled(site, bodies, cameras)
        return self._filled[name]

    def with_history(self, name: str, *, sqlite: bool = False) -> Filled:
        """Return an authority with a large fleet and a long audit log."""
        options = self.options
        if name in self._filled:
            return self._filled[name]
        filled = self.filled(
            name, devices=options.scale_devices, sqlite=sqlite, key_type=CaKeyType.EC_P256
        )
        history.fill(
            filled.site.database_url,
            rows=options.scale_rows,
            devices=options.scale_devices,
            say=lambda done: self.say(f"history: {done:,} of {options.scale_rows:,} rows"),
        )
        return filled

    def main(self) -> Filled:
        """Return the authority on PostgreSQL that most parts measure."""
        return self.filled("main")

    def on_sqlite(self) -> Filled:
        """Return the same authority on SQLite."""
        return self.filled("on_sqlite", sqlite=True)
