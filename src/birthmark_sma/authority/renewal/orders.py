"""Renewal orders: an operator pulls the renewal of some or all devices forward.

Called by `sma renewals`, the endpoint of renewal windows, the dashboard and the doctor. An order
only moves windows (`renewal.windows`): a device renews by itself when it next asks for its window.
Orders must never revoke or change a device. All times are of the database's clock.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, exists, func, insert, or_, select, update

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind, Actor
from birthmark_sma.authority.acts.trail import Subject
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.renewal.windows import OrderTime, RenewalCriteria
from birthmark_sma.errors import RenewalOrderError
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.locks import AdvisoryLock, wait_for_lock
from birthmark_sma.storage.outages.deadlines import LONG_SECONDS
from birthmark_sma.storage.portable_sql import database_time
from birthmark_sma.storage.schema.certificates import earlier_certificates, renewal_orders
from birthmark_sma.storage.schema.devices import registered_devices as devices

_table = renewal_orders.c
_renewed_at = devices.c.certificate_renewed_at

MOST_OPEN = 20
"""The most open orders. Each request for a renewal window reads all of them."""
MOST_COUNTED = 1_000
"""The most stragglers that `has_stragglers` and the doctor count."""


@dataclass(frozen=True, slots=True)
class RenewalOrder:
    """An order. `matched` is the number of devices that it named when it was given.

    `cancelled_at` is None while the order is open.
    """

    id: int
    opened_at: datetime
    ends_at: datetime
    actor: str
    criteria: RenewalCriteria
    matched: int
    cancelled_at: datetime | None

    @property
    def time(self) -> OrderTime:
        """Return the part of the order that decides windows."""
        return OrderTime(self.criteria, self.opened_at, self.ends_at)


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of an order: devices that got a new certificate since, and those that did not.

    `left` counts active devices only. A device that was revoked, or provisioned again, is in
    neither number.
    """

    order: RenewalOrder
    renewed: int
    left: int


def count_matching(connection: Connection, criteria: RenewalCriteria, before: datetime) -> int:
    """Return the number of active devices that meet criteria, with certificates from before a time.

    It reads the whole register: about half a second for a million devices.
    """
    query = select(func.count()).select_from(devices).where(*_left(connection, criteria, before))
    return connection.execute(query).scalar_one()


def preview(database: Database, criteria: RenewalCriteria) -> int:
    """Return the number of devices that an order with these criteria would name now."""
    with database.read(LONG_SECONDS) as connection:
        return count_matching(connection, criteria, database_time(connection))


def give_order(
    database: Database, criteria: RenewalCriteria, within: timedelta, actor: Actor
) -> RenewalOrder:
    """Order the devices that meet the criteria to renew within a period from now.

    Raises RenewalOrderError if 20 orders are open or if the criteria name no device.
    """

    def work(transaction: Connection) -> RenewalOrder:
        # Two orders at once would both find room for one more.
        wait_for_lock(transaction, AdvisoryLock.RENEWAL_ORDERS)
        now = database_time(transaction)
        if len(list_open(transaction)) >= MOST_OPEN:
            raise RenewalOrderError(
                f"{MOST_OPEN} renewal orders are open. Cancel those that are finished: sma renewals"
                " list, then sma renewals cancel NUMBER."
            )
        matched = count_matching(transaction, criteria, now)
        if not matched:
            raise RenewalOrderError("No active device meets these criteria. Nothing was ordered.")
        row = {
            "opened_at": now,
            "ends_at": now + within,
            "actor": actor.name,
            "matched": matched,
            **asdict(criteria),
        }
        number = transaction.execute(
            insert(renewal_orders).values(row).returning(_table.id)
        ).scalar_one()
        given = RenewalOrder(number, now, now + within, actor.name, criteria, matched, None)
        _record(transaction, actor, ActKind.RENEWAL_ORDER_GIVE, given)
        return given

    return database.transact(work, LONG_SECONDS)


def cancel(database: Database, number: int, actor: Actor) -> bool:
    """Cancel an order; return False if it was cancelled before.

    Raises RenewalOrderError if there is no such order.
    """

    def work(transaction: Connection) -> bool:
        changed = transaction.execute(
            update(renewal_orders)
            .where(_table.id == number, _table.cancelled_at.is_(None))
            .values(cancelled_at=database_time(transaction))
        )
        if changed.rowcount:
            [order] = _read(transaction, _table.id == number)
            _record(transaction, actor, ActKind.RENEWAL_ORDER_CANCEL, order)
            return True
        if transaction.execute(select(_table.id).where(_table.id == number)).first() is None:
            raise RenewalOrderError(f"There is no renewal order {number}: see sma renewals list.")
        return False

    return database.transact(work)


