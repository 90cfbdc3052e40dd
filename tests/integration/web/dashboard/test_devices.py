"""The pages of devices: finding one among many, and reading what is known of it."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import unescape
from itertools import count

import httpx2
import pytest
from cryptography import x509

from birthmark_sma.authority.acts.actor import Actor, Source
from birthmark_sma.authority.devices import states
from birthmark_sma.authority.devices.revocation import change_device
from birthmark_sma.authority.devices.store import Device, add_devices
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.engine import Database
from tests.integration.web.dashboard.conftest import PAGE
from tests.integration.web.dashboard.test_rendering import assert_strict
from tests.support.authorities import execute
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.devices.actors import ACTOR
from tests.support.programs.running import Running, new_serial, wait_until

LIST = "/dashboard/devices"
HOSTILE = "<script>alert(1)</script>\"'&amp;{{7*7}}/../?a=b#c"
numbers = count()


def register(database: Database, serials: list[str], **fields: object) -> None:
    """Put devices into the register, without a certificate that could be read."""
    with database.write() as transaction:
        add_devices(transaction, [_device(serial, **fields) for serial in serials])


def _device(serial: str, **fields: object) -> Device:
    mark = f"{new_serial()}-{next(numbers)}"
    values: dict[str, object] = {
        "device_serial": serial,
        "nuc_hash": mark.encode(),
        "table_assignments": (1, 2, 3),
        "device_certificate": "none",
        "certificate_serial": mark,
        "device_public_key": "none",
        "public_key_fingerprint": mark.encode(),
        "device_family": "Test",
        "app_version": None,
        "status": DeviceStatus.ACTIVE,
        "provisioning_id": mark,
        "provisioned_at": datetime.now(UTC),
        "table_epochs": (0, 0, 0),
    }
    return Device(**values | fields)  # type: ignore[arg-type]


def listed(page: httpx2.Response) -> list[str]:
    """The serials of a list, as they stand in it."""
    assert page.status_code == 200, page.text
    return [unescape(each) for each in re.findall(r'/device\?serial=[^"]*">([^<]*)<', page.text)]


def every_page(client: httpx2.Client, **query: str) -> list[str]:
    """The serials of all pages, gone through by their links."""
    page = client.get(LIST, params=query)
    found = listed(page)
    while following := re.search(r'rel="next" href="([^"]+)"', page.text):
        page = client.get(unescape(following.group(1)))
        found += listed(page)
    return found


def test_pages_bring_every_device_once(running: Running) -> None:
    start = new_serial("page")
    serials = [f"{start}-{number:03}" for number in range(120)]
    with running.database() as database:
        register(database, serials)
    with running.client(headers=PAGE) as client:
        assert every_page(client, q=start) == serials
        everything = every_page(client)
        assert set(serials) <= set(everything)
        assert len(everything) == len(set(everything))


def test_spaces_hide_no_device(running: Running) -> None:
    """A serial may have several, and old ones begin with them: no page is skipped for it."""
    name = new_serial("space")
    family = f" {name} "
    serials = [f" zzz-{name}-{number:02}" for number in range(50)] + [name]
    with running.database() as database:
        register(database, serials, device_family=family)
    with running.client(headers=PAGE) as client:
        assert every_page(client, family=family) == serials
        spaced = f"two  {new_serial()}"
        camera = Camera.provisioned(client, spaced)
        page = client.get("/dashboard/device", params={"serial": spaced})
        assert page.status_code == 200
        assert client.post(VALIDATE, json=wire(camera.token())).status_code == 200
        found = client.get("/dashboard/validations", params={"device": spaced})
        assert "PASS</span>" in found.text


def test_beginnings_are_taken_literally(running: Running) -> None:
    """No character is a pattern: neither LIKE's nor those at the ends of the alphabet."""
    start = new_serial("lit")
    serials = [f"{start}%a", f"{start}_b", f"{start}\\c", f"{start}\u00e9", f"{start}\U0001f4f7"]
    with running.database() as database:
        register(database, serials)
    with running.client(headers=PAGE) as client:
        assert sorted(every_page(client, q=start)) == sorted(serials)
        for serial in serials:
            assert every_page(client, q=serial[: len(start) + 1]) == [serial]


