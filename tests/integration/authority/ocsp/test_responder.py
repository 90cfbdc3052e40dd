"""The responder on a register: fresh, never good for what is unknown, and there in an outage."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import ocsp

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.ca.issuers import Issuer
from birthmark_sma.authority.ca.store import Revocation
from birthmark_sma.authority.ocsp import responder as responder_module
from birthmark_sma.authority.ocsp.delegation import Delegation
from birthmark_sma.authority.ocsp.responder import (
    LIFETIME,
    MAX_AGE,
    UNKNOWN_LIFETIME,
    OcspAnswer,
    OcspResponder,
    SignedAnswer,
)
from birthmark_sma.authority.ocsp.store import FoundCertificate, find_certificates
from birthmark_sma.authority.server_metrics import (
    OCSP_CERTIFICATES,
    OCSP_ERRORS,
    OcspSource,
    ServerMetrics,
)
from birthmark_sma.errors import DatabaseUnavailableError, PoolFullError, RateLimitedError
from birthmark_sma.pki.keys.ca_keys import CaKeyType
from birthmark_sma.pki.ocsp.responses import Status
from tests.support.authorities import execute, new_camera, rows_of
from tests.support.devices.acts import (
    reinstate_device,
    revoke_device,
    suspend_device,
)
from tests.support.pki.chains import certificate_serial, make_ca
from tests.support.pki.ocsp import NONCE, joined, request_for, status_of, verified
from tests.support.pki.revocations import add_revocation


class Scene:
    """A responder on an authority, with a clock, a boot clock and an outage that the test sets."""

    def __init__(self, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
        self.authority = authority
        self.issuer = authority.issuer.certificate
        self.now = authority.database.clock.now()
        self.boot = 1_000.0
        self.fault: Exception | None = None
        self.looked_up: list[Collection[int]] = []
        self.admitted = 0
        self.limit = 1_000
        self.figures = ServerMetrics()
        self.issuers: Sequence[Issuer] = (authority.issuer,)
        self.delegation = Delegation(lambda: self.issuers, lambda: self.now)
        self.responder = OcspResponder(self.delegation, self.look_up, self.figures)
        monkeypatch.setattr(responder_module, "seconds_since_boot", lambda: self.boot)

    async def look_up(self, serials: Collection[int]) -> Mapping[int, FoundCertificate]:
        """Read the register, unless the database is away."""
        self.looked_up.append(serials)
        if self.fault is not None:
            raise self.fault
        return find_certificates(self.authority.database, serials)

    async def admit(self) -> None:
        """Count a signature that only one caller uses."""
        if self.admitted >= self.limit:
            raise RateLimitedError("too many", retry_after=1, policy="ocsp")
        self.admitted += 1

    def pass_time(self, seconds: float) -> None:
        """Let both clocks go on."""
        self.boot += seconds
        self.now += timedelta(seconds=seconds)

    def ask(self, request: bytes) -> OcspAnswer:
        """Return the answer to a request."""
        return asyncio.run(self.responder.answer(request, self.admit))

    def signed(self, serial_number: int) -> SignedAnswer:
        """Return the answer about a certificate, whose signature is verified."""
        answer = self.ask(request_for(self.issuer, serial_number))
        assert isinstance(answer, SignedAnswer), status_of(answer.der)
        verified(answer.der, self.issuer)
        return answer

    def read(self, serial_number: int) -> ocsp.OCSPResponse:
        """Return the response about a certificate."""
        return ocsp.load_der_ocsp_response(self.signed(serial_number).der)

    def status(self, serial_number: int) -> str:
        """Return the status of a certificate."""
        return self.read(serial_number).certificate_status.name.lower()

    def camera(self, serial: str = "camera") -> int:
        """Provision a camera; return the serial number of its certificate."""
        new_camera(self.authority, serial)
        query = "SELECT certificate_serial FROM registered_devices WHERE device_serial = :serial"
        return int(rows_of(self.authority.database, query, serial=serial)[0][0], 16)

    def count(self, status: Status, source: OcspSource) -> int:
        """Return how many certificates were counted."""
        rows = self.figures.shared_counters.all()
        return OCSP_CERTIFICATES.total(rows)[status.value, source.value]


@pytest.fixture
def scene(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Return a responder on a new authority."""
    return Scene(authority, monkeypatch)


def test_the_life_of_a_device(scene: Scene) -> None:
    """Good, on hold, good again, revoked: each shows a second later, and earlier if not cached."""
    number, database = scene.camera(), scene.authority.database
    assert scene.status(number) == "good"
    suspend_device(database, "camera")
    scene.pass_time(1)
    held = scene.read(number)
    assert held.certificate_status is ocsp.OCSPCertStatus.REVOKED
    assert held.revocation_reason is x509.ReasonFlags.certificate_hold
    reinstate_device(database, "camera")
    scene.pass_time(1)
    assert scene.status(number) == "good"
    revoke_device(database, "camera", "key_compromise")
    scene.pass_time(1)
    revoked = scene.read(number)
    assert revoked.revocation_reason is x509.ReasonFlags.key_compromise
    ((at,),) = rows_of(database, "SELECT revoked_at FROM revoked_certificates")
    told = revoked.revocation_time_utc
    assert told is not None
    listed = at if isinstance(at, datetime) else datetime.fromisoformat(at)
    assert abs(told - listed) <= timedelta(seconds=1)


