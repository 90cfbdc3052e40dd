"""OCSP over HTTP: both methods, what caches are told, what is refused, and who asks."""

import base64
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID

from tests.support.access_keys import bearer, start_with_keys
from tests.support.cameras.camera import Camera
from tests.support.databases.frozen_proxy import FrozenProxy
from tests.support.databases.postgres import Postgres
from tests.support.pki.certificate_verifiers import lint_certificate
from tests.support.pki.chains import certificate_serial
from tests.support.pki.crls import certificate_serial_of
from tests.support.pki.ocsp import (
    NONCE,
    PATH,
    REQUEST_TYPE,
    RESPONSE_TYPE,
    ask,
    get_path,
    joined,
    lint_response,
    post,
    request_for,
    status_of,
    verified,
)
from tests.support.problems import assert_problem
from tests.support.programs.running import (
    Running,
    children_of,
    frozen,
    new_serial,
    start,
    wait_until,
)

SHOWS_SECONDS = 2.0
"""The contract: a revocation shows within this time of its commit, on every process."""
KNOWN = ocsp.OCSPCertStatus
MALFORMED = ocsp.OCSPResponseStatus.MALFORMED_REQUEST


def issuer_of(client: httpx2.Client) -> x509.Certificate:
    """Return the certificate of the issuer, as verifiers get it."""
    return x509.load_der_x509_certificate(client.get("/pki/intermediate.crt").content)


def test_get_and_post(client: httpx2.Client) -> None:
    """Both give the same response, at the URL with the slash and without it."""
    issuer = issuer_of(client)
    number = certificate_serial_of(Camera.provisioned(client, new_serial()).response)
    assert ask(client, issuer, number).certificate_status is KNOWN.GOOD
    request = request_for(issuer, number)
    answer = post(client, request)
    text = base64.b64encode(request).decode()
    for path in (get_path(request), PATH + quote(text), PATH + text.rstrip("=")):
        assert client.get(path).content == answer.content
    assert post(client, request, PATH.rstrip("/")).content == answer.content
    head = client.head(get_path(request))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.content))
    assert lint_response(answer.content) == []


def test_the_responder_s_certificate(client: httpx2.Client) -> None:
    """It is in the response, and pkilint finds nothing."""
    issuer = issuer_of(client)
    read = ask(client, issuer, certificate_serial("nobody"), algorithm=hashes.SHA256())
    assert read.certificate_status is KNOWN.UNKNOWN
    assert lint_certificate(read.certificates[0]) == []


def test_what_caches_are_told(client: httpx2.Client) -> None:
    """RFC 9919, section 6.2: five minutes, the times of the response, and 304 while it is sent."""
    issuer = issuer_of(client)
    number = certificate_serial_of(Camera.provisioned(client, new_serial()).response)
    path = get_path(request_for(issuer, number))
    answer = client.get(path)
    read = verified(answer.content, issuer)
    assert answer.headers["cache-control"] == ("max-age=300, public, no-transform, must-revalidate")
    assert parsedate_to_datetime(answer.headers["last-modified"]) == read.this_update_utc
    assert parsedate_to_datetime(answer.headers["expires"]) == read.next_update_utc
    again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == answer.headers["etag"]
    assert client.get(path, headers={"If-None-Match": '"another"'}).status_code == 200
    unknown = client.get(get_path(request_for(issuer, certificate_serial("nobody"))))
    assert unknown.headers["cache-control"].startswith("max-age=")
    assert int(unknown.headers["cache-control"][8:].partition(",")[0]) <= 60


