"""The client, and the example, against real servers on both kinds of database."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import sleep
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark_sma.client import (
    AsyncAuthorityClient,
    AsyncCrlCache,
    AuthorityClient,
    CachedCrl,
    Cause,
    CrlCache,
    Fail,
    Indeterminate,
    Options,
    Outcome,
    Pass,
    PendingBundles,
    RevocationList,
    VerifiedBundle,
    verify_bundle,
)
from birthmark_sma.errors import DeviceRevokedError
from birthmark_sma.protocol.bundle import Bundle, UnsignedBundle
from birthmark_sma.protocol.bundle_signature import sign_bundle
from birthmark_sma.protocol.camera_token import CameraToken
from tests.support.cameras.bundles import der_of
from tests.support.cameras.camera import PROVISION, Camera, csr_pem, new_key
from tests.support.http.ports import closed_port
from tests.support.http.tls import TestCa
from tests.support.pki.crls import certificate_serial_of, fetch_crl_with
from tests.support.programs.commands import sma
from tests.support.programs.running import Running, new_serial, start
from tests.support.programs.server import server_environ

EXAMPLE = Path(__file__).parents[3] / "examples" / "aggregator.py"


Start = Callable[..., Running]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Start]:
    """Start a small server of the test's own, on the same data whenever it is called again."""
    started: list[Running] = []

    def start_one(*arguments: str, **environ: str) -> Running:
        running = start(tmp_path / "data", "sqlite:", "--prototype", *arguments, **environ)
        started.append(running)
        return running

    yield start_one
    for each in started:
        each.server.close()


def made_key(tmp_path: Path, *arguments: str) -> str:
    """Found the authority that `start_server` will start, and make a key for validation."""
    environ = server_environ(tmp_path / "data")
    assert sma("init", "--prototype", environ=environ).returncode == 0
    made = sma(
        "keys", "create", "newsroom", "--scope", "validate", *arguments, "--json", environ=environ
    )
    assert made.returncode == 0, made.stderr
    key: str = json.loads(made.stdout)["key"]
    return key


@dataclass(frozen=True)
class Device:
    """A camera that signs bundles."""

    camera: Camera
    key: ec.EllipticCurvePrivateKey

    def capture(self, picture: bytes, token: CameraToken | None = None) -> Bundle:
        """A bundle for a picture."""
        response = self.camera.response
        content = UnsignedBundle(
            image_hash=sha256(picture).digest(),
            camera_token=token or self.camera.token(),
            device_certificate_chain=der_of(
                response["device_certificate"], response["certificate_chain"][0]
            ),
            captured_at=datetime.now(UTC),
        )
        return sign_bundle(content, self.key)


def device_of(client: httpx2.Client) -> Device:
    """Provision a device that proves that it has its key."""
    key, serial = new_key(), new_serial()
    response = client.post(
        PROVISION, json={"csr": csr_pem(key), "device_serial": serial, "device_family": "Test"}
    )
    assert response.status_code == 200, response.text
    return Device(Camera.of(serial, response.json()), key)


def root_of(client: httpx2.Client) -> x509.Certificate:
    """The root, as an aggregation server would pin it."""
    return x509.load_der_x509_certificate(client.get("/pki/root.crt").content)


def verified(bundle: Bundle, root: x509.Certificate) -> VerifiedBundle:
    return verify_bundle(bundle.to_json(), root=root, now=datetime.now(UTC))


def test_verdicts_of_a_real_authority(running: Running) -> None:
    """PASS and FAIL are told apart, alone and together, from threads and tasks."""
    with running.client() as http:
        device, root = device_of(http), root_of(http)
    good = device.camera.token()
    cases: dict[str, tuple[CameraToken, type]] = {
        "genuine": (good, Pass),
        "stranger": (device.camera.token(nuc_hash=bytes(range(32))), Fail),
        "tampered": (replace(good, encrypted_nuc_hash=bytes(48)), Fail),
        "unknown table": (replace(good, table_id=1_000_000), Fail),
        "unknown key": (replace(good, key_index=123_456), Fail),
    }
    tokens = [token for token, _ in cases.values()]
    expected = [kind for _, kind in cases.values()]

    with AuthorityClient(running.server.url) as client:
        assert [type(client.validate(each)) for each in tokens] == expected
        assert [type(each) for each in client.validate_many(tokens * 300)] == expected * 300
        passed = client.validate_bundle(verified(device.capture(b"picture"), root))
        assert isinstance(passed, Pass)
        assert passed.manufacturer_id == "SimulatedMfg"

    async def ask() -> None:
        async with AsyncAuthorityClient(running.server.url) as own:
            outcomes = await asyncio.gather(*[own.validate(each) for each in tokens * 100])
            assert [type(each) for each in outcomes] == expected * 100

    asyncio.run(ask())
    assert running.audit_rows(tokens[1])[0].validation_result == "FAIL"


