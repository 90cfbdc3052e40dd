"""A camera renews: what it sends, what it takes for an answer, and how it goes on after each."""

import json
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from birthmark_sma.device import UNSEALED, Enrolment, Renewal, passphrase, state
from birthmark_sma.device.renewal import renewer
from birthmark_sma.device.state_directory import PrivateDirectory
from birthmark_sma.device.state_encryption import seal
from birthmark_sma.errors import DeviceBusyError, DeviceSecretError, DeviceStorageError
from birthmark_sma.pki.keys.ca_keys import CaKeyType
from tests.device.renewal.conftest import BEGINNING, Cameras, Time
from tests.support.cameras.renewing_authority import (
    URL,
    RenewingAuthority,
    new_table_keys,
)
from tests.support.in_process import (
    Fault,
    answering,
    answering_with,
    lost_answer,
    refused_connection,
)
from tests.support.pki.chains import make_ca

Due = Callable[[], None]
HOUR, DAY = 3_600, 86_400


def through(_: httpx2.Request, answer: Callable[[], httpx2.Response]) -> httpx2.Response:
    """No fault."""
    return answer()


def test_nothing_is_renewed_before_its_time(
    cameras: Cameras, authority: RenewingAuthority, time: Time
) -> None:
    """Without a window of the authority, between 2/3 and 5/6 of the validity."""
    camera = cameras.start()
    before = camera.certificate
    time.advance(days=486)
    camera.renew_if_due()
    assert camera.certificate == before
    assert authority.renewals == []
    time.advance(days=123)
    camera.renew_if_due()
    assert camera.certificate != before
    assert len(authority.renewals) == 1


def test_a_window_of_the_authority_counts(
    cameras: Cameras, authority: RenewingAuthority, time: Time
) -> None:
    """It pulls the renewal forward, and is asked for again when the authority says so."""
    camera = cameras.start()
    authority.window = BEGINNING + timedelta(hours=5), BEGINNING + timedelta(hours=6)
    authority.retry_after = "3600"
    assert camera.renew_if_due() == HOUR
    assert camera.renew_if_due() == HOUR
    assert len(authority.requests) == 1
    for _ in range(4):
        time.advance(hours=1)
        left = camera.renew_if_due()
        assert left is not None
        assert 0 < left <= HOUR
        assert authority.renewals == []
    time.advance(hours=2)
    camera.renew_if_due()
    assert len(authority.renewals) == 1
    assert camera.certificate.not_valid_before_utc > BEGINNING


def test_a_renewed_camera(
    cameras: Cameras, authority: RenewingAuthority, time: Time, due: Due
) -> None:
    """A new key, new table keys, on disk; both certificates stay valid, and old bundles do."""
    camera = cameras.start()
    old, first = cameras.kept(), camera.capture(b"before")
    authority.table_keys = new_table_keys()
    due()
    time.advance(days=1)
    camera.renew_if_due()
    kept = cameras.kept()
    assert (kept.renewal, kept.predecessor) == (None, None)
    assert kept.private_key != old.private_key
    assert kept.table_keys == authority.table_keys != old.table_keys
    assert (kept.nuc_hash, kept.nonce_secret) == (old.nuc_hash, old.nonce_secret)
    assert len(authority.valid) == 2
    for _ in range(20):
        cameras.judge(camera.capture(b"after"))
    cameras.judge(first)
    camera.close()
    again = cameras.start()
    assert again.certificate == camera.certificate
    cameras.judge(again.capture(b"after a restart"))


def test_the_same_key_if_the_app_wants_it(
    cameras: Cameras, authority: RenewingAuthority, due: Due
) -> None:
    camera = cameras.start(renewal=Renewal(automatic=False, new_key=False))
    before = camera.certificate
    due()
    camera.renew_if_due()
    assert camera.certificate != before
    assert camera.certificate.public_key() == before.public_key()


def test_supersede(cameras: Cameras, authority: RenewingAuthority, due: Due) -> None:
    """The old certificate is revoked only when captures use the new one."""
    camera = cameras.start(renewal=Renewal(automatic=False, supersede=True))
    used: list[x509.Certificate] = []

    def note(_: httpx2.Request, answer: Callable[[], httpx2.Response]) -> httpx2.Response:
        used.append(camera.certificate)
        return answer()

    authority.faults = [through, note, note]
    before = camera.certificate
    due()
    camera.renew_if_due()
    assert [body["supersede"] for body in authority.renewals] == [False, True]
    assert used == [before, camera.certificate]
    assert authority.valid == [camera.certificate]
    assert cameras.kept().predecessor is None