def test_any_spelling_of_a_name_finds_it(running: Running) -> None:
    """Threat 40: the list by how a name begins, a page by the whole of it."""
    start = new_serial("Case")
    serials = [f"{start}-1", f"{start.upper()}-2", f"{start.lower()}-3"]
    with running.client(headers=PAGE) as client:
        for serial in serials:
            Camera.provisioned(client, serial)
        assert every_page(client, q=start.upper()) == serials
        page = client.get("/dashboard/device", params={"serial": serials[0].upper()})
        assert page.status_code == 200
        assert serials[0] in page.text
        assert client.get("/dashboard/device", params={"serial": start}).status_code == 404


def test_filters(running: Running) -> None:
    start = new_serial("filter")
    family = f"Family {start} & <b>"
    with running.database() as database:
        register(database, [f"{start}-1", f"{start}-2"], device_family=family)
        register(database, [f"{start}-3"], device_family=family, status=DeviceStatus.SUSPENDED)
        register(database, [f"{start}-4"], status=DeviceStatus.REVOKED)
    with running.client(headers=PAGE) as client:
        assert every_page(client, family=family) == [f"{start}-{n}" for n in (1, 2, 3)]
        assert every_page(client, family=family, status="suspended") == [f"{start}-3"]
        assert every_page(client, q=start, status="revoked") == [f"{start}-4"]
        assert every_page(client, q=start, family=family, status="active") == [
            f"{start}-1",
            f"{start}-2",
        ]
        assert "No device is like that" in client.get(LIST, params={"family": "none"}).text
        assert f"{start}-3" in every_page(client, status="suspended")


def test_lists_can_be_sorted(running: Running) -> None:
    """In both directions, page by page, and by time where an index serves it."""
    start = new_serial("sort")
    old = datetime(2001, 1, 1, tzinfo=UTC)
    serials = [f"{start}-{number:03}" for number in range(60)]
    with running.database() as database:
        for number, serial in enumerate(serials[:3]):
            register(database, [serial], provisioned_at=old + timedelta(days=2 - number))
        register(database, serials[3:], provisioned_at=old + timedelta(days=9))
    down = {"direction": "descending"}
    with running.client(headers=PAGE) as client:
        assert every_page(client, q=start, sort="serial", **down) == serials[::-1]
        everything = every_page(client)
        assert every_page(client, sort="serial", **down) == everything[::-1]
        by_time = every_page(client, sort="provisioned")
        assert [each for each in by_time if each.startswith(start)] == [
            *reversed(serials[:3]),
            *serials[3:],
        ]
        assert every_page(client, sort="provisioned", **down) == by_time[::-1]
        assert set(by_time) == set(everything)
        page = client.get(LIST, params={"sort": "provisioned", **down}).text
        assert re.findall(r'aria-sort="(\w+)"><a[^>]*>(\w+)', page) == [
            ("descending", "Provisioned")
        ]
        gone = client.get(LIST, params={"sort": "provisioned", "after": f"{start}-none"})
        assert "No device comes behind that" in gone.text


def test_the_latest_change_of_status_is_first(running: Running) -> None:
    start = new_serial("change")
    moment = datetime(2038, 1, 1, tzinfo=UTC)
    with running.database() as database:
        for number in (1, 3, 2):
            register(
                database,
                [f"{start}-{number}"],
                status=DeviceStatus.RETIRED,
                status_changed_at=moment + timedelta(days=number),
            )
        unknown = [f"{start}-unknown-{number:02}" for number in range(60)]
        register(database, unknown, status=DeviceStatus.RETIRED)
    with running.client(headers=PAGE) as client:
        found = every_page(client, status="retired", sort="changed", direction="descending")
        assert found[:3] == [f"{start}-{number}" for number in (3, 2, 1)]
        assert [each for each in found if each in unknown] == unknown[::-1], (
            "the last, on two pages"
        )
        found = every_page(client, status="retired", sort="changed")
        assert [each for each in found if each in unknown] == unknown
        assert found[-1] in unknown
        assert sorted(found) == sorted(every_page(client, status="retired"))


def test_the_list_counts_by_status(running: Running) -> None:
    with running.database() as database:
        register(database, [new_serial("count")], status=DeviceStatus.RETIRED)
    numbers = dict(running.rows("SELECT status, count(*) FROM registered_devices GROUP BY status"))
    with running.client(headers=PAGE) as client:
        page = client.get(LIST, params={"status": "retired"}).text
    told = dict(re.findall(r"<a href=\"[^\"]+\"[^>]*>(\w+) ([\d,]+)</a></li>", page))
    assert told == {
        "all": f"{sum(numbers.values()):,}",
        **{each.value: f"{numbers.get(each.value, 0):,}" for each in DeviceStatus},
    }
    assert 'aria-current="true">retired' in page


