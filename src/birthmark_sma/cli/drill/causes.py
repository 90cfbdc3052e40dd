"""The causes that a drill rehearses, and what an operator does about each, on the copy.

`run` calls it. Each step calls the functions of the authority that the commands call. A cause must
never do anything that an operator could not do with the commands.

| cause | the act | afterwards |
| --- | --- | --- |
| intermediate-key | the intermediate is on its root's list; a new one signs | its devices renew |
| family, app-version | the devices are suspended | reinstated, and renewed with new keys |
| key-table | the stolen camera is revoked | the tables are rotated, and the others renew |
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import ClassVar

from sqlalchemy import Connection

from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.store import CaRole, StoredCa
from birthmark_sma.authority.ca.succession import Successions
from birthmark_sma.authority.devices import states
from birthmark_sma.authority.devices.revocation import DeviceCriteria, change_devices
from birthmark_sma.authority.kek.wrapping import open_stored_secrets
from birthmark_sma.authority.key_tables import epochs
from birthmark_sma.authority.renewal.orders import RenewalOrder, give_order
from birthmark_sma.authority.renewal.windows import RenewalCriteria
from birthmark_sma.cli.drill.copied_authority import ACTOR
from birthmark_sma.cli.drill.devices import DrillDevice, NewDevice
from birthmark_sma.config import Settings
from birthmark_sma.errors import ConfigurationError
from birthmark_sma.storage.engine import Database

FAMILY, OTHER_FAMILY = "Drill Camera", "Drill Camera of another family"
VERSION, OTHER_VERSION = "drill-1", "drill-2"
_CONCERNED = 0.8
"""The share of the simulated devices that a family or an app version concerns."""
_OVERLAP = timedelta(hours=1)
"""Added to the time in which earlier table keys are accepted. The drill ends it itself."""
_MOST_ORDERS = 3  # with more tables, one order names all devices


class Cause(StrEnum):
    """The cause of the worst day."""

    INTERMEDIATE_KEY = "intermediate-key"
    FAMILY = "family"
    APP_VERSION = "app-version"
    KEY_TABLE = "key-table"


@dataclass(slots=True)
class Incident(ABC):
    """A cause on one copy. The steps are called in the order in which they stand here.

    `concerned` are the simulated devices that have to renew. `subject` names what is lost, for the
    report.
    """

    database: Database
    settings: Settings
    subject: str
    concerned: list[DrillDevice] = field(default_factory=list)
    stolen: DrillDevice | None = None
    """The camera that was opened. It never renews."""
    tables: list[int] = field(default_factory=list)
    """The key tables that are rotated, in ascending order. `prepare` chooses them."""

    def plan(self, number: int, prefix: str) -> list[NewDevice]:
        """Return the devices to provision. All are of one family and app version by default."""
        return [NewDevice(f"{prefix}-{n:05}", FAMILY, VERSION) for n in range(number)]

    @abstractmethod
    def prepare(self) -> None:
        """Raise an error if the act will not be possible. Nothing changes."""

    def meet(self, devices: Sequence[DrillDevice]) -> None:
        """Choose the concerned devices. By default these are all."""
        self.concerned = list(devices)

    @abstractmethod
    def revoke(self) -> int:
        """Do the act. Return the number of devices in the register that it concerns."""

    @abstractmethod
    def recover(self, within: timedelta) -> list[RenewalOrder]:
        """Order the renewals, and do what has to be done before it."""

    def end(self) -> None:
        """End the overlaps when the devices have renewed: a thief's keys open nothing more."""
        if self.tables:
            epochs.end_overlaps(self.database, self.tables, ACTOR)

    @abstractmethod
    def find_listed(self) -> tuple[str, int]:
        """Return the CA and the certificate that its revocation list must show after the act."""


class LostIntermediate(Incident):
    """The private key of an intermediate is in other hands."""

    def prepare(self) -> None:
        """Compromise it without changing anything: that needs the root's key."""
        active = _active_issuer(self.database).name
        self.subject = self.subject or active
        Successions(self.database, self.settings, ACTOR, dry_run=True).compromise(self.subject)
        if self.subject != active:
            raise ConfigurationError(
                f"{self.subject} signs no new certificates, so the devices of a drill cannot be"
                " under it. Leave out the name: the drill then takes the one that does"
            )

    def revoke(self) -> int:
        """Put the intermediate on its root's list. Another one signs from then on."""
        Successions(self.database, self.settings, ACTOR).compromise(self.subject)
        with self.database.read() as connection:
            return ca_store.count_devices_under(connection).get(self.subject, 0)

    def recover(self, within: timedelta) -> list[RenewalOrder]:
        """Order all devices of the intermediate to renew."""
        return [
            give_order(
                self.database, RenewalCriteria(certificate_issuer=self.subject), within, ACTOR
            )
        ]

    def find_listed(self) -> tuple[str, int]:
        """Return the root, whose list has the intermediate."""
        with self.database.read() as connection:
            lost = ca_store.find_ca(connection, self.subject)
        assert lost is not None  # noqa: S101  `prepare` has found it
        return lost.issuer, lost.load().serial_number


