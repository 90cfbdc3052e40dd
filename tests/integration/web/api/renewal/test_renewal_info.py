"""GET /api/v1/devices/renewal-info/{certificate_id}, and the limits of both renewal endpoints."""

from base64 import urlsafe_b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
from sqlalchemy import update

from birthmark_sma.authority.renewal import orders
from birthmark_sma.authority.renewal.orders import RenewalOrder
from birthmark_sma.authority.renewal.windows import RenewalCriteria, usual_window
from birthmark_sma.protocol.renewal import certificate_id, parse_certificate_id
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.schema.devices import registered_devices
from tests.support.access_keys import issue
from tests.support.cameras.camera import new_key
from tests.support.cameras.renewal import RENEW, RENEWAL_INFO, RenewingDevice
from tests.support.devices.actors import ACTOR
from tests.support.problems import assert_problem
from tests.support.programs.running import Running, new_serial, start


def order_family(database: Database, family: str) -> RenewalOrder:
    """Order a family to renew within a day."""
    # A server estimates the time of PostgreSQL's clock. On a busy machine it may be ahead.
    of_family = registered_devices.c.device_family == family
    with database.write() as transaction:
        an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
        transaction.execute(
            update(registered_devices).where(of_family).values(provisioned_at=an_hour_ago)
        )
    return orders.give_order(
        database, RenewalCriteria(device_family=family), timedelta(days=1), ACTOR
    )


def window_of(client: httpx2.Client, device: RenewingDevice) -> tuple[datetime, datetime]:
    """Return the window of a device's certificate."""
    response = client.get(device.window_path)
    assert response.status_code == 200, response.text
    window = response.json()["suggestedWindow"]
    assert list(response.json()) == ["suggestedWindow"]
    return datetime.fromisoformat(window["start"]), datetime.fromisoformat(window["end"])


def test_a_certificate_has_a_window(client: httpx2.Client) -> None:
    device = RenewingDevice.provisioned(client)
    certificate = device.loaded
    expected = usual_window(
        device.certificate_serial, certificate.not_valid_before_utc, certificate.not_valid_after_utc
    )
    assert window_of(client, device) == (expected.start, expected.end)
    assert client.get(device.window_path).headers["retry-after"] == "21600"


def test_a_replaced_certificate_keeps_its_window(client: httpx2.Client) -> None:
    device = RenewingDevice.provisioned(client)
    before = window_of(client, device)
    renewed = device.renewed(client, supersede=True)
    assert window_of(client, device) == before
    assert window_of(client, renewed) != before


def test_an_order_pulls_forward(client: httpx2.Client, running: Running) -> None:
    """The certificate that follows has its usual window again; so have devices of other names."""
    family, now = new_serial("family"), datetime.now(UTC)
    device = RenewingDevice.provisioned(client, device_family=family)
    other = RenewingDevice.provisioned(client)
    usual, usual_of_other = window_of(client, device), window_of(client, other)
    with running.database() as database:
        given = order_family(database, family)
    assert given.matched == 1
    start_at, end = window_of(client, device)
    assert now - timedelta(minutes=1) <= start_at <= end <= now + timedelta(days=1, minutes=1)
    assert client.get(device.window_path).headers["retry-after"] == "3600"
    assert window_of(client, other) == usual_of_other
    renewed = device.renewed(client)
    assert window_of(client, renewed)[0] > now + timedelta(days=400)
    # That of a certificate that is no longer the current one is its own.
    assert window_of(client, device) == usual
    with running.database() as database, database.read() as connection:
        progress = orders.read_progress(connection, given)
    assert (progress.renewed, progress.left) == (1, 0)


def test_a_cancelled_order_pulls_nothing(client: httpx2.Client, running: Running) -> None:
    family = new_serial("family")
    device = RenewingDevice.provisioned(client, device_family=family)
    usual = window_of(client, device)
    with running.database() as database:
        given = order_family(database, family)
        assert window_of(client, device) != usual
        assert orders.cancel(database, given.id, actor=ACTOR)
        assert not orders.cancel(database, given.id, actor=ACTOR)
    assert window_of(client, device) == usual


def wrong_ids(device: RenewingDevice) -> dict[str, str]:
    """Return ids that no certificate of this authority has."""
    identifier, serial_number = parse_certificate_id(device.window_path.removeprefix(RENEWAL_INFO))
    encoded = urlsafe_b64encode(b"\0" + serial_number.to_bytes(20, "big")).rstrip(b"=").decode()
    return {
        "another issuer": certificate_id(bytes(20), serial_number),
        "another serial number": certificate_id(identifier, serial_number + 1),
        "leading zeros": device.window_path.removeprefix(RENEWAL_INFO).partition(".")[0]
        + f".{encoded}",
        "not canonical": device.window_path.removeprefix(RENEWAL_INFO)[:-1] + "_",
        "no dot": "abc",
        "two dots": "a.b.c",
        "a directory": "a.b/c",
        "empty": "",
        "padding": "YQ==.AQ",
        "too long": f"{'A' * 87}.AQ",
        "long serial number": f"AAAA.{'A' * 29}",
        "control character": "a.b%0A",
        "encoded": "%61.b",
    }


