"""Fill an authority as if it had worked for two weeks, to look at the dashboard's pages.

The rows go directly into SQLite, in about a second, and come from a seed. Serials, families and
daily rhythm are those of a real fleet, with few validations at night and a burst of forgeries.
`bench.picture` and the dashboard's browser tests use it.
"""

import math
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from birthmark_sma.pki.names import fold
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.portable_sql import as_sqlite_text
from tests.support.access_keys import bearer, issue, secret_of, start_with_keys, wait_until_known
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.programs.running import Running

FAMILIES = {
    "Raspberry Pi": ("RPI5-{:06}", 41),
    "Android": ("pixel-9-pro-{:06}", 28),
    "iOS": ("iPhone-17-{:06}", 17),
    "Mirrorless": ("MLC-A7-{:06}", 9),
    "Body camera, second generation": ("bodycam.fleet-west.example-{:06}", 4),
    "Drone": ("UAV-{:06}", 1),
}
"""For each family: the format of its serials, and its share of the devices in percent."""

FLAGGED = 3
_TABLES = 2_500
_KEYS = 1_000
_DAYS = 14
_OLDEST = 690
_BURST = (55, 40)  # the burst of forgeries: from 55 to 40 minutes ago
_WEIGHTS = {
    Reason.GENUINE: 970,
    Reason.NOT_OPENED: 16,
    Reason.UNKNOWN_DEVICE: 5,
    Reason.DEVICE_SUSPENDED: 4,
    Reason.DEVICE_REVOKED: 3,
    Reason.TABLE_NOT_ASSIGNED: 1,
    Reason.UNKNOWN_KEY_INDEX: 1,
}


@dataclass(frozen=True, slots=True)
class _Device:
    serial: str
    family: str
    tables: tuple[int, ...]
    status: str


def fill(
    path: Path, *, devices: int, rows: int, certificate: str, callers: Mapping[str, str]
) -> None:
    """Fill a new authority as if it had worked for two weeks.

    All devices share the text of one certificate. `callers` maps addresses to ids of access keys.
    The first caller submits most tokens.
    """
    chance = random.Random(7)
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
        now = datetime.fromisoformat(
            connection.execute("SELECT strftime('%Y-%m-%d %H:%M:%f+00:00', 'now')").fetchone()[0]
        )
        connection.execute("BEGIN IMMEDIATE")
        fleet = list(_fleet(chance, devices))
        _register(connection, chance, fleet, certificate, now)
        connection.executemany(_ADD_ROW, _rows(chance, fleet, rows, callers, now))
        for statement in SQLITE_COUNTERS.split(";"):
            connection.execute(statement)
        connection.execute("COMMIT")


def _fleet(chance: random.Random, devices: int) -> Iterator[_Device]:
    names = list(FAMILIES)
    shares = [share for _, share in FAMILIES.values()]
    counts = Counter[str]()
    for family in chance.choices(names, shares, k=devices):
        counts[family] += 1
        tables = sorted(chance.sample(range(_TABLES), 3))
        status = chance.choices(("active", "suspended", "revoked"), (990, 4, 6))[0]
        yield _Device(FAMILIES[family][0].format(counts[family]), family, (*tables,), status)


def _register(
    connection: sqlite3.Connection,
    chance: random.Random,
    fleet: list[_Device],
    certificate: str,
    now: datetime,
) -> None:
    connection.executemany(
        "INSERT INTO registered_devices (device_serial, nuc_hash, table_assignments,"
        " device_certificate, certificate_serial, device_public_key, public_key_fingerprint,"
        " device_family, app_version, status, provisioning_id, provisioned_at, serial_folded)"
        " VALUES (?, ?, ?, ?, ?, 'none', ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                each.serial,
                chance.randbytes(32),
                str(list(each.tables)),
                certificate,
                chance.randbytes(20).hex(),
                chance.randbytes(32),
                each.family,
                f"2.{number % 7}.{number % 3}",
                each.status,
                f"PROV-LIVELY-{number:08}",
                as_sqlite_text(now - timedelta(days=_OLDEST * chance.random() ** 2)),
                fold(each.serial),
            )
            for number, each in enumerate(fleet)
        ),
    )
    connection.executemany(
        "INSERT INTO device_family_counters VALUES (?, ?)",
        Counter(each.family for each in fleet).items(),
    )
    connection.executemany(
        "INSERT INTO device_flags (device_serial, day, mode, pictures, usual, days_compared,"
        " threshold, flagged_at) VALUES (?, ?, 'flag', ?, ?, 12, ?, ?)",
        [
            (each.serial, now.date().isoformat(), 900, 12.25, 90, as_sqlite_text(now))
            for each in fleet[:FLAGGED]
        ],
    )


