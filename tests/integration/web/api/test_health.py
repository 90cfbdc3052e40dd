"""Health, figures and certificates: what operators, probes and verifiers ask for."""

import re
import socket
import subprocess
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark_sma import __version__
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    provision_body,
    wire,
)
from tests.support.databases.frozen_proxy import FrozenProxy
from tests.support.databases.postgres import Postgres
from tests.support.devices.acts import revoke_device
from tests.support.pki.crls import certificate_serial_of, fetch_crl, fetch_crl_with
from tests.support.problems import assert_problem, assert_tells_no_internals
from tests.support.programs.running import (
    Running,
    children_of,
    frozen,
    new_serial,
    start,
    wait_until,
)

HEALTHY_AGAIN_SECONDS = 20
ACTIVITY_SECONDS = 20  # the activity of devices is added to the database every 3 seconds


def test_health_counts_devices(client: httpx2.Client, running: Running) -> None:
    Camera.provisioned(client, new_serial())
    response = client.get("/health")
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    assert response.json() == {
        "status": "healthy",
        "service": "birthmark-sma",
        "version": __version__,
        "database": "connected",
        "devices_registered": running.count("registered_devices"),
    }


def test_the_probes_say_one_word(client: httpx2.Client) -> None:
    assert client.get("/health/live").json() == {"status": "alive"}
    assert client.get("/health/ready").json() == {"status": "ready"}


@pytest.mark.parametrize(
    "path",
    [
        *("/health", "/stats", "/health/live", "/pki/root.crt", "/openapi.json", "/docs", "/redoc"),
        *("/static-offline-docs/color_scheme.js", "/dashboard/static/curve.js", "/dashboard"),
    ],
)
def test_another_method_is_405(sqlite_client: httpx2.Client, path: str) -> None:
    response = sqlite_client.post(path)
    assert_problem(response, 405)
    assert response.headers["allow"] == "GET, HEAD"


# --- the database is away


def assert_away(client: httpx2.Client, camera: Camera, *, within: float) -> None:
    """Every path that needs the database says 503 in time, and none says FAIL."""
    began = time.monotonic()
    health = client.get("/health")
    assert time.monotonic() - began < within
    assert health.status_code == 503
    assert health.json() == {
        "status": "unhealthy",
        "service": "birthmark-sma",
        "version": __version__,
        "database": "disconnected",
        "devices_registered": None,
    }
    ready = client.get("/health/ready")
    assert (ready.status_code, ready.json()) == (503, {"status": "not ready"})
    assert client.get("/health/live").status_code == 200
    assert client.get("/pki/root.crt").status_code == 200

    began = time.monotonic()
    verdict = client.post(VALIDATE, json=wire(camera.token()))
    assert time.monotonic() - began < within
    assert_problem(verdict, 503)
    assert "FAIL" not in verdict.text


def assert_back(client: httpx2.Client, camera: Camera) -> None:
    """The same server process serves again."""
    wait_until(lambda: client.get("/health").status_code == 200, HEALTHY_AGAIN_SECONDS)
    assert client.get("/health").json()["database"] == "connected"
    assert client.get("/health/ready").json() == {"status": "ready"}
    answer = client.post(VALIDATE, json=wire(camera.token())).json()
    assert answer["validation_result"] == "PASS"


def test_health_tells_that_postgresql_was_killed(own_postgres: Postgres, tmp_path: Path) -> None:
    """Threats 19 and 26. Threat 26: 503 without the error's text, and 200 once it is back.

    Threat 19: a validation meanwhile is 503 with Retry-After, never FAIL.
    """
    running = start(tmp_path / "data", own_postgres.create_database("sma"), SMA_TABLES="50")
    with running.server, running.client() as client:
        camera = Camera.provisioned(client, new_serial())
        own_postgres.kill()
        assert_away(client, camera, within=8)
        assert_problem(client.get("/stats"), 503)
        assert_problem(client.post(PROVISION, json=provision_body(new_serial())), 503)
        own_postgres.start()
        assert_back(client, camera)
        assert running.count("registered_devices") == 1
    assert own_postgres.url not in running.server.said()