def test_a_token_of_another_device_in_a_bundle(start_server: Start) -> None:
    """Where serials are told, a device that uses another's token is found out."""
    running = start_server(SMA_DISCLOSURE="serial")
    with running.client() as http:
        ours, others, root = device_of(http), device_of(http), root_of(http)
    with AuthorityClient(running.server.url) as client:
        stolen = ours.capture(b"picture", others.camera.token())
        assert isinstance(client.validate(stolen.content.camera_token), Pass)
        outcome = client.validate_bundle(verified(stolen, root))
        assert isinstance(outcome, Fail)
        assert outcome.error is not None
        assert isinstance(client.validate_bundle(verified(ours.capture(b"own"), root)), Pass)


def test_a_revoked_device_fails_and_is_on_the_list(running: Running) -> None:
    """Threat 6: both ways, here and at the authority."""
    with running.client() as http:
        device, root = device_of(http), root_of(http)
        token = device.camera.token()
        revoked = sma(
            *("devices", "revoke", device.camera.serial, "--reason", "key_compromise"),
            environ=running.environ,
        )
        assert revoked.returncode == 0, revoked.stderr
        listed = fetch_crl_with(http, certificate_serial_of(device.camera.response), within=5)
        issuer = x509.load_der_x509_certificate(http.get("/pki/intermediate.crt").content)
        crl = RevocationList.load(listed.public_bytes(Encoding.DER), issuer=issuer)
    with AuthorityClient(running.server.url) as client:
        assert isinstance(client.validate(token), Fail)
    with pytest.raises(DeviceRevokedError):
        verify_bundle(device.capture(b"picture"), root=root, now=datetime.now(UTC), crl=crl)


async def test_a_cache_keeps_the_list_of_a_real_authority_fresh(running: Running) -> None:
    """Threads and tasks: it loads, is confirmed as the newest, and is replaced once it is not."""
    with running.client() as http:
        device, root = device_of(http), root_of(http)
        issuer = x509.load_der_x509_certificate(http.get("/pki/intermediate.crt").content)
    url, bundle = f"{running.server.url}/pki/intermediate.crl", device.capture(b"picture")
    load = partial(RevocationList.load, issuer=issuer)

    def is_revoked(cached: CachedCrl[RevocationList]) -> bool:
        assert (cached.trouble, cached.stale) == (None, False)
        try:
            verify_bundle(bundle, root=root, now=datetime.now(UTC), crl=cached.crl)
        except DeviceRevokedError:
            return True
        return False

    threads = CrlCache(url, load=load, refresh=0.1)
    tasks = AsyncCrlCache(url, load=load, refresh=0.1)
    first = await asyncio.to_thread(threads.get), await tasks.get()
    assert not any(is_revoked(each) for each in first)
    await asyncio.sleep(0.2)
    confirmed = await asyncio.to_thread(threads.get)
    assert confirmed.crl is first[0].crl  # by a 304
    assert confirmed.confirmed_at > first[0].confirmed_at
    revoke = (*("devices", "revoke"), device.camera.serial, "--reason", "key_compromise")
    assert (await asyncio.to_thread(sma, *revoke, environ=running.environ)).returncode == 0
    async with asyncio.timeout(10):
        while not is_revoked(now := await tasks.get()):
            await asyncio.sleep(0.1)
        while not is_revoked(await asyncio.to_thread(threads.get)):
            await asyncio.sleep(0.1)
    assert now.crl.number > first[1].crl.number
    await tasks.close()


