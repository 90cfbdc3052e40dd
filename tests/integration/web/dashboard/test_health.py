"""The page of health: conditions, findings, and an authority whose database is away."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path

from birthmark_sma.storage.portable_sql import as_sqlite_text
from tests.integration.web.dashboard.conftest import PAGE, Guarded, sign_in
from tests.integration.web.dashboard.test_rendering import assert_strict
from tests.support.access_keys import create_known_key
from tests.support.authorities import execute
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.databases.postgres import Postgres
from tests.support.programs.running import Running, new_serial, start, wait_until

HEALTH, FINDINGS = "/dashboard/health", "/dashboard/health/findings"


def text(page: str) -> str:
    """Return the text of a page, without its tags."""
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))


def test_a_reader_sees_findings_with_remedies(guarded: Guarded) -> None:
    """And when they were made. The page asks for them by itself, or waits on request."""
    serial = new_serial("expires")
    reader = guarded.keys["read"]
    with guarded.running.client(
        headers={"Authorization": f"Bearer {guarded.keys['provision']}"}
    ) as c:
        Camera.provisioned(c, serial)
    ends = datetime.now(UTC) + timedelta(days=3)
    execute(
        guarded.database,
        "UPDATE registered_devices SET certificate_expires_at = :ends WHERE device_serial = :s",
        ends=as_sqlite_text(ends) if guarded.database.dialect_name == "sqlite" else ends,
        s=serial,
    )
    with guarded.browser(reader) as browser:
        part = browser.get(FINDINGS, headers={"HX-Request": "true"})
        assert part.status_code == 200
        assert "<html" not in part.text
        page = browser.get(HEALTH, params={"doctor": "run"})
        assert_strict(page)
        told = text(page.text)
        assert re.search(r"Examined at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC ?, in \d+\.\d s", told)
        assert "device certificates warning" in told
        assert "sma devices list --expiring-within" in told
        assert "intermediate" in told
        assert "None is published yet" not in told
        assert "hx-get" not in browser.get(HEALTH).text, "recent findings are there at once"


def test_a_key_for_metrics_does_not_open_it(guarded: Guarded) -> None:
    headers = {"Authorization": f"Bearer {guarded.keys['monitor']}"}
    with guarded.running.client(headers=headers) as client:
        assert client.get(HEALTH).status_code == 403
        assert client.get(FINDINGS).status_code == 403


def test_conditions_are_evaluated_from_the_metrics(running_on_sqlite: Running) -> None:
    """Nothing but failures comes: the page says so before it fires."""
    running = running_on_sqlite
    with running.client(headers=PAGE) as client:
        camera = Camera.provisioned(client, new_serial())
        token = wire(camera.token())
        token["encrypted_nuc_hash"] = "00" * 48

        def holds() -> bool:
            for _ in range(20):
                assert client.post(VALIDATE, json=token).json()["validation_result"] == "FAIL"
            return "SmaRepeats" in client.get(HEALTH).text

        wait_until(holds, 60)
        told = text(client.get(HEALTH).text)
        assert "Camera tokens come again and again (replayed)" in told
        assert re.search(r"has held for \d+ seconds?, fires after 15m", told)
        assert "docs/operate/runbooks.md#smarepeats" in told


def test_one_examination_serves_all_who_ask(running: Running) -> None:
    """Ten at once wait for one run, and pages are answered meanwhile."""

    def ask(_: int) -> str:
        with running.client(headers=PAGE) as client:
            page = client.get(HEALTH, params={"doctor": "run"})
            assert page.status_code == 200
            [at] = re.findall(r"Examined at <time datetime=\"([^\"]+)\"", page.text)
            return str(at)

    with ThreadPoolExecutor(10) as threads:
        assert len(set(threads.map(ask, range(10)))) <= 2


def test_it_opens_while_the_database_is_away(own_postgres: Postgres, tmp_path: Path) -> None:
    """Where no session must be looked up: it says what is away, and the doctor says what to do."""
    running = start(tmp_path / "data", own_postgres.create_database("ill"))
    try:
        with running.client(headers=PAGE) as client:
            assert client.get(HEALTH).status_code == 200
            own_postgres.kill()
            page = client.get(HEALTH)
            assert page.status_code == 200
            assert_strict(page)
            told = text(page.text)
            assert "away It does not answer" in told
            assert "Not known while the database is away" in told
            assert not re.search(r"psycopg|sqlalchemy|Traceback|postgresql://", page.text)
            began = time.monotonic()
            found = text(client.get(HEALTH, params={"doctor": "run"}).text)
            assert time.monotonic() - began < 60
            assert "database critical" in found
            wait_until(lambda: "SmaDatabaseDown" in client.get(HEALTH).text, 40)
            own_postgres.start()
            wait_until(lambda: "SmaDatabaseDown" not in client.get(HEALTH).text, 60)
            assert "PostgreSQL answered in" in text(client.get(HEALTH).text)
    finally:
        running.server.close()


def test_exports_of_a_key_that_discloses_no_serial(guarded: Guarded) -> None:
    """Whatever its link asks for, of validations and of acts."""
    options = ("--scope", "read", "--disclosure", "family")
    nameless = create_known_key(guarded.running, new_serial("analyst"), *options)
    serial = new_serial("hidden")
    provision = {"Authorization": f"Bearer {guarded.keys['provision']}"}
    validate = {"Authorization": f"Bearer {guarded.keys['validate']}"}
    with guarded.running.client() as client:
        client.headers.update(provision)
        camera = Camera.provisioned(client, serial)
        client.headers.update(validate)
        assert client.post(VALIDATE, json=wire(camera.token())).status_code == 200
    with guarded.running.client() as browser:
        browser.headers.update(PAGE)
        assert sign_in(browser, nameless).status_code == 303
        for query in ({"device": serial}, {"device": serial, "serials": "yes"}):
            rows = browser.get("/dashboard/validations.jsonl", params=query).text
            assert rows.count('"genuine"') == 1
            assert serial not in rows