class _Group(Incident):
    """Devices that share a fault, such as an app that leaks keys. Eight of ten have it."""

    usual_subject: ClassVar[str]

    def plan(self, number: int, prefix: str) -> list[NewDevice]:
        """Return devices with the fault, and others."""
        self.subject = self.subject or self.usual_subject
        faulty = round(number * _CONCERNED)
        return [self._make(f"{prefix}-{n:05}", is_faulty=n < faulty) for n in range(number)]

    def prepare(self) -> None:
        """Do nothing: an act on devices needs no secret."""

    def meet(self, devices: Sequence[DrillDevice]) -> None:
        """Choose the devices with the fault."""
        self.concerned = [each for each in devices if self._has_fault(each.new)]

    def revoke(self) -> int:
        """Suspend the devices. Their certificates are on hold from then on."""
        act = states.suspend(ACTOR)
        return len(change_devices(self.database, self._criteria(), act).changed)

    def recover(self, within: timedelta) -> list[RenewalOrder]:
        """Reinstate the devices, as after the repair of the app, and order them to renew."""
        change_devices(self.database, self._criteria(), states.reinstate(ACTOR))
        found = self._criteria()
        criteria = RenewalCriteria(device_family=found.family, app_version=found.app_version)
        return [give_order(self.database, criteria, within, ACTOR)]

    def find_listed(self) -> tuple[str, int]:
        """Return the issuer, whose list has the certificates of the devices."""
        return _active_issuer(self.database).name, self.concerned[0].first_serial

    @abstractmethod
    def _make(self, serial: str, *, is_faulty: bool) -> NewDevice: ...

    @abstractmethod
    def _has_fault(self, device: NewDevice) -> bool: ...

    @abstractmethod
    def _criteria(self) -> DeviceCriteria: ...


class FaultyFamily(_Group):
    """All devices of a family have a fault."""

    usual_subject = FAMILY

    def _make(self, serial: str, *, is_faulty: bool) -> NewDevice:
        return NewDevice(serial, self.subject if is_faulty else OTHER_FAMILY, VERSION)

    def _has_fault(self, device: NewDevice) -> bool:
        return device.device_family == self.subject

    def _criteria(self) -> DeviceCriteria:
        return DeviceCriteria(family=self.subject)


class FaultyVersion(_Group):
    """All devices with an app version have a fault."""

    usual_subject = VERSION

    def _make(self, serial: str, *, is_faulty: bool) -> NewDevice:
        return NewDevice(serial, FAMILY, self.subject if is_faulty else OTHER_VERSION)

    def _has_fault(self, device: NewDevice) -> bool:
        return device.app_version == self.subject

    def _criteria(self) -> DeviceCriteria:
        return DeviceCriteria(app_version=self.subject)


class LeakedTables(Incident):
    """A camera was opened, so the keys of its tables are known; or those of all tables are.

    `subject` has the ids of the tables, separated by commas, or is empty for all tables.
    """

    def prepare(self) -> None:
        """Raise TableRotationError if a table cannot be rotated now."""
        with self.database.read() as connection:
            ended = self.database.clock.expired_before(timedelta())
            self.tables = self._choose(connection)
            epochs.check_no_overlap(connection, self.tables, ended, self.database.clock.now())
        open_stored_secrets(self.database, self.settings)

    def meet(self, devices: Sequence[DrillDevice]) -> None:
        """Choose a stolen camera that shares a table with another one, and the others."""
        tables = set(self.tables)
        having = [each for each in devices if each.tables & tables]
        if len(having) < 2:
            raise ConfigurationError(
                f"Only {len(having)} of the simulated devices have one of these key tables. Take"
                " more devices (--devices), or leave out the tables: then all are rotated"
            )
        self.stolen = _find_sharing(having, tables)
        self.concerned = [each for each in having if each is not self.stolen]

    def revoke(self) -> int:
        """Revoke the stolen camera. Return the number of devices: this one."""
        assert self.stolen is not None  # noqa: S101  chosen by `meet`
        act = states.revoke(ACTOR, "key_compromise")
        changed = change_devices(self.database, [self.stolen.new.device_serial], act)
        return len(changed.changed)

    def recover(self, within: timedelta) -> list[RenewalOrder]:
        """Rotate the tables, and order the devices that have them to renew."""
        keks = open_stored_secrets(self.database, self.settings).keks
        epochs.rotate(self.database, keks, self.tables, within + _OVERLAP, ACTOR)
        some = self.tables if len(self.tables) <= _MOST_ORDERS else [None]
        return [
            give_order(self.database, RenewalCriteria(table_id=each), within, ACTOR)
            for each in some
        ]

    def find_listed(self) -> tuple[str, int]:
        """Return the issuer, whose list has the stolen camera."""
        assert self.stolen is not None  # noqa: S101  chosen by `meet`
        return _active_issuer(self.database).name, self.stolen.first_serial

    def _choose(self, connection: Connection) -> list[int]:
        if not self.subject:
            return [each.table_id for each in epochs.list_states(connection)]
        try:
            wanted = [int(each) for each in self.subject.split(",")]
        except ValueError:
            raise ConfigurationError(
                f"{self.subject} does not name key tables. Write their ids, such as 17,230"
            ) from None
        return epochs.check_tables(connection, wanted)


def _active_issuer(database: Database) -> StoredCa:
    with database.read() as connection:
        active = ca_store.find_active(connection, CaRole.INTERMEDIATE)
    assert active is not None  # noqa: S101  an authority has one
    return active


def _find_sharing(devices: Sequence[DrillDevice], tables: set[int]) -> DrillDevice:
    """Return a device that shares one of the tables with another device, else the first one."""
    seen: set[int] = set()
    for each in devices:
        if each.tables & tables & seen:
            return each
        seen |= each.tables
    return devices[0]


def open_incident(
    cause: Cause, subject: str | None, database: Database, settings: Settings
) -> Incident:
    """Return the incident of a cause. Without a subject, each cause has its own default."""
    kinds: dict[Cause, type[Incident]] = {
        Cause.INTERMEDIATE_KEY: LostIntermediate,
        Cause.FAMILY: FaultyFamily,
        Cause.APP_VERSION: FaultyVersion,
        Cause.KEY_TABLE: LeakedTables,
    }
    return kinds[cause](database, settings, subject or "")
