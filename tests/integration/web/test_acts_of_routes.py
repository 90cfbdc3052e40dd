"""Every route of a server: whether it changes the authority for a person, and so leaves an act.

A new route must be added to one of the tables here.
"""

from pathlib import Path

from birthmark_sma.authority.acts import search
from birthmark_sma.authority.acts.search import ActFilter
from birthmark_sma.storage.engine import Database
from birthmark_sma.web.routes import OCSP, TABLE
from tests.support.access_keys import bearer, start_with_keys
from tests.support.cameras.camera import new_key, public_pem

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
LEAVES_ACT = {
    "/dashboard/devices/act": {"act": "suspend", "serial": "camera"},
    "/dashboard/flags/review": {"serial": "camera"},
    "/dashboard/device/re-enrolment": {"serial": "camera-2"},
    "/dashboard/keys/rotate": {"key": "KEY"},
    "/dashboard/keys/revoke": {"key": "KEY"},
    "/dashboard/keys/create": {"name": "newcomer", "scope": "validate"},
}
"""Routes that change the authority for an administrator, in this order, each with the query of the
page that asks for confirmation. dashboard/actions/test_acts.py does each."""


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