@pytest.mark.parametrize("lost", [0, 2])
def test_tables_that_are_rotated_before_the_old_one_is_superseded(
    cameras: Cameras, authority: RenewingAuthority, time: Time, due: Due, lost: int
) -> None:
    """The second response has other table keys, which the authority expects from now on."""
    camera = cameras.start(renewal=Renewal(automatic=False, supersede=True))
    authority.faults = [through, through, refused_connection, *[lost_answer] * lost]
    due()
    camera.renew_if_due()
    authority.table_keys = new_table_keys()
    for _ in range(1 + lost):
        time.advance(days=1)
        camera.renew_if_due()
    cameras.judge(camera.capture(b"picture"))
    assert authority.valid == [camera.certificate]
    assert cameras.kept().table_keys == authority.table_keys
    camera.close()
    cameras.judge(cameras.start().capture(b"after a restart"))


@pytest.mark.parametrize("answers", [1, 3])
def test_the_wish_to_supersede_is_not_forgotten(
    cameras: Cameras, authority: RenewingAuthority, time: Time, due: Due, answers: int
) -> None:
    """Neither after errors nor after a restart."""
    camera = cameras.start(renewal=Renewal(automatic=False, supersede=True))
    lost: list[Fault] = [through, through]
    authority.faults = [*lost, *[refused_connection] * answers]
    due()
    camera.renew_if_due()
    for _ in range(answers):
        assert len(authority.valid) == 2
        camera.close()
        time.advance(days=1)
        camera = cameras.start(renewal=Renewal(automatic=False, supersede=True))
        camera.renew_if_due()
        cameras.judge(camera.capture(b"picture"))
    assert authority.valid == [camera.certificate]


def test_a_wish_to_supersede_that_comes_too_late(
    cameras: Cameras, authority: RenewingAuthority, time: Time, due: Due
) -> None:
    """An operator has superseded the old certificate already: there is nothing left to do."""
    camera = cameras.start(renewal=Renewal(automatic=False, supersede=True))
    authority.faults = [through, through, answering(403, "renewal-refused")]
    due()
    camera.renew_if_due()
    assert cameras.kept().predecessor is None


RETRIED: dict[str, Fault] = {
    "refused connection": refused_connection,
    "lost answer": lost_answer,
    "429": answering(429, "rate-limited"),
    "500": answering(500, "internal-error"),
    "503": answering(503, "database-unavailable"),
    "redirect": lambda _, __: httpx2.Response(302, headers={"Location": "http://login.example/"}),
    "captive portal": answering_with(b"<html>Welcome</html>"),
    "empty": answering_with(b""),
    "deep": answering_with(b"[" * 100_000),
    "endless": answering_with(b"x" * 300_000),
    "time": answering(403, "renewal-time-refused"),
    "suspended": answering(403, "device-not-active"),
    "refused": answering(403, "renewal-refused"),
    "404": answering(404, "not-found"),
    "a proxy's 403": lambda _, __: httpx2.Response(403, text="<html>"),
    "413": answering(413, "body-too-large"),
}


@pytest.mark.parametrize("fault", RETRIED.values(), ids=RETRIED)
def test_the_same_csr_until_it_is_answered(
    cameras: Cameras, authority: RenewingAuthority, time: Time, due: Due, fault: Fault
) -> None:
    """Threat 8: with another time and signature each time; no answer strands a camera."""
    camera = cameras.start()
    before = camera.certificate
    authority.faults = [through, fault, fault, fault]
    due()
    pauses = []
    for attempt in range(3):
        left = camera.renew_if_due()
        assert left is not None
        pauses.append(left)
        assert camera.renew_if_due() == left, "it loops"
        assert camera.certificate == before
        cameras.judge(camera.capture(b"meanwhile"))
        if attempt == 1:
            camera.close()
            camera = cameras.start()
            assert camera.renew_if_due() == left, "a restart forgets the pause"
        time.advance(seconds=left)
    camera.renew_if_due()
    assert camera.certificate != before
    cameras.judge(camera.capture(b"after"))
    bodies = authority.renewals
    assert len(bodies) == 4
    assert len({body["csr"] for body in bodies}) == 1
    assert len({body["requested_at"] for body in bodies}) == 4
    assert len({body["signature"] for body in bodies}) == 4
    assert len(authority.known) == 2
    assert all(30 <= pause <= DAY for pause in pauses)
    assert pauses[2] > pauses[0] or pauses[0] >= DAY / 2