def _rows(
    chance: random.Random,
    fleet: list[_Device],
    rows: int,
    callers: Mapping[str, str],
    now: datetime,
) -> Iterator[tuple[object, ...]]:
    addresses = list(callers)
    reasons, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    busy = [math.exp(chance.gauss(0, 1)) for _ in fleet]
    sources = chance.choices(fleet, busy, k=rows)

    def row(at: datetime, ago: float, device: _Device) -> tuple[object, ...]:
        forged = _BURST[1] < ago < _BURST[0] and chance.random() < 0.3
        reason = Reason.NOT_OPENED if forged else chance.choices(reasons, weights)[0]
        known = reason in {Reason.GENUINE, Reason.DEVICE_SUSPENDED, Reason.DEVICE_REVOKED}
        draw = chance.random()
        repeat = (
            Repeat.DUAL_SUBMISSION if draw < 0.2 else Repeat.REPLAYED if draw < 0.2004 else None
        )
        address = addresses[min(int(chance.expovariate(1.2)), len(addresses) - 1)]
        return (
            chance.randbytes(48),
            chance.choice(device.tables),
            chance.randrange(_KEYS),
            reason.verdict.value,
            reason.value,
            device.serial if known else None,
            as_sqlite_text(at),
            address,
            callers[address],
            repeat,
        )

    moments = sorted(_moments(chance, rows), reverse=True)
    for ago, device in zip(moments, sources, strict=True):
        yield row(now - timedelta(minutes=ago), ago, device)


def _moments(chance: random.Random, rows: int) -> list[float]:
    """Return random ages of rows in minutes: most are recent, and few are at night."""
    minutes = range(_DAYS * 24 * 60)
    weights = [
        (1.15 - math.cos((ago / 60 - 9) * math.pi / 12))
        * (0.02 + math.exp(-ago / 1_500))
        * chance.uniform(0.85, 1.15)
        for ago in minutes
    ]
    return [ago + chance.random() for ago in chance.choices(minutes, weights, k=rows)]


_ADD_ROW = """
INSERT INTO validation_history (encrypted_nuc_hash, table_id, key_index, validation_result, reason,
    device_serial, validated_at, request_ip, caller, repeat)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

SQLITE_COUNTERS = """
INSERT INTO validation_counters (minute, reason, writer, times)
SELECT substr(validated_at, 1, 16) || ':00.000000+00:00', reason, 0, count(*)
FROM validation_history GROUP BY 1, 2;
INSERT INTO repeat_counters (minute, repeat, writer, times)
SELECT substr(validated_at, 1, 16) || ':00.000000+00:00', repeat, 0, count(*)
FROM validation_history WHERE repeat IS NOT NULL GROUP BY 1, 2;
INSERT INTO running_totals (counted, name, writer, times)
SELECT 'verdict', reason, 0, count(*) FROM validation_history GROUP BY 2;
INSERT INTO running_totals (counted, name, writer, times)
SELECT 'repeat', repeat, 0, count(*) FROM validation_history WHERE repeat IS NOT NULL GROUP BY 2;
INSERT INTO device_activity (day, device_serial, passes)
SELECT substr(validated_at, 1, 10), device_serial, count(*)
FROM validation_history WHERE validation_result = 'PASS' GROUP BY 1, 2;
INSERT INTO busiest_devices (day, device_serial)
SELECT day, device_serial FROM (
    SELECT day, device_serial,
        row_number() OVER (PARTITION BY day ORDER BY passes DESC, device_serial) AS place
    FROM device_activity)
WHERE place <= 25;
"""


@dataclass(frozen=True, slots=True)
class Lively:
    """A server that requires keys, on a filled authority, and an admin key.

    `cameras` were provisioned over HTTP, so they have certificates of their own.
    """

    running: Running
    admin: str
    cameras: list[Camera]


def start_lively(
    directory: Path, *, devices: int, rows: int, serials: Sequence[str], tokens: int
) -> Lively:
    """Start a server on a filled authority, provision `serials`, and validate `tokens` tokens."""
    running, keys = start_with_keys(directory / "data", "sqlite:")
    with running.database() as database:
        named = {address: issue(database, name, "validate") for name, address in _CALLERS.items()}
        admin = secret_of(issue(database, "night-shift", "admin"))
        issue(database, "factory-line-3", "provision", device_family="Drone", uses_allowed=500)
    wait_until_known(running, admin)
    [(certificate,)] = running.rows("SELECT certificate FROM ca_certificates WHERE name = 'root'")
    fill(
        running.server.data_dir / "sma.db",
        devices=devices,
        rows=rows,
        certificate=certificate,
        callers={address: each.key.key_id for address, each in named.items()},
    )
    with (
        running.client(headers=bearer(keys["provision"])) as maker,
        running.client(headers=bearer(secret_of(next(iter(named.values()))))) as aggregator,
    ):
        cameras = [Camera.provisioned(maker, each, device_family="Android") for each in serials]
        for number in range(tokens):
            token = wire(cameras[number % len(cameras)].token())
            answer = aggregator.post(VALIDATE, json=token)
            assert answer.status_code == 200, answer.text
    return Lively(running, admin, cameras)


_CALLERS = {
    "aggregator-eu-1": "192.0.2.10",
    "aggregator-us-2": "192.0.2.20",
    "newsroom-pilot": "198.51.100.7",
}
