"""Measure the response time of every dashboard page with a large fleet and a long audit log.

A search for rare rows, and a page far down a list, are the slow cases, so most URLs here do that.
"""

import time
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import httpx2
from sqlalchemy import text

from bench.figures import POSTGRESQL, SQLITE, Report
from bench.parts.stage import Filled, Stage
from birthmark_sma.storage.engine import Database, open_database

TIMES = 20
"""Requests for each page."""

_PREFIX = "page: "
_LISTED_SECONDS = 120.0  # limit for all pages together; then each page is requested once
_RARE = 20

# 20 devices (one in 50,000 of a million) are suspended, flagged and of a rare family. The oldest
# day has 20 rows with a rare reason, a rare caller and a replay. Counters lead to them only by
# chance.
_RARITIES = (
    "UPDATE registered_devices SET status = 'suspended' WHERE device_serial IN ({serials})",
    "UPDATE registered_devices SET device_family = 'Rare' WHERE device_serial IN ({serials})",
    "UPDATE device_family_counters SET devices = devices - {rare}",
    "INSERT INTO device_family_counters (device_family, devices) VALUES ('Rare', {rare})",
    "INSERT INTO device_flags (device_serial, day, mode, pictures, usual, days_compared, threshold,"
    " flagged_at) SELECT device_serial, '{day}', 'flag', 900, 12.5, 14, 120, '{moment}'"
    " FROM registered_devices WHERE device_serial IN ({serials})",
    "INSERT INTO validation_history (encrypted_nuc_hash, table_id, key_index, validation_result,"
    " reason, device_serial, validated_at, caller, repeat)"
    " SELECT nuc_hash, 1, 1, 'FAIL', 'device_revoked', device_serial, '{moment}', 'rare',"
    " 'replayed' FROM registered_devices WHERE device_serial IN ({serials})",
    "INSERT INTO validation_counters (minute, reason, writer, times)"
    " VALUES ('{minute}', 'device_revoked', 1, {rare})",
    "INSERT INTO repeat_counters (minute, repeat, writer, times)"
    " VALUES ('{minute}', 'replayed', 1, {rare})",
)


def measure(stage: Stage) -> None:
    """Measure all pages on PostgreSQL, then on SQLite unless the options exclude it."""
    for name, database in (("large", POSTGRESQL), ("large_on_sqlite", SQLITE)):
        if database == SQLITE and not stage.options.pages_on_sqlite:
            continue
        filled = stage.with_history(name, sqlite=database == SQLITE)
        with closing(open_database(filled.site.database_url)) as opened:
            _add_rarities(opened, stage.options.scale_devices)
        _measure(stage, filled, database)


def page_name(page: str, database: str) -> str:
    """Return the name of a page's reading."""
    return f"{_PREFIX}{page}, {database}"


def slowest(report: Report, database: str) -> float | None:
    """Return the longest time in ms of all requests for all pages, or None without readings."""
    times = [
        max(each.rounds)
        for each in report.readings
        if each.name.startswith(_PREFIX) and each.name.endswith(f", {database}")
    ]
    return max(times, default=None)


def _measure(stage: Stage, filled: Filled, database: str) -> None:
    began = time.perf_counter()
    with (
        filled.site.serve() as server,
        httpx2.Client(
            base_url=server.url, trust_env=False, timeout=60, headers={"Accept": "text/html"}
        ) as client,
    ):
        for page, url in _pages(stage.options.scale_devices).items():
            name = page_name(page, database)
            client.get(url)  # not measured: the first request compiles template and statements
            for _ in range(TIMES):
                asked = time.perf_counter()
                answer = client.get(url)
                stage.report.read(name, "ms", (time.perf_counter() - asked) * 1e3)
                if answer.status_code != 200:
                    stage.report.faults.append(f"{name}: {answer.status_code}")
                    break
                if time.perf_counter() - began > _LISTED_SECONDS:
                    break
            stage.say(f"{name}: {stage.report.reading(name):.1f} ms")