@pytest.mark.parametrize("status", [409, 422])
def test_a_csr_that_is_refused_for_good(
    cameras: Cameras, authority: RenewingAuthority, time: Time, due: Due, status: int
) -> None:
    """It is replaced: only then, because the authority cannot have accepted it."""
    camera = cameras.start()
    authority.faults = [through, answering(status, "public-key-in-use")]
    due()
    left = camera.renew_if_due()
    assert left is not None
    assert HOUR / 2 <= left <= HOUR
    assert cameras.kept().renewal is None
    time.advance(seconds=left)
    camera.renew_if_due()
    first, second = authority.renewals
    assert first["csr"] != second["csr"]
    cameras.judge(camera.capture(b"picture"))


def altered(**changes: Any) -> Fault:
    """A true answer, in which something is not as it should be."""

    def fault(_: httpx2.Request, answer: Callable[[], httpx2.Response]) -> httpx2.Response:
        fields = answer().json()
        for name, value in changes.items():
            fields[name] = value(fields) if callable(value) else value
        return httpx2.Response(200, json=fields)

    return fault


UNUSABLE: dict[str, tuple[Fault, str]] = {
    "root": (altered(device_certificate=lambda f: f["certificate_chain"][1]), "another key"),
    "no secrets": (altered(sealed_secrets=None), "does not come from"),
    "no tables": (altered(table_assignments=[]), "does not come from"),
    "other tables": (altered(table_assignments=[1, 2, 3]), "does not come from"),
    "chain": (altered(certificate_chain=lambda f: f["certificate_chain"][::-1]), "path"),
}