def test_the_revocation_list_outlives_the_database(own_postgres: Postgres, tmp_path: Path) -> None:
    """Verifiers get the list that was the newest while the database answered."""
    running = start(tmp_path / "data", own_postgres.create_database("sma"), SMA_TABLES="50")
    with running.server, running.client() as client:
        before = fetch_crl(client)
        own_postgres.kill()
        assert fetch_crl(client) == before
        own_postgres.start()


def test_a_frozen_postgresql_is_an_outage(own_postgres: Postgres, tmp_path: Path) -> None:
    """Threats 19 and 26. Threat 19: a database that hangs is 503 in a few seconds, never FAIL."""
    url = own_postgres.create_database("sma")
    running = start(tmp_path / "data", url, SMA_ANSWER_TIMEOUT="2", SMA_TABLES="50")
    with running.server, running.client() as client:
        camera = Camera.provisioned(client, new_serial())
        pid_file = own_postgres.data_directory / "postmaster.pid"
        postmaster = int(pid_file.read_text().splitlines()[0])
        with frozen([postmaster, *children_of(postmaster)]):
            assert_away(client, camera, within=8)
        assert_back(client, camera)


@pytest.mark.parametrize("path", ["/health", "/health/ready"])
def test_connections_that_went_bad_are_no_outage(
    postgres_url: str, tmp_path: Path, path: str
) -> None:
    """They seem open until the next statement. A probe then opens a new one."""
    with FrozenProxy(postgres_url) as proxy:
        running = start(tmp_path / "data", proxy.url, SMA_TABLES="50")
        with running.server, running.client() as client:
            # Both writers have written, so no probing write is under way.
            camera = Camera.provisioned(client, new_serial())
            assert client.post(VALIDATE, json=wire(camera.token())).status_code == 200
            for _ in range(3):
                assert client.get(path).status_code == 200
                proxy.break_connections()
                assert client.get(path).status_code == 200


# --- figures


def test_stats_are_those_of_the_audit_trail(client: httpx2.Client, running: Running) -> None:
    """Threats 15 and 25. Threat 15: failures count, so that the success rate is the true one."""
    camera = Camera.provisioned(client, new_serial(), device_family="Counted")
    for _ in range(3):
        client.post(VALIDATE, json=wire(camera.token()))
    client.post(VALIDATE, json=wire(camera.token(nuc_hash=bytes(32))))
    client.post(VALIDATE, json=wire(camera.token()) | {"table_id": 2_500})

    rows = running.rows("SELECT validation_result, reason, device_serial FROM validation_history")
    passes = Counter(serial for result, _, serial in rows if result == "PASS")
    busiest = sorted(passes.items(), key=lambda item: (-item[1], item[0]))[:10]

    def has_activity() -> bool:
        top = client.get("/stats").json()["top_devices"]
        return [(each["device_serial"], each["count"]) for each in top] == busiest

    wait_until(has_activity, ACTIVITY_SECONDS)
    stats = client.get("/stats").json()
    assert stats["total_devices"] == running.count("registered_devices")
    assert stats["recent_validations_24h"] == {
        result: sum(row[0] == result for row in rows) for result in ("PASS", "FAIL")
    }
    reasons = {row[1] for row in rows if row[0] == "FAIL"}
    assert stats["fail_reasons_24h"] == {
        reason: sum(row[1] == reason for row in rows) for reason in reasons
    }
    assert stats["devices_by_family"]["Counted"] >= 1
    assert sum(stats["devices_by_family"].values()) == stats["total_devices"]
    assert stats["key_tables"] == 2_500
    since, until = (datetime.fromisoformat(stats[name]) for name in ("since", "until"))
    assert stats["since"].endswith("Z")
    assert timedelta(hours=24) <= until - since < timedelta(hours=24, minutes=1)
    hours = stats["validations_per_hour"]
    assert len(hours) == 24
    assert until - datetime.fromisoformat(hours[-1]["hour"]) < timedelta(hours=1)
    for result in ("PASS", "FAIL"):
        assert sum(hour[result] for hour in hours) == stats["recent_validations_24h"][result]
    assert abs(datetime.now(UTC) - until) < timedelta(minutes=1)