def _add_rarities(database: Database, devices: int) -> None:
    moment = datetime.now(UTC) - timedelta(days=9, hours=12)
    step = devices // _RARE
    values = {
        "serials": ", ".join(f"'bench-{number:08}'" for number in range(step - 1, devices, step)),
        "rare": len(range(step - 1, devices, step)),
        "day": moment.date().isoformat(),
        "moment": moment.isoformat(" ", "microseconds"),
        "minute": moment.replace(second=0, microsecond=0).isoformat(" ", "microseconds"),
    }
    with database.write() as transaction:
        for statement in _RARITIES:
            transaction.execute(text(statement.format(**values)))


def _pages(devices: int) -> Mapping[str, str]:
    """Return the URL of each page, by the name in the report."""
    deep = f"bench-{devices * 9 // 10:08}"
    last = f"bench-{devices - 1:08}"
    far = datetime.now(UTC).replace(tzinfo=None, microsecond=0) - timedelta(days=8)
    before = f"{far.isoformat()}+00:00_0"
    lists = {"devices": "/dashboard/devices", "validations": "/dashboard/validations"}
    asked: dict[str, tuple[str, dict[str, str]]] = {
        "overview": ("/dashboard", {}),
        "overview, 24 hours": ("/dashboard", {"hours": "24"}),
        "overview, its figures alone": ("/dashboard/figures", {}),
        "devices": ("devices", {}),
        "devices, far down": ("devices", {"after": deep}),
        "devices, by the beginning of a serial": ("devices", {"q": last[:-3]}),
        "devices, by a beginning, far down": ("devices", {"q": "bench-", "after": deep}),
        "devices, by a beginning that none has": ("devices", {"q": "none"}),
        "devices, of the largest family, far down": ("devices", {"family": "Bench", "after": deep}),
        "devices, of a family of few": ("devices", {"family": "Rare"}),
        "devices, a beginning and a family of few": ("devices", {"q": "bench-", "family": "Rare"}),
        "devices, suspended": ("devices", {"status": "suspended"}),
        "devices, active, far down": ("devices", {"status": "active", "after": deep}),
        "devices, revoked, where none is": ("devices", {"status": "revoked", "family": "Bench"}),
        "devices, flagged": ("devices", {"flagged": "yes"}),
        "devices, flagged and of a family": ("devices", {"flagged": "yes", "family": "Bench"}),
        "a device": ("/dashboard/device", {"serial": last}),
        "its certificate": ("/dashboard/device/certificate", {"serial": last}),
        "validations": ("validations", {}),
        "validations, far back": ("validations", {"before": before}),
        "validations, of a while": (
            "validations",
            {"since": far.isoformat(), "until": (far + timedelta(hours=1)).isoformat()},
        ),
        "validations, FAIL": ("validations", {"result": "FAIL"}),
        "validations, of a rare reason": ("validations", {"reason": "device_revoked"}),
        "validations, of a reason that never was": ("validations", {"reason": "device_suspended"}),
        "validations, replayed": ("validations", {"repeat": "replayed"}),
        "validations, of one device": ("validations", {"device": last}),
        "validations, of no device": ("validations", {"device": "none"}),
        "validations, of one table": ("validations", {"table": "7"}),
        "validations, of a rare caller": ("validations", {"caller": "rare"}),
        "validations, of a rare caller, far back": (
            "validations",
            {"caller": "rare", "before": before},
        ),
        "key tables": ("/dashboard/tables", {}),
        "key tables, by use": ("/dashboard/tables", {"by": "use", "table": "7"}),
        "certificates": ("/dashboard/certificates", {}),
        "callers": ("/dashboard/callers", {}),
    }
    return {
        name: lists.get(path, path) + (f"?{urlencode(query)}" if query else "")
        for name, (path, query) in asked.items()
    }