def test_an_access_key_opens_the_door(start_server: Start, tmp_path: Path) -> None:
    """Threat 22: without one, or with a wrong one, there is no verdict."""
    key = made_key(tmp_path)
    url = start_server(SMA_ACCESS="keys").server.url
    token = CameraToken(bytes(48), 1, 2, bytes(12))
    for wrong in (None, "sma_wrong"):
        with AuthorityClient(url, access_key=wrong) as client:
            outcome = client.validate(token)
            assert isinstance(outcome, Indeterminate)
            assert outcome.cause is Cause.NOT_ALLOWED
    with AuthorityClient(url, access_key=key) as client:
        assert isinstance(client.validate(token), Fail)


def test_a_client_certificate_opens_the_door(start_server: Start, tmp_path: Path) -> None:
    """In place of a key: a certificate that the operator has registered."""
    ca = TestCa(tmp_path / "ca")
    mine = ca.issue("newsroom")
    made_key(tmp_path, "--client-cert", str(mine.certificate_file))
    environ = ca.issue("server").settings | {"SMA_TLS_CLIENT_CA": str(ca.file)}
    url = start_server(SMA_ACCESS="keys", **environ).server.url
    token = CameraToken(bytes(48), 1, 2, bytes(12))
    with AuthorityClient(url, ca_file=ca.file) as client:
        outcome = client.validate(token)
        assert isinstance(outcome, Indeterminate)
        assert outcome.cause is Cause.NOT_ALLOWED
    files = (mine.certificate_file, mine.key_file)
    with AuthorityClient(url, ca_file=ca.file, client_certificate=files) as client:
        assert isinstance(client.validate(token), Fail)


def test_a_limit_smaller_than_a_batch(start_server: Start) -> None:
    """A batch that can never pass is asked in parts, until the limit is used up."""
    running = start_server(SMA_RATE_VALIDATE="20/minute")
    token = CameraToken(bytes(48), 1, 2, bytes(12))
    with AuthorityClient(running.server.url, options=Options(deadline=3)) as client:
        outcomes = client.validate_many([token] * 30)
    kinds = [type(each) for each in outcomes]
    assert kinds.count(Fail) == 20
    limited = [each for each in outcomes if isinstance(each, Indeterminate)]
    assert {each.cause for each in limited} == {Cause.RATE_LIMITED}
    assert len(limited) == 10


def test_an_authority_that_dies_and_comes_back(start_server: Start) -> None:
    """Threat 19: killed, it gives no verdict; started again, the same client gets one."""
    running = start_server()
    with running.client() as http:
        camera = device_of(http).camera
    port = running.server.url.rpartition(":")[2]
    options = Options(deadline=2, circuit_rest=0.2)
    with AuthorityClient(running.server.url, options=options) as client:
        assert isinstance(client.validate(camera.token()), Pass)
        running.server.kill()
        outcome = client.validate(camera.token())
        assert isinstance(outcome, Indeterminate)
        start_server("--port", port)
        assert isinstance(client.validate(camera.token(), deadline=10), Pass)


def test_what_had_no_verdict_gets_one_once_the_authority_is_back(start_server: Start) -> None:
    """Threat 19: threads and tasks; nothing is lost, and nothing is settled meanwhile."""
    running = start_server()
    with running.client() as http:
        device, root = device_of(http), root_of(http)
    bundles = [verified(device.capture(bytes([n])), root) for n in range(4)]
    running.server.kill()
    threads, tasks = PendingBundles(), PendingBundles()
    options = Options(deadline=1, circuit_rest=0.1)

    async def ask_with_tasks() -> list[Outcome]:
        async with AsyncAuthorityClient(running.server.url, options=options) as own:
            return [outcome for _, outcome in await tasks.ask_async(own)]

    with AuthorityClient(running.server.url, options=options) as client:
        for pending, bundle in zip((threads, threads, tasks, tasks), bundles, strict=True):
            outcome = client.validate_bundle(bundle)
            assert isinstance(outcome, Indeterminate)
            pending.add(bundle, outcome)
        sleep(1)  # the longest that a first pause is
        assert threads.ask(client) == []
        assert asyncio.run(ask_with_tasks()) == []
        start_server("--port", running.server.url.rpartition(":")[2])
        sleep(2)
        outcomes = [outcome for _, outcome in threads.ask(client, deadline=10)]
        outcomes += asyncio.run(ask_with_tasks())
    assert [type(each) for each in outcomes] == [Pass] * 4
    assert len(threads) == len(tasks) == 0