def test_revoked_by_an_operator_s_sql(scene: Scene) -> None:
    """Without a row in the table of revocations: it is still not good."""
    number = scene.camera()
    execute(scene.authority.database, "UPDATE registered_devices SET status = 'revoked'")
    assert scene.read(number).revocation_reason is None
    assert scene.status(number) == "revoked"


def test_unknown_is_never_good(scene: Scene) -> None:
    """It counts for a minute only, and is signed again for each request: it may be registered."""
    unknown = certificate_serial("nobody")
    read = scene.read(unknown)
    assert read.certificate_status is ocsp.OCSPCertStatus.UNKNOWN
    assert read.next_update_utc is not None
    assert read.next_update_utc - read.this_update_utc == UNKNOWN_LIFETIME
    assert scene.status(unknown) == "unknown"
    assert scene.admitted == 2
    assert scene.status(0) == "unknown"


def test_revoked_and_not_registered(scene: Scene) -> None:
    """As on the revocation list, where it stays."""
    number, database = certificate_serial("lost"), scene.authority.database
    with database.write() as transaction:
        gone = Revocation(f"{number:x}", "lost", scene.now, "no reason of this version")
        add_revocation(transaction, gone)
    assert scene.status(number) == "revoked"


def test_a_signature_is_used_again(scene: Scene) -> None:
    """Within a second without the database; then the row is read again; after 5 minutes signed."""
    number = scene.camera()
    first = scene.signed(number)
    assert scene.signed(number) is first
    assert len(scene.looked_up) == 1
    scene.pass_time(1)
    assert scene.signed(number) is first
    assert len(scene.looked_up) == 2
    scene.pass_time(MAX_AGE.total_seconds())
    second = scene.signed(number)
    assert second.this_update > first.this_update
    assert second.next_update - second.this_update == LIFETIME
    assert second.etag != first.etag
    assert scene.count(Status.GOOD, OcspSource.SIGNED) == 2
    assert scene.count(Status.GOOD, OcspSource.CACHED) == 2
    assert scene.admitted == 0


def test_both_hash_algorithms(scene: Scene) -> None:
    """Each has a response of its own, as the response repeats the CertID."""
    number = scene.camera()
    one = scene.signed(number)
    other = scene.ask(request_for(scene.issuer, number, algorithm=hashes.SHA256()))
    assert ocsp.load_der_ocsp_response(other.der).hash_algorithm.name == "sha256"
    assert scene.signed(number) is one


def test_a_nonce_is_signed_on_demand(scene: Scene) -> None:
    """The same question twice costs two signatures, which are limited."""
    number = scene.camera()
    request = request_for(scene.issuer, number, nonce=NONCE)
    one, other = scene.ask(request), scene.ask(request)
    assert one.der != other.der
    (nonce,) = ocsp.load_der_ocsp_response(one.der).extensions
    assert nonce.value == x509.OCSPNonce(NONCE)
    assert scene.admitted == 2


def test_the_limit_holds_for_what_is_signed_for_one_caller(scene: Scene) -> None:
    """Threat 36: known certificates without a nonce are not limited."""
    number = scene.camera()
    scene.limit = 0
    assert scene.status(number) == "good"
    for request in (
        request_for(scene.issuer, number, nonce=NONCE),
        request_for(scene.issuer, certificate_serial("nobody")),
        joined(*[request_for(scene.issuer, number)] * 2),
    ):
        with pytest.raises(RateLimitedError):
            scene.ask(request)
    assert scene.count(Status.GOOD, OcspSource.SIGNED) == 1
    assert scene.count(Status.UNKNOWN, OcspSource.SIGNED) == 0


def test_several_certificates(scene: Scene) -> None:
    """One response, one query, one unit of the limit."""
    numbers = [scene.camera("a"), scene.camera("b"), certificate_serial("nobody")]
    revoke_device(scene.authority.database, "b", "superseded")
    answer = scene.ask(joined(*(request_for(scene.issuer, each) for each in numbers)))
    statuses = [
        each.certificate_status for each in ocsp.load_der_ocsp_response(answer.der).responses
    ]
    known = ocsp.OCSPCertStatus
    assert statuses == [known.GOOD, known.REVOKED, known.UNKNOWN]
    assert (len(scene.looked_up), scene.admitted) == (1, 1)


def test_an_issuer_that_is_not_here(scene: Scene) -> None:
    """RFC 9919, section 3.2.3: unauthorized, also if one of several certificates is another's."""
    number = scene.camera()
    stranger = make_ca(CaKeyType.EC_P256, now=scene.now - timedelta(days=1)).intermediate
    foreign, own = request_for(stranger, number), request_for(scene.issuer, number)
    for request in (foreign, joined(own, foreign)):
        assert status_of(scene.ask(request).der) is ocsp.OCSPResponseStatus.UNAUTHORIZED
    assert scene.looked_up == []


