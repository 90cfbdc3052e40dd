"""Provisioning: whatever goes wrong on the way, a camera gets its one answer."""

import base64
import json
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.devices import re_enrolments
from birthmark_sma.authority.provisioning.table_key_encryption import seal_table_keys
from birthmark_sma.device import (
    UNSEALED,
    Enrolment,
    nonces,
    provisioning,
    provisioning_response,
    start_camera,
    state,
)
from birthmark_sma.device.certification import UnusableAnswerError
from birthmark_sma.device.state_directory import PrivateDirectory
from birthmark_sma.errors import (
    AuthorityAwayError,
    ConfigurationError,
    OtherDeviceError,
    ProvisioningRefusedError,
)
from birthmark_sma.pki.keys.key_policy import (
    KeyEncryptionKey,
    check_key_encryption_key,
    load_public_key,
)
from birthmark_sma.pki.keys.recipient_key import recipient_urn
from birthmark_sma.protocol.verdict import Verdict
from tests.device.conftest import StartCamera
from tests.support.authorities import new_camera
from tests.support.cameras.camera import csr_pem, new_key, public_pem
from tests.support.devices.actors import ACTOR
from tests.support.http.faulty_server import Behaviour, FaultyServer
from tests.support.http.tls import TestCa
from tests.support.in_process import (
    Fault,
    InProcess,
    answering,
    answering_with,
    lost_answer,
    refused_connection,
)
from tests.support.programs.running import new_serial