def test_a_second_verdict_is_not_to_be_had(start_server: Start) -> None:
    """Threat 19: where each caller is answered once, the second time is no FAIL."""
    running = start_server(SMA_REPLAY="refuse-same-caller")
    with running.client() as http:
        token = device_of(http).camera.token()
    with AuthorityClient(running.server.url) as client:
        assert isinstance(client.validate(token), Pass)
        again = client.validate(token)
        assert isinstance(again, Indeterminate)
        assert again.cause is Cause.ALREADY_SUBMITTED


def run_example(running: Running, bundles: list[bytes], tmp_path: Path, **environ: str) -> Any:
    """Run the example as an operator would, on bundles a line each."""
    with running.client() as http:
        root = root_of(http)
        (tmp_path / "intermediate.crt").write_bytes(http.get("/pki/intermediate.crt").content)
    files = {"AUTHORITY_INTERMEDIATE": str(tmp_path / "intermediate.crt")}
    (tmp_path / "root.crt").write_bytes(root.public_bytes(Encoding.PEM))
    return subprocess.run(
        [sys.executable, str(EXAMPLE), running.server.url, str(tmp_path / "root.crt")],
        input=b"\n".join(bundles) + b"\n",
        env=server_environ(tmp_path) | files | environ,
        capture_output=True,
        timeout=120,
        check=False,
    )


def test_the_example(running: Running, tmp_path: Path) -> None:
    """examples/aggregator.py gives every bundle the verdict that it should get."""
    with running.client() as http:
        device, gone = device_of(http), device_of(http)
        revoke = (*("devices", "revoke"), gone.camera.serial, "--reason", "key_compromise")
        assert sma(*revoke, environ=running.environ).returncode == 0
        fetch_crl_with(http, certificate_serial_of(gone.camera.response), within=10)
    forged = device.capture(b"forged", device.camera.token(nuc_hash=bytes(range(32))))
    genuine = device.capture(b"genuine")
    altered = genuine.to_json().replace(
        sha256(b"genuine").hexdigest().encode(), sha256(b"swapped").hexdigest().encode()
    )
    revoked = gone.capture(b"revoked").to_json()
    ran = run_example(running, [genuine.to_json(), forged.to_json(), altered, revoked], tmp_path)
    assert ran.stderr == b""
    lines = [line.split("\t") for line in ran.stdout.decode().splitlines()]
    serial = device.camera.serial
    assert lines == [
        [sha256(b"genuine").hexdigest(), "PASS", f"{serial} (Test)"],
        [sha256(b"forged").hexdigest(), "FAIL", serial],
        ["?" * 64, "REJECTED", "The device's signature does not verify for this bundle."],
        ["?" * 64, "REJECTED", "The device's certificate is revoked."],
    ]


@pytest.mark.parametrize("listed", [False, True], ids=["alone", "with a revocation list"])
def test_the_example_keeps_what_has_no_verdict(
    running: Running, tmp_path: Path, listed: bool
) -> None:
    """Threat 19: an authority that is away, and its revocation list too, rejects no picture."""
    with running.client() as http:
        bundle, root = device_of(http).capture(b"genuine"), root_of(http)
        intermediate = tmp_path / "intermediate.crt"
        intermediate.write_bytes(http.get("/pki/intermediate.crt").content)
    (tmp_path / "root.crt").write_bytes(root.public_bytes(Encoding.PEM))
    ran = subprocess.run(
        [
            *(sys.executable, str(EXAMPLE), f"http://127.0.0.1:{closed_port()}"),
            str(tmp_path / "root.crt"),
        ],
        input=bundle.to_json() + b"\n",
        env=server_environ(tmp_path)
        | ({"AUTHORITY_INTERMEDIATE": str(intermediate)} if listed else {}),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert b"\tKEPT\t" in ran.stdout
    assert b"FAIL" not in ran.stdout
    assert (b"There is no revocation list yet" in ran.stdout) == listed
    assert (b"unreachable" in ran.stderr) != listed