@pytest.mark.parametrize(("fault", "told"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_answer_for_something_else(
    cameras: Cameras, due: Due, fault: Fault, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Threats 7 and 41: it is no answer. The camera keeps what it has, and asks again."""
    camera = cameras.start()
    before = camera.certificate
    cameras.authority.faults = [through, fault]
    due()
    with caplog.at_level(logging.INFO):
        left = camera.renew_if_due()
    assert told in caplog.text
    assert camera.certificate == before
    assert left is not None
    cameras.time.advance(seconds=left)
    camera.renew_if_due()
    cameras.judge(camera.capture(b"picture"))
    assert camera.certificate != before


def test_the_certificate_of_an_earlier_answer(
    cameras: Cameras, authority: RenewingAuthority, time: Time, due: Due
) -> None:
    """An attacker replays the answer to the last renewal: its key and its secrets do not fit."""
    camera = cameras.start()
    answers: list[httpx2.Response] = []

    def note(_: httpx2.Request, answer: Callable[[], httpx2.Response]) -> httpx2.Response:
        answers.append(answer())
        return answers[-1]

    authority.faults = [through, note]
    due()
    camera.renew_if_due()
    first = camera.certificate
    time.advance(days=1)
    due()
    authority.faults = [through, lambda _, __: httpx2.Response(200, content=answers[0].content)]
    left = camera.renew_if_due()
    assert camera.certificate == first
    assert left is not None
    time.advance(seconds=left)
    camera.renew_if_due()
    assert camera.certificate != first


def fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


@pytest.mark.parametrize("pinned", ["nothing", "the old root", "the new root", "both roots"])
def test_a_new_root(
    cameras: Cameras,
    authority: RenewingAuthority,
    due: Due,
    pinned: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The pin of the app decides. Without a pin, the authority's URL is trusted as at first."""
    old = authority.ca.root
    new = make_ca(CaKeyType.EC_P384, now=cameras.time.now - timedelta(days=1))
    marks = {"the old root": fingerprint(old), "the new root": fingerprint(new.root)}
    pins = (
        marks.values()
        if pinned == "both roots"
        else (marks[each] for each in marks if each == pinned)
    )
    cameras.provision(root_fingerprints=tuple(pins))
    camera = cameras.start()
    authority.ca = new
    due()
    left = camera.renew_if_due()
    accepted = pinned != "the old root"
    assert (cameras.kept().renewal is None) == accepted
    # At the usual level of logs: somebody has to act.
    assert ("update the app so that it pins both" in caplog.text) != accepted
    if not accepted:
        # An update of the app names the new root.
        camera.close()
        enrolment = Enrolment(URL, "camera-7", "Test", root_fingerprint=fingerprint(new.root))
        camera = cameras.start(enrolment=enrolment)
        assert left is not None
        cameras.time.advance(seconds=left)
        camera.renew_if_due()
    cameras.judge(camera.capture(b"picture"))


def test_a_wrong_clock_is_named(
    cameras: Cameras,
    authority: RenewingAuthority,
    time: Time,
    due: Due,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Threat 50: the authority's Date is evidence for the clock; the camera does not follow it."""
    wrong = Time()
    camera = cameras.start(clock=wrong)
    before = camera.certificate
    time.advance(hours=3)
    due()
    wrong.advance(hours=6)
    camera.renew_if_due()
    assert camera.certificate == before
    assert "the camera's clock is wrong" in caplog.text
    faults = [camera.clock_fault]
    wrong.now = time.now
    left = camera.renew_if_due()
    faults.append(camera.clock_fault)
    assert [fault is None for fault in faults] == [False, True]
    assert left is not None
    assert left <= 60 + 3 * HOUR
    time.advance(seconds=left)
    wrong.advance(seconds=left)
    camera.renew_if_due()
    assert camera.certificate != before


def test_each_refusal_is_logged_once_a_day(
    cameras: Cameras,
    time: Time,
    due: Due,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A suspended camera captures on, asks about once a day, and is renewed when reinstated."""

    def seconds() -> float:
        return time.now.timestamp()

    monkeypatch.setattr(renewer, "seconds_since_boot", seconds)
    camera = cameras.start()
    cameras.authority.active = False
    due()
    for _ in range(30):
        left = camera.renew_if_due()
        assert left is not None
        assert left >= DAY / 2
        time.advance(seconds=left)
        cameras.judge(camera.capture(b"picture"))
    said = [record for record in caplog.records if "not active" in record.message]
    assert 15 <= len(said) <= 30
    assert len(cameras.authority.renewals) == 30
    cameras.authority.active = True
    camera.renew_if_due()
    assert cameras.kept().renewal is None


def test_an_expired_camera_is_told_what_to_do(
    cameras: Cameras,
    authority: RenewingAuthority,
    time: Time,
    due: Due,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Beyond the grace period only an operator can help. The camera captures on."""
    camera = cameras.start()
    time.advance(days=900)
    authority.faults = [through, answering(403, "renewal-refused")]
    camera.renew_if_due()
    assert "ask its operator to re-enrol the device" in caplog.text
    assert camera.certificate_expired
    assert camera.capture(b"picture")


def test_a_window_that_is_always_past_renews_only_now_and_then(
    cameras: Cameras, authority: RenewingAuthority, time: Time, due: Due
) -> None:
    """A mistake of the authority must not become a flood."""
    camera = cameras.start()
    authority.retry_after = "0"
    due()
    for _ in range(5):
        left = camera.renew_if_due()
        assert left is not None
        assert left >= 3 * HOUR
        time.advance(seconds=left)
    assert len(authority.renewals) == 5


def test_a_hostile_pause_is_bounded(cameras: Cameras, authority: RenewingAuthority) -> None:
    """A Retry-After of a year would let a certificate run out."""
    camera = cameras.start()
    far = BEGINNING + timedelta(days=300)
    authority.window = far, far + timedelta(days=1)
    authority.retry_after = "31536000"
    assert camera.renew_if_due() == DAY


def test_a_state_of_an_earlier_version(
    cameras: Cameras, authority: RenewingAuthority, due: Due, caplog: pytest.LogCaptureFixture
) -> None:
    """It has no URL: the enrolment of the app gives it one, which is kept."""
    cameras.provision(authority_url=None)
    due()
    camera = cameras.start()
    assert camera.renew_if_due() is None
    assert caplog.text.count("is not renewed: this camera was provisioned by an earlier") == 1
    camera.close()
    camera = cameras.start(enrolment=Enrolment(f"{URL}/", "camera-7", "Test"))
    before = camera.certificate
    camera.renew_if_due()
    assert camera.certificate != before
    camera.close()
    assert cameras.kept().authority_url == f"{URL}/"
    assert cameras.start().renew_if_due() is not None


def test_a_state_file_of_before_renewals(cameras: Cameras) -> None:
    """It has none of the new members."""
    content = {"state": "provisioned"} | {
        name: value
        for name, value in asdict(cameras.kept()).items()
        if name not in {"authority_url", "root_fingerprints", "renewal", "predecessor"}
    }
    PrivateDirectory(cameras.directory).write(
        state.FILE, seal(json.dumps(content).encode(), UNSEALED)
    )
    assert cameras.kept().authority_url is None


def test_a_disk_that_is_full(
    cameras: Cameras,
    authority: RenewingAuthority,
    time: Time,
    due: Due,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Threats 29 and 30: before the request nothing is sent; after it the answer comes again."""
    camera = cameras.start()
    before = camera.certificate
    due()
    fsync = os.fsync

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DeviceStorageError, match="No space"):
        camera.renew_if_due()
    assert authority.renewals == []
    assert camera.renew_if_due(), "it loops"
    time.advance(hours=1)
    monkeypatch.setattr(os, "fsync", fsync)

    def fill(_: httpx2.Request, answer: Callable[[], httpx2.Response]) -> httpx2.Response:
        monkeypatch.setattr(os, "fsync", full)
        return answer()

    authority.faults = [through, fill]
    with pytest.raises(DeviceStorageError, match="No space"):
        camera.renew_if_due()
    assert camera.certificate == before
    monkeypatch.setattr(os, "fsync", fsync)
    time.advance(hours=1)
    camera.renew_if_due()
    assert camera.certificate != before
    assert len(authority.known) == 2


def test_a_secret_that_is_gone(
    cameras: Cameras, authority: RenewingAuthority, time: Time, due: Due, tmp_path: Path
) -> None:
    """The keys of the renewal are sealed like the rest; without the secret nothing is sent."""
    directory = tmp_path / "sealed"
    cameras.write(directory)
    place = PrivateDirectory(directory)
    identity = cameras.kept(directory)
    sealing = passphrase("a phrase")
    state.save(identity, place, sealing)
    camera = cameras.start(directory, sealing=sealing)
    due()
    authority.faults = [through, refused_connection]
    camera.renew_if_due()
    content = (directory / state.FILE).read_bytes()
    assert b"PRIVATE KEY" not in content
    pending = state.load(place, sealing)
    assert isinstance(pending, state.Identity)
    assert pending.renewal is not None
    assert "PRIVATE KEY" not in repr(pending)

    def gone(_: bytes) -> bytes:
        raise DeviceSecretError("The key file cannot be read.")

    camera.close()
    stays = cameras.start(directory, sealing=sealing)
    vars(stays)["_renewer"]._sealing = replace(sealing, derive=gone)
    time.advance(hours=1)
    with pytest.raises(DeviceSecretError):
        stays.renew_if_due()
    assert stays.capture(b"picture")


def test_a_forked_process_renews_nothing(cameras: Cameras) -> None:
    camera = cameras.start()
    child = os.fork()
    if child == 0:
        try:
            camera.renew_if_due()
        except DeviceBusyError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_closed_camera_renews_nothing(
    cameras: Cameras, authority: RenewingAuthority, due: Due
) -> None:
    """Also if it is closed while the answer is under way: the next start repeats the request."""
    camera = cameras.start()
    due()

    def close(_: httpx2.Request, answer: Callable[[], httpx2.Response]) -> httpx2.Response:
        response = answer()
        camera.close()
        return response

    authority.faults = [through, close]
    with pytest.raises(DeviceStorageError, match="closed"):
        camera.renew_if_due()
    assert cameras.kept().renewal is not None
    again = cameras.start()
    again.renew_if_due()
    assert len(authority.known) == 2
    cameras.judge(again.capture(b"picture"))


def test_captures_during_renewals(
    cameras: Cameras, authority: RenewingAuthority, time: Time, due: Due
) -> None:
    """No bundle mixes the old certificate with the new key, or the old tables with the new."""
    camera = cameras.start(renewal=Renewal(automatic=False, supersede=True))
    over = threading.Event()

    def capture() -> list[Any]:
        bundles = []
        while not over.is_set():
            bundles.append(camera.capture(b"picture"))
        return bundles

    with ThreadPoolExecutor(4) as pool:
        captured = [pool.submit(capture) for _ in range(3)]
        for _ in range(15):
            authority.table_keys = new_table_keys()
            due()
            left = camera.renew_if_due()
            assert left is not None
            time.now += timedelta(seconds=left)
        over.set()
        bundles = [bundle for each in captured for bundle in each.result(30)]
    assert len(authority.renewals) == 30
    chains = {bundle.content.device_certificate_chain for bundle in bundles}
    assert len(chains) > 5
    for bundle in bundles[:: max(1, len(bundles) // 500)]:
        cameras.judge(bundle)