Answer = Callable[[], httpx2.Response]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited between requests; no time passes."""
    waited: list[float] = []

    class Time:
        monotonic = staticmethod(lambda: sum(waited))
        sleep = staticmethod(waited.append)

    monkeypatch.setattr(provisioning, "time", Time)
    return waited


def slow(request: httpx2.Request, _: Answer) -> Any:
    """Nothing comes in time."""
    raise httpx2.ReadTimeout("timed out", request=request)


def endless(_: httpx2.Request, __: Answer) -> httpx2.Response:
    """Far more than a camera takes in."""
    return httpx2.Response(200, content=b"x" * (provisioning.MAX_ANSWER_BYTES + 1))


def altered(**changes: Any) -> Fault:
    """A true answer, in which something is not as it should be."""

    def fault(_: httpx2.Request, answer: Answer) -> httpx2.Response:
        fields = answer().json()
        for name, value in changes.items():
            fields[name] = value(fields[name]) if callable(value) else value
        return httpx2.Response(200, json=fields)

    return fault


def of_version_8(pem: str) -> str:
    """The same certificate, of a version of X.509 that there is not."""
    der = ssl.PEM_cert_to_DER_cert(pem)
    assert der.count(b"\xa0\x03\x02\x01\x02") == 1
    return ssl.DER_cert_to_PEM_cert(der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07"))


def jwe_header(**members: Any) -> str:
    """A compact JWE with anything in its header, and nothing in its other parts."""
    header = {"alg": "ECDH-ES+A256KW", "enc": "A256GCM"} | members
    return base64.urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip("=") + "...."


RETRIED: dict[str, Fault] = {
    "refused connection": refused_connection,
    "lost answer": lost_answer,
    "slow": slow,
    "429": answering(429, "rate-limited", Retry_After="3"),
    "408": answering(408, "request-timeout"),
    "500": answering(500, "internal-error"),
    "502 of a proxy": lambda _, __: httpx2.Response(502, text="<html>"),
    "503": answering(503, "database-unavailable", Retry_After="1"),
    "captive portal, redirect": lambda _, __: httpx2.Response(
        302, headers={"Location": "http://login.example/"}
    ),
    "captive portal, page": answering_with(b"<html>Welcome to the airport</html>"),
    "empty": answering_with(b""),
    "deep": answering_with(b"[" * 100_000),
    "endless": endless,
    "half": altered(device_certificate=lambda pem: pem[:100]),
    "no chain": altered(certificate_chain=[]),
    "chain of strangers": altered(certificate_chain=lambda chain: [chain[1], chain[1]]),
    "no secrets": altered(sealed_secrets=""),
    "tables of another": altered(table_assignments=[0, 1, 1]),
    "number for text": altered(certificate_chain=7),
    "number for a certificate": altered(device_certificate=7),
    "certificate of version 8": altered(device_certificate=of_version_8),
    "number for a JWE": altered(sealed_secrets=7),
    "number in a JWE": altered(
        sealed_secrets=jwe_header(epk={"kty": "EC", "crv": "P-256", "x": 1, "y": 2})
    ),
    "table without end": lambda _, answer: httpx2.Response(
        200, json=answer().json() | {"table_assignments": [0, 1, 2**31]}
    ),
    "table of infinity": lambda _, answer: httpx2.Response(
        200, content=json.dumps(answer().json() | {"table_assignments": [float("inf")] * 3})
    ),
}


@pytest.mark.parametrize("fault", RETRIED)
def test_what_may_go_by_is_tried_again(
    start: StartCamera, authority: Authority, enrolment: Enrolment, waits: list[float], fault: str
) -> None:
    """Threats 8 and 19: the very same request each time, and one device in the end."""
    asked = InProcess(authority, RETRIED[fault], RETRIED[fault])
    camera = start(client=asked, enrolment=replace(enrolment, patience=60))
    assert camera.capture(b"picture")
    assert len(asked.requests) == 3
    assert len({(r.content, r.headers["Idempotency-Key"]) for r in asked.requests}) == 1
    assert len(waits) == 2


@pytest.mark.parametrize("fault", RETRIED)
def test_and_at_the_next_start(
    start: StartCamera, authority: Authority, place: Path, fault: str
) -> None:
    """Threat 8: patience ends, the app too; a later start sends the same, and is answered."""
    first = InProcess(authority, RETRIED[fault])
    with pytest.raises(AuthorityAwayError, match="start again later"):
        start(client=first)
    second = InProcess(authority)
    assert start(client=second).capture(b"picture")
    assert first.requests[0].content == second.requests[0].content


def test_waits_grow_and_differ(
    start: StartCamera, authority: Authority, enrolment: Enrolment, waits: list[float]
) -> None:
    asked = InProcess(authority, *[refused_connection] * 40)
    with pytest.raises(AuthorityAwayError, match="ConnectError"):
        start(client=asked, enrolment=replace(enrolment, patience=600))
    assert sum(waits) <= 600
    assert len(waits) > 10
    assert all(0.5 * 2**n <= min(wait, 32) <= 2**n for n, wait in enumerate(waits[:6]))
    assert max(waits) <= 60


def test_the_authority_says_how_long(
    start: StartCamera, authority: Authority, enrolment: Enrolment, waits: list[float]
) -> None:
    asked = InProcess(authority, answering(429, Retry_After="17"))
    start(client=asked, enrolment=replace(enrolment, patience=60))
    assert waits == [17]


def test_longer_than_there_is_patience_for(
    start: StartCamera, authority: Authority, enrolment: Enrolment, waits: list[float]
) -> None:
    """The app can sleep, or switch off, in place of waiting here."""
    with pytest.raises(AuthorityAwayError) as raised:
        start(
            client=InProcess(authority, answering(503, Retry_After="900")),
            enrolment=replace(enrolment, patience=60),
        )
    assert raised.value.retry_after == 900
    assert waits == []


@pytest.mark.parametrize(
    "retry_after", ["Wed, 21 Oct 2026 07:28:00 GMT", "-3", "1e9", "9" * 40, ""]
)
def test_a_retry_after_that_is_no_number_of_seconds(
    start: StartCamera, authority: Authority, enrolment: Enrolment, waits: list[float],
    retry_after: str,
) -> None:  # fmt: skip
    asked = InProcess(authority, answering(503, Retry_After=retry_after))
    start(client=asked, enrolment=replace(enrolment, patience=60))
    assert len(waits) == 1
    assert waits[0] <= 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, "unauthenticated"), (403, "enrolment-refused"), (404, "not-found"),
     (413, "body-too-large"), (422, "serial-refused"), (409, "public-key-in-use")],
)  # fmt: skip
def test_what_is_refused_is_asked_once(
    start: StartCamera, authority: Authority, status: int, kind: str
) -> None:
    asked = InProcess(authority, answering(status, kind))
    with pytest.raises(ProvisioningRefusedError) as raised:
        start(client=asked)
    assert (raised.value.status, raised.value.kind) == (status, kind)
    assert len(asked.requests) == 1


def test_a_serial_that_another_camera_has(
    start: StartCamera, authority: Authority, enrolment: Enrolment
) -> None:
    """Threat 8: it says what a person can do about it."""
    new_camera(authority, enrolment.device_serial)
    for _ in range(2):
        with pytest.raises(ProvisioningRefusedError, match="a new serial in an empty directory"):
            start()


def test_a_refusal_by_no_authority(start: StartCamera, authority: Authority) -> None:
    asked = InProcess(authority, lambda _, __: httpx2.Response(404, text="nginx"))
    with pytest.raises(ProvisioningRefusedError, match="does not come from such an authority"):
        start(client=asked)


@dataclass(frozen=True)
class Answered:
    """A request, and the true answer to it."""

    pending: state.Pending
    enrolment: Enrolment
    fields: dict[str, Any]


@pytest.fixture(scope="session")
def answered(authority: Authority) -> Answered:
    """What all examples are alterations of."""
    enrolment = Enrolment("http://localhost", new_serial(), "Test")
    pending = provisioning.begin(enrolment)
    response = InProcess(authority).post(
        "http://localhost",
        content=pending.request,
        headers={"Idempotency-Key": pending.idempotency_key},
    )
    return Answered(pending, enrolment, response.json())


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
EPHEMERAL = st.fixed_dictionaries(
    {"kty": st.just("EC") | ANYTHING, "crv": st.just("P-256") | ANYTHING},
    optional={"x": ANYTHING, "y": ANYTHING},
)


@given(data=st.data())
def test_no_answer_is_an_accident(answered: Answered, data: st.DataObject) -> None:
    """Threat 21: whatever stands where, it is one kind of refusal, or it is the true answer."""
    fields = dict(answered.fields)
    name = data.draw(st.sampled_from([*fields, None]))
    if name is None:
        answer = data.draw(ANYTHING)
    elif name == "sealed_secrets" and data.draw(st.booleans()):
        answer = fields | {name: jwe_header(epk=data.draw(EPHEMERAL), cty=data.draw(ANYTHING))}
    elif name == "device_certificate" and data.draw(st.booleans()):
        der = bytearray(ssl.PEM_cert_to_DER_cert(fields[name]))
        der[data.draw(st.integers(0, len(der) - 1))] ^= data.draw(st.integers(1, 255))
        answer = fields | {name: ssl.DER_cert_to_PEM_cert(bytes(der))}
    else:
        answer = fields | {name: data.draw(ANYTHING)}
    with suppress(UnusableAnswerError):
        identity = provisioning_response.make_identity(
            answered.pending, json.dumps(answer).encode()
        )
        assert isinstance(identity, state.Identity)


@pytest.mark.parametrize("moment", [b"20550101000000Z", b"20560101000000Z"])
def test_a_certificate_of_the_year_0(answered: Answered, moment: bytes) -> None:
    """Threat 21: a date that there is not is no date, wherever it stands."""
    key = serialization.load_pem_private_key(answered.pending.private_key.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    der = (
        x509.CertificateBuilder(x509.Name([]), x509.Name([]), key.public_key(), 77)
        .not_valid_before(datetime(2055, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2056, 1, 1, tzinfo=UTC))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )
    pem = ssl.DER_cert_to_PEM_cert(der.replace(moment, b"00000101000000Z"))
    answer = answered.fields | {"device_certificate": pem, "certificate_chain": [pem, pem]}
    with pytest.raises(UnusableAnswerError, match="do not form a valid path"):
        provisioning_response.make_identity(answered.pending, json.dumps(answer).encode())


# --- how many keys a table has, which no answer tells


@pytest.mark.parametrize(
    ("tables", "keys"),
    [("0 1 9", 100), ("7 8 9", 100), ("0 1 10", 1_000), ("2497 2498 2499", 1_000)],
)
def test_keys_of_a_prototype_and_of_the_others(tables: str, keys: int) -> None:
    """Threat 14: an index beyond the table FAILs, however genuine the picture."""
    assert provisioning_response.keys_in(tables.split()) == keys


@pytest.mark.parametrize("said", [None, 7])
def test_what_the_app_says_counts_for_more(
    start: StartCamera, enrolment: Enrolment, place: Path, said: int | None
) -> None:
    """These tables are numbered as a prototype's are."""
    camera = start(enrolment=replace(enrolment, keys_per_table=said))
    indices = {camera.capture(b"x").content.camera_token.key_index for _ in range(200)}
    assert max(indices) < (said or 100)
    assert len(indices) > (6 if said else 50)