def test_devices_are_found_by_their_certificate(running: Running) -> None:
    with running.client(headers=PAGE) as client:
        serial = new_serial()
        Camera.provisioned(client, serial)
        page = client.get("/dashboard/device", params={"serial": serial}).text
        number = re.findall(r"Serial number</dt><dd class=\"mono\">([0-9a-f]+)<", page)[0]
        assert listed(client.get(LIST, params={"q": number.upper()})) == [serial]
        identity = re.findall(r"Provisioning id</dt><dd class=\"mono\">([^<]+)<", page)[0]
        assert listed(client.get(LIST, params={"q": identity})) == [serial]


@pytest.mark.parametrize(
    "query",
    [
        {"status": "bad"},
        {"q": "a" * 200},
        {"q": "a\nb"},
        {"after": "\x00"},
        {"sort": "activity"},
        {"direction": "up"},
        {"sort": "provisioned", "family": "Test"},
        {"sort": "provisioned", "status": "revoked"},
        {"sort": "changed"},
        {"sort": "changed", "status": "active"},
        {"sort": "changed", "status": "suspended", "q": "a"},
    ],
)
def test_what_cannot_be_meant_is_told(running_on_sqlite: Running, query: dict[str, str]) -> None:
    with running_on_sqlite.client(headers=PAGE) as client:
        answer = client.get(LIST, params=query)
        assert answer.status_code == 422
        assert_strict(answer)


def test_a_hostile_serial_stays_text(running: Running) -> None:
    """Threat 22: in lists, pages, attributes, URLs and problems."""
    serial = HOSTILE[:48] + new_serial("")[:14]
    with running.client(headers=PAGE) as client:
        camera = Camera.provisioned(client, serial, device_family=HOSTILE[:50])
        client.post(VALIDATE, json=wire(camera.token()))
        assert listed(client.get(LIST, params={"q": serial})) == [serial]
        assert listed(client.get(LIST, params={"q": serial, "family": HOSTILE[:50]})) == [serial]
        for path, query in (
            (LIST, {"q": serial}),
            ("/dashboard/device", {"serial": serial}),
            ("/dashboard/device", {"serial": "<script>alert(2)</script>"}),
            ("/dashboard/validations", {"device": serial}),
            ("/dashboard", {"range": "<script>"}),
        ):
            page = client.get(path, params=query)
            assert_strict(page)
            assert "<script>alert" not in page.text
            heading = unescape(re.findall(r"<h1>(.*?)</h1>", page.text)[0])
            assert "49" not in heading.replace(serial, "")  # which has digits of its own
            assert serial not in re.findall(r"<title>(.*?)</title>", page.text)[0]
        validations = client.get("/dashboard/validations", params={"device": serial})
        assert listed(validations) == [serial]


def test_a_device_and_its_certificate(running: Running) -> None:
    serial = new_serial()
    with running.client(headers=PAGE) as client:
        camera = Camera.provisioned(client, serial)
        client.post(VALIDATE, json=wire(camera.token()))

        def shown() -> httpx2.Response:
            return client.get("/dashboard/device", params={"serial": serial})

        wait_until(lambda: "1 in all" in shown().text, 20)  # passes are counted after some seconds
        page = shown()
        assert_strict(page)
        assert f"CN={serial}" in page.text
        assert "Simulated Mfg Root CA" in page.text
        assert "genuine" in page.text
        url = unescape(re.findall(r'href="(/dashboard/device/certificate[^"]+)"', page.text)[0])
        answer = client.get(url)
        assert serial not in answer.headers["content-disposition"]
        chain = x509.load_pem_x509_certificates(answer.content)
        assert len(chain) == 3
        for certificate, issuer in zip(chain, [*chain[1:], chain[-1]], strict=True):
            certificate.verify_directly_issued_by(issuer)


STRANGE_ACTOR = Actor("<the> operator", Source.COMMAND_LINE)


