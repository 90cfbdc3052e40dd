"""Key tables, certificates and callers: what these pages tell, and what they never do."""

import re
from html import unescape

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from tests.integration.web.dashboard.conftest import PAGE, Guarded
from tests.integration.web.dashboard.test_rendering import assert_strict
from tests.support.access_keys import issue, secret_of
from tests.support.authorities import execute
from tests.support.cameras.camera import Camera
from tests.support.programs.running import Running, new_serial, wait_until


def test_every_table_has_its_cell(running: Running) -> None:
    with running.client(headers=PAGE) as client:
        Camera.provisioned(client, new_serial())
        # The count says that it was done as soon as it begins.
        link = '"/dashboard/tables?table='
        wait_until(lambda: link in client.get("/dashboard/tables").text, 30)
        page = client.get("/dashboard/tables").text
        assert "Devices were counted" in page
        cells = re.findall(r'fill-opacity="([\d.]+)"><title>Table (\d+):', page)
        assert [int(number) for _, number in cells] == list(range(2_500))
        assert all(0 < float(strength) <= 1 for strength, _ in cells)
        assert "Smallest crowds" in page
        table = re.findall(r'/dashboard/tables\?table=(\d+)"', page)[0]
        one = client.get("/dashboard/tables", params={"table": table}).text
        assert re.search(r"Crowd</dt><dd>[1-9]", one)
        missing = client.get("/dashboard/tables", params={"table": "99999"})
        assert missing.status_code == 200
        assert "no such table" in missing.text


def test_open_overlaps_are_listed(running: Running) -> None:
    """With the time until which two keys of a table are accepted."""
    with running.client(headers=PAGE) as client, running.database() as database:
        assert "Rotated tables" not in client.get("/dashboard/tables").text
        try:
            execute(
                database,
                "INSERT INTO earlier_table_keys SELECT table_id, 0, master_key, kek_id, created_at,"
                " '2099-01-02 03:04:05.000000+00:00' FROM key_tables WHERE table_id = 7",
            )
            page = client.get("/dashboard/tables", params={"table": "7"}).text
        finally:
            execute(database, "DELETE FROM earlier_table_keys")
        assert "Rotated tables" in page
        assert page.count("2099-01-02") >= 2
        assert '<a href="/dashboard/tables?table=7">7</a>' in page
        assert "Epoch" in page


@pytest.mark.parametrize("query", ["by=colour", "table=x", "table=1.5"])
def test_what_cannot_be_meant_is_told(running_on_sqlite: Running, query: str) -> None:
    with running_on_sqlite.client(headers=PAGE) as client:
        assert client.get(f"/dashboard/tables?{query}").status_code == 422


def test_certificates_are_those_that_are_downloaded(guarded: Guarded) -> None:
    """With a session too, which the paths of /pki do not know."""
    with guarded.browser(guarded.keys["admin"]) as browser:
        page = browser.get("/dashboard/certificates").text
        plain = unescape(re.sub(r"<wbr>|\s", "", page))
        for url in re.findall(r'href="(/dashboard/certificates/download[^"]+)"', page):
            answer = browser.get(url)
            assert answer.status_code == 200
            assert answer.headers["content-disposition"].startswith("attachment;")
            if url.endswith("crl"):
                x509.load_pem_x509_crl(answer.content)
                continue
            certificate = x509.load_pem_x509_certificate(answer.content)
            assert certificate.fingerprint(SHA256()).hex(":") in plain
        assert browser.get("/dashboard/certificates/download").status_code == 422
        private = browser.get("/dashboard/certificates/download?name=key")
        assert private.status_code == 422
        assert "PRIVATE" not in page


def test_callers_are_shown_without_their_secrets(guarded: Guarded) -> None:
    name = "<b>newsroom & sons</b>"
    key = issue(guarded.database, name, "validate", rate_limit="7/second", disclosure="none")
    try:
        with guarded.browser(guarded.keys["admin"]) as browser:
            page = browser.get("/dashboard/callers")
            assert_strict(page)
            text = unescape(page.text)
            assert name in text
            assert name not in page.text
            assert "7/second" in text
            assert "tells none" in text
            assert "never" in text
            for secret in (*guarded.keys.values(), secret_of(key)):
                assert secret[-52:] not in page.text
            assert key.key.secret_digest is not None
            assert key.key.secret_digest.hex() not in page.text
    finally:
        execute(guarded.database, "DELETE FROM access_keys WHERE key_id = :id", id=key.key.key_id)


def test_open_access_is_told(running_on_sqlite: Running) -> None:
    with running_on_sqlite.client(headers=PAGE) as client:
        page = client.get("/dashboard/callers").text
        assert "Access is open" in page
        assert "no limit" in page
