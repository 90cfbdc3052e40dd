"""Every route of a server: whether it changes the authority for a person, and so leaves an act.

A new route must be added to one of the tables here.
"""

from dataclasses import replace
from pathlib import Path

from birthmark_sma.authority.acts import search
from birthmark_sma.authority.acts.search import ActFilter
from birthmark_sma.authority.devices.abuse_flags import Flag, FlagMode, add_flags
from birthmark_sma.storage.engine import Database
from birthmark_sma.web.routes import OCSP, TABLE
from tests.support.access_keys import bearer, start_with_keys
from tests.support.cameras.camera import new_key, public_pem
from tests.support.days import DAY, current_time

WORK_OF_CALLERS = {
    "/api/v1/devices/provision": "a device asks for itself: `registered_devices` has it",
    "/api/v1/devices/renew": "a device asks for itself: `earlier_certificates` has it",
    "/api/v1/validate/nuc": "a validation: the audit log has it",
    "/api/v1/validate/nuc/batch": "a validation: the audit log has it",
    "/validate": "a validation: the audit log has it",
    "/validate-legacy": "a validation: the audit log has it",
    "/dashboard/sign-in": "a session of the dashboard, which changes nothing in the authority",
    "/dashboard/sign-out": "the end of a session",
}
"""Routes that write, for callers and not for administrators: they leave no act."""
LEAVES_ACT: dict[str, tuple[str, dict[str, object], str]] = {
    "/api/v1/devices/{serial}/suspend": ("camera", {}, "device.suspend"),
    "/api/v1/devices/{serial}/reinstate": ("camera", {}, "device.reinstate"),
    "/api/v1/devices/{serial}/re-enrol": ("camera", {}, "device.allow-re-enrolment"),
    "/api/v1/devices/bulk": (
        "",
        {"act": "suspend", "criteria": {"device_family": "Pi"}},
        "device.suspend",
    ),
    "/api/v1/devices/{serial}/retire": ("camera", {}, "device.retire"),
    "/api/v1/devices/{serial}/revoke": ("camera", {}, "device.revoke"),
    "/api/v1/flags/review": ("", {"device_serial": "camera"}, "device.review-flags"),
    "/api/v1/keys": ("", {"name": "desk", "scope": "read"}, "access-key.create"),
    "/api/v1/keys/{key}/rotate": ("desk", {}, "access-key.rotate"),
    "/api/v1/keys/{key}/revoke": ("desk", {}, "access-key.revoke"),
}
"""Routes that change the authority for an administrator: the name in the path, a body that is
accepted after the requests before, and the act that it leaves."""


def test_every_route_that_writes_is_in_a_table() -> None:
    """All others take GET alone. An OCSP request is a question, also as a POST."""
    writing = {route.path for route in TABLE if route.methods != ("GET",)}
    questions = {OCSP.path, "/validate-cert", "/validate-cert-legacy"}  # the latter are always 410
    assert writing - questions == WORK_OF_CALLERS.keys() | LEAVES_ACT.keys()
    assert not WORK_OF_CALLERS.keys() & LEAVES_ACT.keys()


def count_acts(database: Database) -> int:
    """Return the number of acts."""
    with database.read() as connection:
        return len(search.search(connection, ActFilter(), limit=10_000))


def test_each_act_is_recorded_once(database_url: str, tmp_path: Path) -> None:
    """By the key that did it, with its role and the id of the request."""
    running, keys = start_with_keys(tmp_path / "data", database_url, SMA_TABLES="6")
    with running.client(headers=bearer(keys["provision"])) as client:
        device = {"device_serial": "camera", "device_public_key": public_pem(new_key())}
        asked = client.post("/api/v1/devices/provision", json=device | {"device_family": "Pi"})
        assert asked.status_code == 200, asked.text
    with running.database() as database, running.client(headers=bearer(keys["admin"])) as client:
        now = current_time()
        with database.write() as transaction:
            flag = Flag("camera", now.date(), FlagMode.FLAG, 900, 2.0, 14, 20, now)
            add_flags(transaction, [flag])
        for path, (name, body, kind) in LEAVES_ACT.items():
            before = count_acts(database)
            place = path.format(serial=name, key=name)
            done = client.post(place, json=body, headers={"X-Request-ID": f"id-{before}"})
            assert done.status_code == 200, (path, done.text)
            with database.read() as connection:
                newest, *others = search.search(connection, ActFilter(), limit=10_000)
            assert len(others) == before, path
            told = (newest.act, newest.actor, newest.role, newest.source, newest.request_id)
            assert told == (kind, "a admin", "admin", "api", f"id-{before}")
            if path.endswith("/devices/bulk"):
                client.post("/api/v1/devices/camera/reinstate", json={}).raise_for_status()
                with database.write() as transaction:
                    add_flags(transaction, [replace(flag, day=now.date() - DAY)])
    running.server.close()


def test_no_other_route_leaves_an_act(database_url: str, tmp_path: Path) -> None:
    """Each is asked with the key of an administrator, and a device is provisioned."""
    running, keys = start_with_keys(tmp_path / "data", database_url, SMA_TABLES="6")
    with running.database() as database:
        acts = count_acts(database)
        with running.client(headers=bearer(keys["provision"])) as client:
            body = {"device_serial": "camera", "device_public_key": public_pem(new_key())}
            asked = client.post("/api/v1/devices/provision", json=body | {"device_family": "Pi"})
            assert asked.status_code == 200, asked.text
        with running.client(headers=bearer(keys["admin"])) as client:
            query = {"serial": "camera", "id": "1", "name": "root"}
            for route in TABLE:
                if route.tail is None and route.methods == ("GET",):
                    assert client.get(route.path, params=query).status_code < 500, route.path
        assert count_acts(database) == acts > 1
    running.server.close()