def test_what_the_app_says_later_counts_too(
    start: StartCamera, enrolment: Enrolment, place: Path
) -> None:
    """A camera that began with the wrong size need not be provisioned anew."""
    start(enrolment=replace(enrolment, keys_per_table=None)).close()
    start(enrolment=replace(enrolment, keys_per_table=3)).close()
    camera = start(enrolment=replace(enrolment, keys_per_table=None))
    indices = {camera.capture(b"x").content.camera_token.key_index for _ in range(60)}
    assert indices <= {0, 1, 2}


# --- what the app may change before there is an answer


def test_details_are_put_right_after_a_refusal(
    start: StartCamera, authority: Authority, enrolment: Enrolment
) -> None:
    """The first request goes out again first: it may have been answered after all."""
    with pytest.raises(ProvisioningRefusedError):
        start(client=InProcess(authority, answering(422, "description-refused")))
    asked = InProcess(authority, answering(422, "description-refused"))
    camera = start(client=asked, enrolment=replace(enrolment, device_family="Better"))
    first, second = (json.loads(r.content) for r in asked.requests)
    assert (first["device_family"], second["device_family"]) == ("Test", "Better")
    assert len({r.headers["Idempotency-Key"] for r in asked.requests}) == 2
    assert camera.capture(b"picture")