def test_errors_of_ocsp(sqlite_client: httpx2.Client) -> None:
    """They have the status 200 and are not kept by caches."""
    nothing = sqlite_client.get(PATH)
    for answer in (
        nothing,
        sqlite_client.get(f"{PATH}MAAA"),
        sqlite_client.get(f"{PATH}MAA=A"),
        post(sqlite_client, b""),
        post(sqlite_client, b"0" * 8_192),
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"] == RESPONSE_TYPE
        assert answer.headers["cache-control"] == "no-store"
        assert status_of(answer.content) is MALFORMED
    root = x509.load_der_x509_certificate(sqlite_client.get("/pki/root.crt").content)
    answer = post(sqlite_client, request_for(root, 1))
    assert status_of(answer.content) is ocsp.OCSPResponseStatus.UNAUTHORIZED


def test_what_http_refuses(sqlite_client: httpx2.Client) -> None:
    """Threat 16: too large, another type, other methods."""
    large = post(sqlite_client, bytes(8_193))
    assert_problem(large, 413)
    for headers in ({}, {"Content-Type": "application/json"}, {"Content-Type": "text/plain"}):
        assert_problem(sqlite_client.post(PATH, content=b"0", headers=headers), 415)
    assert_problem(sqlite_client.post(f"{PATH}MAAA", content=b"0", headers=REQUEST_TYPE), 405)
    assert_problem(sqlite_client.put(PATH, content=b"0"), 405)


@pytest.mark.parametrize(
    "tail",
    [
        *("%0A", "MA%00", "MA%0d", "MA%7F", "MA%20", "MA%C2%80", "MA b", "MA%", "MA%zz", "MA;a=b"),
        *(
            "..%2Froot.crt",
            "%2e%2e",
            "MA..",
            "/",
            "//",
            "validate",
            "%2FMAA=",
            "MA%3Fa=b",
            "MA%23",
        ),
        *("{request}", "AAAA"),
    ],
)
def test_paths_that_match_nothing(running_on_sqlite: Running, tail: str) -> None:
    """Threat 32: control characters, encoded or not, and whatever base64 does not have."""
    with running_on_sqlite.client() as client:
        assert client.get(PATH + tail).status_code in {400, 404}


def test_a_slash_belongs_to_the_request(running_on_sqlite: Running) -> None:
    """Threat 32: encoded or not, it is never another path."""
    with running_on_sqlite.client() as client:
        for tail in ("MA/b%2Fc", "MA//", "%4D%41", "M" * 7_000):
            answer = client.get(PATH + tail)
            assert (answer.status_code, status_of(answer.content)) == (200, MALFORMED), tail
        assert client.get(PATH + "M" * 8_192).status_code == 414


def test_the_url_in_device_certificates(tmp_path: Path) -> None:
    """Every verifier finds the responder there, and no credential is asked for or looked at."""
    running, keys = start_with_keys(
        tmp_path / "data", "sqlite:", "--public-url", "https://sma.example.org/base"
    )
    with running.server, running.client() as client:
        camera = Camera.provisioned(running.client(headers=bearer(keys["provision"])), new_serial())
        certificate = x509.load_pem_x509_certificate(camera.response["device_certificate"].encode())
        access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess)
        urls = {each.access_method: each.access_location.value for each in access.value}
        assert urls[AuthorityInformationAccessOID.OCSP] == "https://sma.example.org/base/pki/ocsp/"
        request = request_for(issuer_of(client), certificate.serial_number)
        for headers in ({}, bearer("sma_wrong"), bearer(keys["validate"])):
            answer = client.get(get_path(request), headers=headers)
            assert verified(answer.content, issuer_of(client)).certificate_status is KNOWN.GOOD


def test_unpublished(tmp_path: Path) -> None:
    """Without a public URL, a server that asks for keys asks for one here as well."""
    running, keys = start_with_keys(tmp_path / "data", "sqlite:")
    with running.server, running.client() as client:
        for path in (PATH, PATH.rstrip("/"), f"{PATH}MAAA"):
            assert_problem(client.get(path), 401)
            assert client.get(path, headers=bearer(keys["validate"])).status_code in {200, 405}