def test_unknown_ids(client: httpx2.Client) -> None:
    """Threat 32: each is 404, whatever is in the path."""
    for name, text in wrong_ids(RenewingDevice.provisioned(client)).items():
        response = client.get(RENEWAL_INFO + text)
        assert response.status_code == 404, (name, response.text)


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[Running, httpx2.Client]]:
    """Start a server of its own on SQLite, and connect to it."""
    running = start(folder, "sqlite:", *options)
    with running.server, running.client() as client:
        yield running, client


def test_a_device_has_a_limit_of_its_own(tmp_path: Path) -> None:
    """Threat 27: repetitions are free, so nobody uses it up by replaying a request."""
    with serving(tmp_path, "--access", "open", "--rate-renew", "2/hour") as (_, client):
        device, other = RenewingDevice.provisioned(client), RenewingDevice.provisioned(client)
        body = device.request()
        for _ in range(5):
            assert client.post(RENEW, json=body).status_code == 200
        # A wrong proof counts nothing against the device.
        for _ in range(5):
            assert device.renew(client, sign_with=new_key()).status_code == 403
        assert device.renew(client).status_code == 200
        refused = device.renew(client)
        assert_problem(refused, 429)
        assert int(refused.headers["retry-after"]) > 60
        assert other.renew(client).status_code == 200


def test_a_limit_holds_for_requests_at_once(tmp_path: Path) -> None:
    """Threat 36: a limit that is checked first and counted later would let all of them pass."""
    with serving(tmp_path, "--access", "open", "--rate-renew", "3/hour") as (running, client):
        device = RenewingDevice.provisioned(client)
        bodies = [device.request() for _ in range(12)]
        with ThreadPoolExecutor(12) as threads:
            sent = threads.map(lambda body: client.post(RENEW, json=body, timeout=60), bodies)
            codes = sorted(each.status_code for each in sent)
        assert codes == [200] * 3 + [429] * 9
        assert running.count("earlier_certificates") == 3


def test_refused_proofs_are_limited_by_address(tmp_path: Path) -> None:
    """As wrong access keys are. Other addresses, and devices with the key, are not concerned."""
    with (
        serving(tmp_path, "--access", "open", "--rate-guesses", "3/hour") as (running, client),
        running.client("127.0.0.2") as elsewhere,
    ):
        device = RenewingDevice.provisioned(client)
        codes = [device.renew(client, sign_with=new_key()).status_code for _ in range(5)]
        assert codes == [403, 403, 403, 429, 429]
        assert device.renew(elsewhere, sign_with=new_key()).status_code == 403
        assert device.renew(client).status_code == 200


def test_no_key_is_needed_where_keys_are(tmp_path: Path) -> None:
    """On a server that asks for access keys, a device needs none to renew."""
    with serving(tmp_path, "--access", "open") as (running, client):
        device = RenewingDevice.provisioned(client)
        with running.database() as database:
            issue(database, "aggregator", "validate")
    with serving(tmp_path, "--access", "keys") as (_, client):
        assert client.post("/api/v1/devices/provision", json={}).status_code == 401
        assert device.renew(client).status_code == 200
        assert client.get(device.window_path).status_code == 200


def test_the_grace_period_is_a_setting(tmp_path: Path) -> None:
    """With 0 days, a certificate that has expired cannot be renewed."""
    with serving(tmp_path, "--renewal-grace-days", "0") as (running, client):
        device = RenewingDevice.provisioned(client)
        with running.database() as database, database.write() as transaction:
            ended = datetime(2026, 1, 1, tzinfo=UTC)
            transaction.execute(update(registered_devices).values(certificate_expires_at=ended))
        assert device.renew(client).status_code == 403


def test_renewals_are_metrics(tmp_path: Path) -> None:
    """By outcome: new certificates beside those that were provisioned."""
    with serving(tmp_path) as (_, client):
        device = RenewingDevice.provisioned(client)
        body = device.request()
        client.post(RENEW, json=body)
        client.post(RENEW, json=body)
        device.renew(client, sign_with=new_key())
        device.renew(client, at=datetime(2026, 1, 1, tzinfo=UTC))
        text = client.get("/metrics").text
    for sample in (
        'sma_renewals_total{outcome="renewed"} 1.0',
        'sma_renewals_total{outcome="repeated"} 1.0',
        'sma_renewals_total{outcome="unproven"} 1.0',
        'sma_renewals_total{outcome="wrong_time"} 1.0',
        'sma_provisionings_total{outcome="provisioned"} 1.0',
    ):
        assert sample in text