def test_details_that_change_too_late_change_nothing(
    start: StartCamera, authority: Authority, enrolment: Enrolment
) -> None:
    """Threat 8: an update of the app while the answer was lost must not end in a 409."""
    with pytest.raises(AuthorityAwayError):
        start(client=InProcess(authority, lost_answer))
    assert start(enrolment=replace(enrolment, device_family="Better", app_version="2"))


def test_another_serial_needs_another_directory(start: StartCamera, authority: Authority) -> None:
    """A disk that was copied before its first answer: two cameras must not become one."""
    asked = InProcess(authority, lost_answer)
    with pytest.raises(AuthorityAwayError):
        start(client=asked)
    with pytest.raises(OtherDeviceError):
        start(client=asked, enrolment=Enrolment("http://localhost", "another", "Test"))
    assert len(asked.requests) == 1


def test_a_new_enrolment_key_is_tried_after_the_old_one(
    start: StartCamera, authority: Authority, enrolment: Enrolment, place: Path
) -> None:
    """Threat 8: a first answer is given to the key that asked first, and only to that."""
    with pytest.raises(AuthorityAwayError):
        start(client=InProcess(authority, slow), enrolment=replace(enrolment, enrolment_key="old"))
    asked = InProcess(authority, answering(401, "unauthenticated"), slow)
    renewed = replace(enrolment, enrolment_key="new")
    with pytest.raises(AuthorityAwayError):
        start(client=asked, enrolment=renewed)
    assert [r.headers["Authorization"] for r in asked.requests] == ["Bearer old", "Bearer new"]
    kept = state.load(PrivateDirectory(place), UNSEALED)
    assert isinstance(kept, state.Pending)
    assert kept.enrolment_key == "new"
    assert start(enrolment=renewed)


def test_a_camera_that_began_with_an_empty_enrolment_key_gets_on(
    start: StartCamera, authority: Authority, enrolment: Enrolment, place: Path
) -> None:
    """Threat 8: no request can carry it, so none was answered; the app's next key counts."""
    directory = PrivateDirectory(place)
    nonces.begin(directory)
    state.save(replace(provisioning.begin(enrolment), enrolment_key=""), directory, UNSEALED)
    asked = InProcess(authority, answering(401, "unauthenticated"))
    assert start(client=asked, enrolment=replace(enrolment, enrolment_key="right"))
    assert [r.headers.get("Authorization") for r in asked.requests] == [None, "Bearer right"]