def test_the_limit_of_one_address(tmp_path: Path) -> None:
    """Threat 36: what is signed for one caller is limited, at once; what is cached is not."""
    running = start(tmp_path / "data", "sqlite:", "--rate-ocsp", "5/hour")
    with running.server, running.client("127.0.0.2") as client, running.client() as other:
        issuer = issuer_of(client)
        camera = Camera.provisioned(client, new_serial())
        number = certificate_serial_of(camera.response)
        for _ in range(5):
            assert ask(client, issuer, number, nonce=NONCE).certificate_status is KNOWN.GOOD
        for request in (
            request_for(issuer, number, nonce=NONCE),
            request_for(issuer, certificate_serial("nobody")),
            joined(request_for(issuer, number), request_for(issuer, number)),
        ):
            refused = post(client, request)
            assert_problem(refused, 429)
            assert int(refused.headers["retry-after"]) > 0
            assert post(other, request).status_code == 200
        for _ in range(20):
            assert ask(client, issuer, number).certificate_status is KNOWN.GOOD
        metrics = client.get("/metrics").text
    assert 'sma_ocsp_certificates_total{source="cached",status="good"} 19.0' in metrics
    assert 'sma_ocsp_certificates_total{source="signed",status="unknown"} 1.0' in metrics
    assert 'sma_rate_limit_refusals_total{kind="ocsp"} 3.0' in metrics
    expiry = float(metrics.split("\nsma_ocsp_responder_expiry_timestamp_seconds ")[1].split()[0])
    left = datetime.fromtimestamp(expiry, UTC) - datetime.now(UTC)
    assert timedelta(days=6) < left < timedelta(days=7)


def test_postgresql_is_killed(own_postgres: Postgres, tmp_path: Path) -> None:
    """Threat 19: the last response serves, everything else comes later, and nothing is good."""
    running = start(tmp_path / "data", own_postgres.create_database("sma"), SMA_TABLES="50")
    later = ocsp.OCSPResponseStatus.TRY_LATER
    with running.server, running.client() as client:
        issuer = issuer_of(client)
        numbers = [
            certificate_serial_of(Camera.provisioned(client, new_serial()).response)
            for _ in range(2)
        ]
        first = post(client, request_for(issuer, numbers[0])).content
        own_postgres.kill()
        time.sleep(1.0)
        assert post(client, request_for(issuer, numbers[0])).content == first
        assert status_of(post(client, request_for(issuer, numbers[1])).content) is later
        assert status_of(post(client, request_for(issuer, 5)).content) is later
        own_postgres.start()
        request = request_for(issuer, numbers[1])
        wait_until(lambda: status_of(post(client, request).content).value == 0, 30)
        assert ask(client, issuer, numbers[1]).certificate_status is KNOWN.GOOD


def test_postgresql_hangs(own_postgres: Postgres, tmp_path: Path) -> None:
    """One request in a second waits for it, and for two seconds at most."""
    running = start(tmp_path / "data", own_postgres.create_database("sma"), SMA_TABLES="50")
    with running.server, running.client() as client:
        issuer = issuer_of(client)
        number = certificate_serial_of(Camera.provisioned(client, new_serial()).response)
        first = post(client, request_for(issuer, number)).content
        pid_file = own_postgres.data_directory / "postmaster.pid"
        postmaster = int(pid_file.read_text().splitlines()[0])
        with frozen([postmaster, *children_of(postmaster)]):
            time.sleep(1.0)
            took = []
            for _ in range(10):
                began = time.monotonic()
                assert post(client, request_for(issuer, number)).content == first
                took.append(time.monotonic() - began)
            answer = post(client, request_for(issuer, certificate_serial("nobody")))
            assert status_of(answer.content) is ocsp.OCSPResponseStatus.TRY_LATER
        assert max(took) < 5
        assert len([each for each in took if each > 1]) <= 2
        assert ask(client, issuer, number).certificate_status is KNOWN.GOOD


def test_connections_that_went_bad_are_no_outage(postgres_url: str, tmp_path: Path) -> None:
    """They seem open until the next statement. The query then opens a new one."""
    with FrozenProxy(postgres_url) as proxy:
        running = start(tmp_path / "data", proxy.url, SMA_TABLES="50")
        with running.server, running.client() as client:
            issuer = issuer_of(client)
            numbers = [
                certificate_serial_of(Camera.provisioned(client, new_serial()).response)
                for _ in range(3)
            ]
            for number in numbers:
                assert ask(client, issuer, number).certificate_status is KNOWN.GOOD
                proxy.break_connections()