# --- certificates


def test_ca_certificates_are_der(client: httpx2.Client) -> None:
    for path, name in (
        ("/pki/root.crt", "Simulated Mfg Root CA"),
        ("/pki/intermediate.crt", "Simulated Mfg Intermediate CA"),
    ):
        response = client.get(path)
        assert response.headers["content-type"] == "application/pkix-cert"
        certificate = x509.load_der_x509_certificate(response.content)
        assert f"CN={name}" in certificate.subject.rfc4514_string()


def test_openssl_verifies_the_crl_and_refuses_what_it_lists(tmp_path: Path) -> None:
    """Threat 6: the CRL names a revoked certificate, and OpenSSL refuses it for that."""
    running = start(tmp_path / "data", "sqlite:", SMA_TABLES="50")
    with running.server, running.client() as client:
        good, bad = (Camera.provisioned(client, serial) for serial in ("good", "bad"))
        with running.database() as database:
            revoke_device(database, "bad", "key_compromise")
        crl = fetch_crl_with(client, certificate_serial_of(bad.response), within=5)
    assert crl.next_update_utc is not None
    assert crl.next_update_utc > datetime.now(UTC)
    pem = {
        "crl": crl.public_bytes(Encoding.PEM).decode(),
        "intermediate": good.response["certificate_chain"][0],
        "root": good.response["certificate_chain"][1],
        "good": good.response["device_certificate"],
        "bad": bad.response["device_certificate"],
    }
    for name, text in pem.items():
        (tmp_path / name).write_text(text)

    def openssl(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = ["openssl", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    verified = openssl("crl", "-in", "crl", "-CAfile", "intermediate", "-noout")
    assert "verify OK" in verified.stdout + verified.stderr
    path = ("-CAfile", "root", "-untrusted", "intermediate", "-CRLfile", "crl", "-crl_check")
    assert openssl("verify", *path, "good").stdout == "good: OK\n"
    refused = openssl("verify", *path, "bad")
    assert refused.returncode != 0
    assert "certificate revoked" in refused.stderr


# --- documentation


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_documentation_asks_no_other_host(sqlite_client: httpx2.Client, page: str) -> None:
    """Every script, style and picture comes from this server, and is there."""
    response = sqlite_client.get(page)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    references = re.findall(r"""(?:src|href|spec-url)=["']([^"']+)["']""", response.text)
    assert len(references) >= 2
    for reference in references:
        assert reference.startswith("/"), reference
        assert not reference.startswith("//"), reference
        asset = sqlite_client.get(urljoin(page, reference))
        assert asset.status_code == 200, reference
        assert asset.content
    assert not re.findall(r"""["'(]https?://""", response.text)


def test_the_front_door_leads_to_the_documentation(sqlite_client: httpx2.Client) -> None:
    response = sqlite_client.get("/")
    assert response.status_code == 307
    assert response.headers["location"] == "/docs"


def test_no_other_site_may_read_answers(sqlite_client: httpx2.Client) -> None:
    """No page of another site gets leave to read from here, with or without credentials."""
    response = sqlite_client.get("/stats", headers={"Origin": "https://elsewhere.example"})
    assert not [name for name in response.headers if name.startswith("access-control-")]


def test_no_header_names_the_software(sqlite_client: httpx2.Client) -> None:
    response = sqlite_client.get("/health")
    assert "server" not in response.headers
    assert_tells_no_internals(response.text.replace("birthmark-sma", ""))


def test_headers_are_bounded(running_on_sqlite: Running) -> None:
    """Threat 16: a header of megabytes is refused while it arrives, not stored up and obeyed."""
    place = urlsplit(running_on_sqlite.server.url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
        answer = b""
        try:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: ")
            for _ in range(32):
                connection.sendall(b"a" * 65_536)
            connection.sendall(b"\r\nConnection: close\r\n\r\n")
            answer = connection.recv(65_536)
        except ConnectionError:
            pass
    assert b" 200 " not in answer.partition(b"\r\n")[0]