@pytest.mark.parametrize("error", [httpx2.LocalProtocolError, httpx2.UnsupportedProtocol])
def test_what_cannot_leave_is_no_absence(
    start: StartCamera, authority: Authority, enrolment: Enrolment, error: type[Exception]
) -> None:
    """Nobody waits for an authority that was never asked."""

    def refused_here(_: httpx2.Request, __: Answer) -> Any:
        raise error("Illegal header value")

    asked = InProcess(authority, refused_here)
    with pytest.raises(ConfigurationError, match="cannot be sent to the authority: Illegal"):
        start(client=asked, enrolment=replace(enrolment, patience=60))
    assert len(asked.requests) == 1


# --- what is sent, and to whom


def test_the_request_proves_possession_and_asks_for_sealed_keys(
    start: StartCamera, authority: Authority, place: Path
) -> None:
    """Threats 4, 28 and 41: it names the camera, no private key leaves, no master key is open."""
    answers: list[dict[str, Any]] = []

    def note(_: httpx2.Request, answer: Answer) -> httpx2.Response:
        response = answer()
        answers.append(response.json())
        return response

    asked = InProcess(authority, note)
    camera = start(client=asked)
    body = json.loads(asked.requests[0].content)
    csr = x509.load_pem_x509_csr(body["csr"].encode())
    assert csr.is_signature_valid
    [common_name] = csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert common_name.value == body["device_serial"]
    assert csr.public_key() == camera.certificate.public_key()
    assert "PRIVATE" not in asked.requests[0].content.decode()
    assert not {"table_keys", "simulated_nuc_hash"} & set(answers[0])
    head = answers[0]["sealed_secrets"].partition(".")[0]
    assert json.loads(base64.urlsafe_b64decode(head + "=="))["alg"] == "ECDH-ES+A256KW"


def test_a_sensors_own_nuc_hash(
    start: StartCamera, enrolment: Enrolment, place: Path, authority: Authority
) -> None:
    own = bytes(range(32))[::-1]
    start(enrolment=replace(enrolment, nuc_hash=own))
    kept = state.load(PrivateDirectory(place), UNSEALED)
    assert isinstance(kept, state.Identity)
    assert bytes.fromhex(kept.nuc_hash) == own


def test_a_pinned_root(start: StartCamera, enrolment: Enrolment, authority: Authority) -> None:
    """Threat 1: another authority's answer is none."""
    with pytest.raises(AuthorityAwayError, match="root certificate is not one"):
        start(enrolment=replace(enrolment, root_fingerprint="00" * 32))
    pinned = authority.root.fingerprint(hashes.SHA256()).hex(":").upper()
    assert start(enrolment=replace(enrolment, root_fingerprint=pinned))


def test_a_certificate_of_another_camera(start: StartCamera, authority: Authority) -> None:
    serial = new_serial()
    pending = provisioning.begin(Enrolment("http://localhost", serial, "Test"))
    response = InProcess(authority).post(
        "http://localhost", content=pending.request, headers={"Idempotency-Key": serial}
    )
    theirs = response.json()["device_certificate"]
    with pytest.raises(AuthorityAwayError, match="for another key"):
        start(client=InProcess(authority, altered(device_certificate=theirs)))


def test_a_certificate_for_another_serial(
    start: StartCamera, authority: Authority, place: Path
) -> None:
    """Of this camera's key, by an authority that mixed two up."""

    def mixed_up(request: httpx2.Request, _: Answer) -> httpx2.Response:
        kept = state.load(PrivateDirectory(place), UNSEALED)
        assert isinstance(kept, state.Pending)
        fields = json.loads(request.content) | {"device_serial": new_serial()}
        named = recipient_urn(private_key(kept.key_encryption_private_key).public_key())
        fields["csr"] = csr_pem(private_key(kept.private_key), fields["device_serial"], named)
        return InProcess(authority).post(
            request.url, json=fields, headers={"Idempotency-Key": fields["device_serial"]}
        )

    with pytest.raises(AuthorityAwayError, match="for another camera"):
        start(client=InProcess(authority, mixed_up))