def test_two_issuers(scene: Scene) -> None:
    """A certificate is known under its own issuer alone; each issuer has its own responder."""
    number = scene.camera()
    made = make_ca(CaKeyType.EC_P256, now=scene.now - timedelta(days=1))
    second = replace(
        scene.authority.issuer,
        name="intermediate-2",
        certificate=made.intermediate,
        signer=made.signer,
    )
    scene.issuers = (scene.authority.issuer, second)
    assert scene.status(number) == "good"
    answer = scene.ask(request_for(made.intermediate, number))
    read = verified(answer.der, made.intermediate)
    assert read.certificate_status is ocsp.OCSPCertStatus.UNKNOWN
    scene.issuers = (second,)
    refused = scene.ask(request_for(scene.issuer, number))
    assert status_of(refused.der) is ocsp.OCSPResponseStatus.UNAUTHORIZED


@pytest.mark.parametrize("status", ["suspended", "revoked", "retired"])
def test_an_operator_s_own_sql(scene: Scene, status: str) -> None:
    """A device that is not active is never good, also where nothing lists its certificate."""
    number = scene.camera()
    execute(
        scene.authority.database, "UPDATE registered_devices SET status = :status", status=status
    )
    assert scene.status(number) == "revoked"


def test_the_database_goes_away(scene: Scene) -> None:
    """The last signature serves as long as caches may keep it; what is not there comes later."""
    number, other = scene.camera("a"), scene.camera("b")
    first = scene.signed(number)
    scene.fault = DatabaseUnavailableError("it is away")
    scene.pass_time(MAX_AGE.total_seconds() - 2)
    assert scene.signed(number) is first
    asked = len(scene.looked_up)
    assert scene.signed(number) is first
    assert len(scene.looked_up) == asked, "each request would wait for the database"
    later = ocsp.OCSPResponseStatus.TRY_LATER
    assert status_of(scene.ask(request_for(scene.issuer, other)).der) is later
    with_nonce = request_for(scene.issuer, number, nonce=NONCE)
    assert status_of(scene.ask(with_nonce).der) is later
    scene.pass_time(3)
    assert status_of(scene.ask(request_for(scene.issuer, number)).der) is later
    assert OCSP_ERRORS.total(scene.figures.shared_counters.all())["try_later",] == 3
    scene.fault = None
    revoke_device(scene.authority.database, "a", "key_compromise")
    assert scene.status(number) == "revoked"


def test_a_flood_keeps_no_old_status_alive(scene: Scene) -> None:
    """A queue that is full is no outage: the answer comes later, and is not an old one."""
    number = scene.camera()
    scene.signed(number)
    scene.pass_time(1)
    scene.fault = PoolFullError()
    refused = scene.ask(request_for(scene.issuer, number))
    assert status_of(refused.der) is ocsp.OCSPResponseStatus.TRY_LATER
    scene.fault = None
    assert scene.status(number) == "good"


def test_the_clock_is_set_back(scene: Scene) -> None:
    """A response of the future is never sent, and the responder's certificate is renewed."""
    number = scene.camera()
    first = scene.signed(number)
    for days in (60, -30):
        scene.now += timedelta(days=days)
        answer = scene.signed(number)
        assert answer.this_update == scene.now.replace(microsecond=0)
        (certificate,) = ocsp.load_der_ocsp_response(answer.der).certificates
        assert certificate.not_valid_before_utc <= scene.now <= certificate.not_valid_after_utc
        assert answer.next_update <= certificate.not_valid_after_utc
    assert first.this_update != answer.this_update


def test_after_the_end_of_the_issuer(scene: Scene) -> None:
    """Nobody can answer with authority any more; and before its beginning not yet."""
    number = scene.camera()
    for now in (scene.issuer.not_valid_after_utc, scene.issuer.not_valid_before_utc):
        scene.now = now + timedelta(days=-1 if now < scene.now else 1)
        answer = scene.ask(request_for(scene.issuer, number))
        assert status_of(answer.der) is ocsp.OCSPResponseStatus.UNAUTHORIZED


def test_the_cache_is_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate that nobody asked about for the longest time is forgotten."""
    monkeypatch.setattr(responder_module, "MOST_ANSWERS", 2)
    numbers = [scene.camera(serial) for serial in "abc"]
    first, second = scene.signed(numbers[0]), scene.signed(numbers[1])
    assert scene.signed(numbers[0]) is first
    scene.signed(numbers[2])
    assert scene.signed(numbers[0]) is first
    assert scene.signed(numbers[1]) is not second


def test_many_ask_at_once(scene: Scene) -> None:
    """Also while the device is revoked: no response is good after the commit and a second."""
    number = scene.camera()
    request = request_for(scene.issuer, number)

    async def storm() -> list[OcspAnswer]:
        return await asyncio.gather(
            *(scene.responder.answer(request, scene.admit) for _ in range(50))
        )

    asyncio.run(storm())
    revoke_device(scene.authority.database, "camera", "superseded")
    scene.pass_time(1)
    for answer in asyncio.run(storm()):
        read = ocsp.load_der_ocsp_response(answer.der)
        assert read.certificate_status is ocsp.OCSPCertStatus.REVOKED