def test_who_changed_a_device_and_why(running_on_sqlite: Running) -> None:
    """On its page and in the list: status, reason, time and actor."""
    serial = new_serial()
    since = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    with running_on_sqlite.client(headers=PAGE) as client:
        Camera.provisioned(client, serial)
        page = client.get("/dashboard/device", params={"serial": serial})
        assert "On the list" not in page.text
        with running_on_sqlite.database() as database:
            change_device(database, serial, states.retire(STRANGE_ACTOR))
            listed = client.get("/dashboard/devices", params={"q": serial, "status": "retired"})
            change = states.revoke(replace(STRANGE_ACTOR, name="another"), "key_compromise", since)
            change_device(database, serial, change)
        page = client.get("/dashboard/device", params={"serial": serial})
        [newest, *_] = re.findall(r"/dashboard/act\?id=\d+", page.text)
        act = client.get(newest)
        found = client.get("/dashboard/acts", params={"subject": serial, "kind": "device"})
        exported = client.get("/dashboard/acts.jsonl", params={"actor": STRANGE_ACTOR.name})
        missing = client.get("/dashboard/act", params={"id": "999999"})
    assert missing.status_code == 404
    assert_strict(found)
    assert found.text.count("/dashboard/act?id=") == 2
    assert "&lt;the&gt; operator" in found.text
    assert_strict(act)
    for text in ("device.revoke", "another", "key_compromise", "cessation_of_operation"):
        assert text in act.text
    assert serial in [json.loads(line)["subject"] for line in exported.text.splitlines()]
    assert_strict(listed)
    for text in (serial, "retired", "cessation_of_operation", "&lt;the&gt; operator"):
        assert text in listed.text
    assert_strict(page)
    for text in ("Revoked", "key_compromise", "another", "2026-01-02 03:04:05 UTC"):
        assert text in page.text


def suspend(database: Database, serial: str) -> None:
    change_device(database, serial, states.suspend(ACTOR))


def revoke(database: Database, serial: str) -> None:
    change_device(database, serial, states.revoke(ACTOR, "superseded"))


def retire(database: Database, serial: str) -> None:
    change_device(database, serial, states.retire(ACTOR))


def expire(database: Database, serial: str) -> None:
    """Let the certificate have ended longer ago than the grace period of 90 days."""
    execute(
        database,
        "UPDATE registered_devices SET certificate_expires_at = :end WHERE device_serial = :serial",
        end=f"{datetime.now(UTC) - timedelta(days=91):%Y-%m-%d %H:%M:%S.%f+00:00}",
        serial=serial,
    )


def list_by_hand(database: Database, serial: str) -> None:
    """Put a device's certificate on the list of revoked ones, as only an operator's SQL can."""
    execute(
        database,
        "INSERT INTO revoked_certificates (certificate_serial, device_serial, revoked_at,"
        " revocation_reason) SELECT certificate_serial, device_serial, provisioned_at,"
        " 'superseded' FROM registered_devices WHERE device_serial = :serial",
        serial=serial,
    )


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (
            suspend,
            "it is suspended. To end the suspension, type <code>sma devices rein",
        ),
        (revoke, "it is revoked"),
        (retire, "it is retired"),
        (expire, "its certificate expired more than 90 days ago."),
        (list_by_hand, "its certificate is on the list of revoked certificates"),
    ],
)
def test_why_a_device_cannot_renew(
    running_on_sqlite: Running, act: Callable[[Database, str], None], reason: str
) -> None:
    """Its page promises no window."""
    serial = new_serial()
    with running_on_sqlite.client(headers=PAGE) as client:

        def renews() -> str:
            page = client.get("/dashboard/device", params={"serial": serial})
            assert_strict(page)
            [told] = re.findall(r"<dt>Renews</dt><dd>(.*?)</dd>", page.text, re.S)
            return str(told)

        Camera.provisioned(client, serial)
        assert renews().startswith("between ")
        with running_on_sqlite.database() as database:
            act(database, serial)
        assert renews().startswith(f"no, because {reason}")


def test_devices_are_counted_by_status(running_on_sqlite: Running) -> None:
    """A suspended device is not revoked. Its certificate is on hold, and so on the list."""
    with running_on_sqlite.client(headers=PAGE) as client:

        def counts() -> Counter[str]:
            page = client.get("/dashboard/certificates")
            assert_strict(page)
            told = re.findall(r"([\d,]+) (active|suspended|revoked|retired)\b", page.text)
            return Counter({status: int(n.replace(",", "")) for n, status in told})

        before = counts()
        for act in (None, suspend, suspend, suspend, revoke, revoke, retire):
            serial = new_serial()
            Camera.provisioned(client, serial)
            if act is not None:
                with running_on_sqlite.database() as database:
                    act(database, serial)
        added = Counter(active=1, suspended=3, revoked=2, retired=1)
        assert counts() == before + added


def test_an_unknown_device(running_on_sqlite: Running) -> None:
    with running_on_sqlite.client(headers=PAGE) as client:
        assert client.get("/dashboard/device", params={"serial": "none"}).status_code == 404
        assert client.get("/dashboard/device").status_code == 422
        missing = client.get("/dashboard/device/certificate", params={"serial": "none"})
        assert missing.status_code == 404