def private_key(pem: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


# --- a relay between the camera and the authority


def recipient_of(request: httpx2.Request) -> KeyEncryptionKey:
    """The camera's recipient key, which is no secret."""
    pem: str = json.loads(request.content)["key_encryption_public_key"]
    return check_key_encryption_key(load_public_key(pem))


def sent_on(authority: Authority, request: httpx2.Request, **changes: Any) -> httpx2.Response:
    """What the authority says to a request that the relay altered."""
    fields = json.loads(request.content) | changes
    return InProcess(authority).post(
        request.url, json=fields, headers={"Idempotency-Key": new_serial()}
    )


@pytest.mark.parametrize("change", ["its own key", "no key"])
def test_a_relay_cannot_choose_the_recipient_key(
    start: StartCamera, authority: Authority, enrolment: Enrolment, change: str
) -> None:
    """Threat 41: the camera signed the digest of its key; so nothing is sealed to another one."""
    theirs = {"its own key": public_pem(new_key()), "no key": None}[change]
    heard: list[httpx2.Response] = []

    def relay(request: httpx2.Request, _: Answer) -> httpx2.Response:
        heard.append(sent_on(authority, request, key_encryption_public_key=theirs))
        return heard[0]

    with pytest.raises(ProvisioningRefusedError, match="recipient key"):
        start(client=InProcess(authority, relay))
    assert not {"table_keys", "simulated_nuc_hash", "sealed_secrets"} & set(heard[0].json())
    assert start().capture(b"picture")  # nothing was registered: it is provisioned in the end


def of_another_camera(
    authority: Authority, request: httpx2.Request, answer: Answer
) -> httpx2.Response:
    """The relay's own camera names this one's recipient key, and gets its own secrets sealed."""
    serial = new_serial()
    csr = csr_pem(new_key(), serial, recipient_urn(recipient_of(request)))
    others = sent_on(authority, request, device_serial=serial, csr=csr).json()
    # The tables as well, so that only serial and certificate tell the two apart.
    swapped = {name: others[name] for name in ("sealed_secrets", "table_assignments")}
    return httpx2.Response(200, json=answer().json() | swapped)


def of_another_certificate(
    _: Authority, request: httpx2.Request, answer: Answer
) -> httpx2.Response:
    """What was sealed for the same serial and another certificate."""
    fields = answer().json()
    secret = {
        "device_serial": json.loads(request.content)["device_serial"],
        "certificate_sha256": "00" * 32,
        "nuc_hash": "11" * 32,
        "table_keys": {str(table): "22" * 32 for table in fields["table_assignments"]},
    }
    sealed = seal_table_keys(secret, recipient_of(request))
    return httpx2.Response(200, json=fields | {"sealed_secrets": sealed})


def in_the_clear(_: Authority, __: httpx2.Request, answer: Answer) -> httpx2.Response:
    """The form of the answer for cameras without a recipient key."""
    fields = answer().json()
    del fields["sealed_secrets"]
    clear = {
        "simulated_nuc_hash": "11" * 32,
        "table_keys": {str(table): "22" * 32 for table in fields["table_assignments"]},
    }
    return httpx2.Response(200, json=fields | clear)


@pytest.mark.parametrize(
    ("swap", "told"),
    [
        (of_another_camera, "are for another certificate"),
        (of_another_certificate, "are for another certificate"),
        (in_the_clear, "does not come from such an authority"),
    ],
)
def test_a_relay_cannot_swap_the_secrets(
    start: StartCamera, authority: Authority, swap: Callable[..., httpx2.Response], told: str
) -> None:
    """Threat 41: what is sealed says for which serial and certificate it is."""

    def relay(request: httpx2.Request, answer: Answer) -> httpx2.Response:
        return swap(authority, request, answer)

    with pytest.raises(AuthorityAwayError, match=told):
        start(client=InProcess(authority, relay))
    assert start().capture(b"picture")


SPOILT_SECRETS: dict[str, dict[str, Any]] = {
    "a short NUC hash": {"nuc_hash": "11" * 31},
    "a NUC hash that is no hex": {"nuc_hash": "zz" * 32},
    "no NUC hash": {"nuc_hash": None},
    "a list of keys": {"table_keys": ["22" * 32] * 3},
    "two keys": {"table_keys": {"0": "22" * 32, "1": "22" * 32}},
    "a member more": {"more": 1},
    "a number for a serial": {"device_serial": 7},
}


@pytest.mark.parametrize("spoilt", SPOILT_SECRETS.values(), ids=SPOILT_SECRETS)
def test_secrets_that_are_not_what_they_should_be(
    answered: Answered, spoilt: dict[str, Any]
) -> None:
    pem = answered.fields["device_certificate"].encode()
    recipient = private_key(answered.pending.key_encryption_private_key)
    sound = {
        "device_serial": answered.pending.device_serial,
        "certificate_sha256": x509.load_pem_x509_certificate(pem)
        .fingerprint(hashes.SHA256())
        .hex(),
        "nuc_hash": "11" * 32,
        "table_keys": {str(table): "22" * 32 for table in answered.fields["table_assignments"]},
    }

    def identity(secret: dict[str, Any]) -> state.Identity:
        sealed = seal_table_keys(secret, recipient.public_key())
        answer = json.dumps(answered.fields | {"sealed_secrets": sealed}).encode()
        return provisioning_response.make_identity(answered.pending, answer)

    assert identity(sound).nuc_hash == "11" * 32
    with pytest.raises(UnusableAnswerError):
        identity(sound | spoilt)


def test_a_request_of_an_earlier_version_is_made_anew(
    start: StartCamera, authority: Authority, enrolment: Enrolment, place: Path
) -> None:
    """Its CSR names nobody, so that the authority refuses it, now and for ever."""
    directory = PrivateDirectory(place)
    nonces.begin(directory)
    pending = provisioning.begin(enrolment)
    body = json.loads(pending.request) | {"csr": csr_pem(private_key(pending.private_key))}
    state.save(replace(pending, request=json.dumps(body)), directory, UNSEALED)
    camera = start()
    assert camera.certificate.public_key() == private_key(pending.private_key).public_key()


@pytest.mark.parametrize(
    "url",
    [
        "http://authority.example",
        "http://192.0.2.1:8000",
        "ftp://localhost",
        "authority",
        "",
        "http://",
    ],
)
def test_keys_do_not_travel_in_the_open(url: str) -> None:
    """Threat 28: https, unless it stays on this machine."""
    with pytest.raises(ConfigurationError, match="https://"):
        Enrolment(url, "x", "Test")
    for good in ("https://authority.example", "http://[::1]:8000", "http://localhost:8000/"):
        assert Enrolment(good, "x", "Test")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"device_serial": ""}, "serial"),
        ({"device_serial": "a\nb"}, "serial"),
        ({"device_serial": "x" * 65}, "serial"),
        ({"url": "https://"}, "host"),
        ({"url": "https://:443/"}, "host"),
        ({"enrolment_key": ""}, "enrolment key"),
        ({"enrolment_key": "a b"}, "enrolment key"),
        ({"enrolment_key": "ab\n"}, "enrolment key"),
        ({"enrolment_key": "a\r\nX: y"}, "enrolment key"),
        ({"nuc_hash": b"short"}, "NUC hash"),
        ({"keys_per_table": 0}, "keys_per_table"),
        ({"keys_per_table": 2**31}, "keys_per_table"),
        ({"root_fingerprint": "ab:cd"}, "fingerprint"),
    ],
)
def test_what_cannot_be_right_is_refused_at_once(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        Enrolment(
            **{"url": "http://localhost", "device_serial": "x", "device_family": "T"} | fields
        )


def test_secrets_are_not_told(enrolment: Enrolment) -> None:
    """Threat 28."""
    pending = provisioning.begin(replace(enrolment, enrolment_key="sma_n33dle", nuc_hash=b"n" * 32))
    told = repr(pending) + repr(replace(enrolment, enrolment_key="sma_n33dle", nuc_hash=b"n" * 32))
    for secret in ("n33dle", "PRIVATE", pending.idempotency_key, pending.nonce_secret, "nnnn"):
        assert secret not in told


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n"
DRIPPING: dict[str, Behaviour] = {
    "head": lambda visit: visit.drip(b"HTTP/1.1 200 OK\r\n" + b"X-Drop: 1\r\n" * 100, 0.02),
    "body": lambda visit: visit.drip(HEAD + b"\r\n" + b" " * 1_000, 0.02),
    "body without a length": lambda visit: visit.drip(
        b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 999, 0.02
    ),
    "silence": lambda visit: visit.wait(),
}


@pytest.mark.parametrize("dripping", DRIPPING)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_whoever_sends_a_byte_now_and_then_holds_nobody_up(
    tmp_path: Path, enrolment: Enrolment, monkeypatch: pytest.MonkeyPatch,
    scheme: str, dripping: str,
) -> None:  # fmt: skip
    """An attempt ends as a whole, in time: a camera in the field has nobody to restart it."""
    monkeypatch.setattr(provisioning, "ATTEMPT_SECONDS", 0.3)
    ca = TestCa(tmp_path / "ca")
    issued = ca.issue("localhost")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(issued.certificate_file, issued.key_file)
    with FaultyServer(DRIPPING[dripping], tls=tls if scheme == "https" else None) as server:
        begun = time.monotonic()
        asked = replace(enrolment, url=server.url, ssl_context=ca.client_context())
        with pytest.raises(AuthorityAwayError, match="takes too long"):
            start_camera(tmp_path / "camera", sealing=UNSEALED, enrolment=asked)
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("of_the_app", [False, True])
def test_every_attempt_has_its_time(
    place: Path, enrolment: Enrolment, monkeypatch: pytest.MonkeyPatch,
    of_the_app: bool,
) -> None:  # fmt: skip
    """Also the second one, after an answer that left the connection open."""
    monkeypatch.setattr(provisioning, "ATTEMPT_SECONDS", 1)
    monkeypatch.setattr(provisioning, "_FIRST_WAIT_SECONDS", 0.05)
    with (
        httpx2.Client(timeout=5) as keeps_open,
        FaultyServer(lambda visit: visit.answer({}, 503), DRIPPING["head"]) as server,
    ):
        begun = time.monotonic()
        with pytest.raises(AuthorityAwayError, match="takes too long"):
            start_camera(
                place,
                sealing=UNSEALED,
                enrolment=replace(enrolment, url=server.url, patience=0.9),
                client=keeps_open if of_the_app else None,
            )
        assert time.monotonic() - begun < 5
        assert server.connections == len(server.visits) == 2


def test_a_handshake_that_drips_ends_too(
    place: Path, enrolment: Enrolment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is on the way needs no certificate for that."""
    monkeypatch.setattr(provisioning, "ATTEMPT_SECONDS", 0.3)
    record = b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc\x03\x03" + bytes(5_000)
    with FaultyServer(before_reading=lambda visit: visit.drip(record, 0.02)) as server:
        begun = time.monotonic()
        asked = replace(enrolment, url=server.url.replace("http", "https"))
        with pytest.raises(AuthorityAwayError, match="takes too long"):
            start_camera(place, sealing=UNSEALED, enrolment=asked)
        assert time.monotonic() - begun < 5


def test_nothing_listens(place: Path, enrolment: Enrolment) -> None:
    """With the real client, and a port that nobody has."""
    with pytest.raises(AuthorityAwayError, match="ConnectError"):
        start_camera(
            place, sealing=UNSEALED, enrolment=replace(enrolment, url="http://127.0.0.1:1")
        )


def test_a_camera_that_was_reset_is_re_enrolled(
    authority: Authority, start: StartCamera, enrolment: Enrolment, tmp_path: Path
) -> None:
    """The refusal says what the operator has to type. Then the same request is accepted."""
    old = start()
    reset = tmp_path / "reset"
    with pytest.raises(ProvisioningRefusedError, match="sma devices re-enrol") as refused:
        start(reset)
    assert refused.value.status == 409
    re_enrolments.allow(authority.database, enrolment.device_serial, timedelta(days=1), ACTOR)
    tokens = [camera.capture(b"picture").content.camera_token for camera in (old, start(reset))]
    verdicts = [authority.validator.submit(each, Caller(None)).result(30) for each in tokens]
    assert [each.verdict for each in verdicts] == [Verdict.FAIL, Verdict.PASS]