def _record(transaction: Connection, actor: Actor, kind: ActKind, order: RenewalOrder) -> None:
    about = {**asdict(order.criteria), "ends_at": order.ends_at, "matched": order.matched}
    is_new = order.cancelled_at is None
    subject = Subject(
        str(order.id),
        None if is_new else {"state": "open"},
        {"state": "open" if is_new else "cancelled"},
    )
    trail.record(transaction, actor, kind, [subject], more=about)


def list_open(connection: Connection) -> list[RenewalOrder]:
    """Return the open orders, the oldest first. There are at most 20."""
    return _read(connection, _table.cancelled_at.is_(None))


def list_orders(connection: Connection, *, limit: int) -> list[RenewalOrder]:
    """Return the newest orders, open and cancelled, the newest first."""
    return _read(connection, limit=limit)


def read_progress(connection: Connection, order: RenewalOrder) -> Progress:
    """Return the progress of an order.

    `renewed` uses the index of renewals. `left` reads the whole register, like `count_matching`.
    """
    criteria, conditions = order.criteria, [_renewed_at >= order.opened_at]
    if criteria.certificate_issuer is not None:
        # Another intermediate may have signed the new certificate, so the one before it counts.
        conditions.append(_had_certificate(criteria.certificate_issuer, order.opened_at))
        criteria = replace(criteria, certificate_issuer=None)
    renewed = (
        select(func.count())
        .select_from(devices)
        .where(*conditions, *_conditions(connection, criteria))
    )
    return Progress(
        order,
        connection.execute(renewed).scalar_one(),
        count_matching(connection, order.criteria, order.opened_at),
    )


def count_stragglers(connection: Connection, order: RenewalOrder) -> int:
    """Return the number, up to 1,000, of devices that an order names and that have not renewed."""
    found = (
        select(devices.c.device_serial)
        .where(*_left(connection, order.criteria, order.opened_at))
        .limit(MOST_COUNTED)
        .subquery()
    )
    return connection.execute(select(func.count()).select_from(found)).scalar_one()


def count_renewed_since(connection: Connection, since: datetime) -> int:
    """Return the number of devices that renewed at this time or later, by the index."""
    query = select(func.count()).select_from(devices).where(_renewed_at >= since)
    return connection.execute(query).scalar_one()


def _left(
    connection: Connection, criteria: RenewalCriteria, before: datetime
) -> Sequence[ColumnElement[bool]]:
    """Return the conditions for the devices that `OrderTime.matches` of an order from `before`."""
    return (
        devices.c.status == DeviceStatus.ACTIVE.value,
        devices.c.provisioned_at < before,
        or_(_renewed_at.is_(None), _renewed_at < before),
        *_conditions(connection, criteria),
    )


def _had_certificate(issuer: str, since: datetime) -> ColumnElement[bool]:
    """Return the condition that a device had a certificate of this issuer until after a time."""
    earlier = earlier_certificates.c
    return exists().where(
        earlier.device_serial == devices.c.device_serial,
        earlier.certificate_issuer == issuer,
        earlier.replaced_at >= since,
    )


def _conditions(connection: Connection, criteria: RenewalCriteria) -> Sequence[ColumnElement[bool]]:
    columns = ("certificate_issuer", "device_family", "app_version")
    wanted = [(devices.c[name], getattr(criteria, name)) for name in columns]
    conditions = [column == value for column, value in wanted if value is not None]
    if criteria.table_id is not None:
        conditions.append(device_store.has_table(connection, criteria.table_id))
    return conditions


_CRITERIA = [each.name for each in fields(RenewalCriteria)]


def _read(
    connection: Connection, condition: ColumnElement[bool] | None = None, limit: int = MOST_OPEN
) -> list[RenewalOrder]:
    query = select(renewal_orders).limit(limit)
    query = (
        query.order_by(_table.id.desc())
        if condition is None
        else query.where(condition).order_by(_table.id)
    )
    orders = []
    for row in connection.execute(query):
        values = row._asdict()
        criteria = RenewalCriteria(**{name: values.pop(name) for name in _CRITERIA})
        orders.append(RenewalOrder(criteria=criteria, **values))
    return orders
