"""Independent programs and the register say the same of every certificate, under two issuers.

The programs are those of `revocation_judges`. All are asked once, about certificates in every state
under a retiring intermediate and under the active one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
from cryptography import x509
from sqlalchemy import delete

from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.schema import registered_devices
from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import PROVISION, csr_pem, new_key, provision_body
from tests.support.cameras.renewal import RenewingDevice
from tests.support.devices.acts import (
    allow_re_enrolment,
    reinstate_device,
    retire_device,
    revoke_device,
    suspend_device,
)
from tests.support.pki.crls import fetch_crl
from tests.support.pki.ocsp import PATH
from tests.support.pki.revocation_judges import (
    GOOD,
    REVOKED,
    UNKNOWN,
    UNSPECIFIED,
    Case,
    Issued,
    ask_all,
    can_say,
    reason_name,
)
from tests.support.programs.commands import sma
from tests.support.programs.running import Running, wait_until
from tests.support.soak import tell_table

ISSUERS = ("intermediate", "intermediate-2")
SHOWS_SECONDS = 2.0
"""The contract: an OCSP response shows a change within this time of its commit."""
LISTED_SECONDS = 30.0
HELD = f"{REVOKED}: certificateHold"
SUPERSEDED = f"{REVOKED}: superseded"


@dataclass(frozen=True)
class Row:
    """A certificate of the table, and the word that its state calls for."""

    state: str
    device: RenewingDevice
    word: str

    @property
    def serial(self) -> str:
        """Return the serial number as the register writes it."""
        return self.device.certificate_serial


class Register:
    """Brings devices of an authority into a state, and knows what the register says."""

    def __init__(self, running: Running, client: httpx2.Client, database: Database) -> None:
        self.running = running
        self.client = client
        self.database = database

    def rows_of(self, devices: dict[str, RenewingDevice]) -> list[Row]:
        """Bring each device into the state of its name; return the rows of its certificates."""
        rows = []
        for state, device in devices.items():
            word, act = STATES[state]
            replacement = act(self, device)
            rows.append(Row(state, device, word))
            if replacement is not None:
                word = HELD if word == HELD else GOOD
                rows.append(Row(f"{state}: its successor", replacement, word))
        return rows

    def words(self) -> Callable[[str], str]:
        """Return a function from a certificate's serial number to what the tables say of it."""
        revoked = dict(
            self.running.rows(
                "SELECT certificate_serial, revocation_reason FROM revoked_certificates"
            )
        )
        registered = {
            serial
            for (serial,) in self.running.rows(
                "SELECT certificate_serial FROM registered_devices"
                " UNION SELECT certificate_serial FROM earlier_certificates"
            )
        }

        def word(serial: str) -> str:
            if serial in revoked:
                return f"{REVOKED}: {reason_name(revoked[serial])}"
            return GOOD if serial in registered else UNKNOWN

        return word

    def change(
        self, device: RenewingDevice, *acts: Callable[[Database, str], object]
    ) -> RenewingDevice | None:
        """Do what operators do to the device."""
        for act in acts:
            act(self.database, device.serial)
        return None

    def renew(
        self, device: RenewingDevice, *acts: Callable[[Database, str], object], supersede: bool
    ) -> RenewingDevice:
        """Renew; return the device with its new certificate."""
        renewed = device.renewed(self.client, supersede=supersede)
        self.change(renewed, *acts)
        return renewed

    def re_enrol(self, device: RenewingDevice) -> RenewingDevice:
        """Provision the device once more under its serial."""
        allow_re_enrolment(self.database, device.serial)
        key = new_key()
        body = provision_body(
            device.serial, device_public_key=None, csr=csr_pem(key, device.serial)
        )
        response = self.client.post(PROVISION, json=body)
        assert response.status_code == 200, response.text
        return RenewingDevice(device.serial, key, response.json()["device_certificate"])

    def lose(
        self, device: RenewingDevice, *acts: Callable[[Database, str], object]
    ) -> RenewingDevice | None:
        """Lose the device's row, as a register that is restored from an older backup has it."""
        self.change(device, *acts)
        row = registered_devices.c.device_serial == device.serial
        with self.database.write() as transaction:
            transaction.execute(delete(registered_devices).where(row))
        return None


def revoke(reason: str) -> Callable[[Database, str], object]:
    """Return the act that revokes a device for this reason."""
    return partial(revoke_device, reason=reason)


Act = Callable[[Register, RenewingDevice], RenewingDevice | None]
STATES: dict[str, tuple[str, Act]] = {
    "good": (GOOD, lambda register, device: register.change(device)),
    "suspended": (HELD, lambda register, device: register.change(device, suspend_device)),
    "reinstated": (
        GOOD,
        lambda register, device: register.change(device, suspend_device, reinstate_device),
    ),
    "revoked": (
        f"{REVOKED}: keyCompromise",
        lambda register, device: register.change(device, revoke("key_compromise")),
    ),
    "revoked without a reason": (
        UNSPECIFIED,
        lambda register, device: register.change(device, revoke("unspecified")),
    ),
    "retired": (
        f"{REVOKED}: cessationOfOperation",
        lambda register, device: register.change(device, retire_device),
    ),
    "suspended, retired, revoked": (
        f"{REVOKED}: affiliationChanged",
        lambda register, device: register.change(
            device, suspend_device, retire_device, revoke("affiliation_changed")
        ),
    ),
    "renewed": (GOOD, lambda register, device: register.renew(device, supersede=False)),
    "renewed, superseded": (
        SUPERSEDED,
        lambda register, device: register.renew(device, supersede=True),
    ),
    "renewed, suspended": (
        HELD,
        lambda register, device: register.renew(device, suspend_device, supersede=False),
    ),
    "re-enrolled": (SUPERSEDED, lambda register, device: register.re_enrol(device)),
    "unknown": (UNKNOWN, lambda register, device: register.lose(device)),
    "unknown, but revoked": (
        f"{REVOKED}: keyCompromise",
        lambda register, device: register.lose(device, revoke("key_compromise")),
    ),
}
"""For each state: the word for the certificate that a device of it had first, and the way to it."""


def test_all_judges_agree_with_the_register(start_server: Start, tmp_path: Path) -> None:
    """Threat 6: by lists and by OCSP, for good, suspended, revoked, retired and unknown.

    Only the lists cannot say `unknown`: what is not on them is good, so a verifier that must know
    asks OCSP.
    """
    running = start_server("--access", "open")
    with running.server, running.client() as client, running.database() as database:
        register = Register(running, client, database)
        devices = []
        for name in ISSUERS:
            if name != ISSUERS[0]:
                ran = sma("ca", "rotate", "--yes", environ=running.environ)
                assert ran.returncode == 0, ran.stderr
            devices.append({state: RenewingDevice.provisioned(client) for state in STATES})
        rows = [row for each in devices for row in register.rows_of(each)]
        committed = time.monotonic()

        issuers = {name: ca_certificate(client, name) for name in ISSUERS}
        issuer_of = {row.serial: find_issuer(row, issuers) for row in rows}
        word_of = register.words()
        revoked = {(row.serial, issuer_of[row.serial]) for row in rows if is_revoked(row)}
        wait_until(lambda: listed(client) >= revoked, LISTED_SECONDS)
        time.sleep(max(0.0, committed + SHOWS_SECONDS - time.monotonic()))
        case = Case(
            tmp_path,
            [Issued(row.device.loaded, issuers[issuer_of[row.serial]]) for row in rows],
            ca_certificate(client, "root"),
            [fetch_crl(client, f"/pki/ca/{name}.crl") for name in ("root", *ISSUERS)],
            f"{running.server.url}{PATH}",
        )
        told = ask_all(case)

    tell_table(
        ("state", "issuer", "register", *told),
        [
            (row.state, issuer_of[row.serial], word_of(row.serial), *words)
            for row, *words in zip(rows, *told.values(), strict=True)
        ],
    )
    under = {(row.state, issuer_of[row.serial]) for row in rows}
    assert under >= {(state, name) for state in STATES for name in ISSUERS}
    assert [word_of(row.serial) for row in rows] == [row.word for row in rows]
    for judge, words in told.items():
        assert words == [can_say(judge, row.word) for row in rows], judge


def ca_certificate(client: httpx2.Client, name: str) -> x509.Certificate:
    """Return the certificate of a CA."""
    return x509.load_der_x509_certificate(client.get(f"/pki/ca/{name}.crt").content)


def find_issuer(row: Row, issuers: dict[str, x509.Certificate]) -> str:
    """Return the name of the issuer that signed a certificate."""
    [name] = [
        name for name, issuer in issuers.items() if issuer.subject == row.device.loaded.issuer
    ]
    row.device.loaded.verify_directly_issued_by(issuers[name])
    return name


def is_revoked(row: Row) -> bool:
    """True if the certificate should be on a list."""
    return row.word.startswith(REVOKED)


def listed(client: httpx2.Client) -> set[tuple[str, str]]:
    """Return the serial numbers on the newest lists, each with the name of the issuer."""
    return {
        (f"{entry.serial_number:x}", name)
        for name in ISSUERS
        for entry in fetch_crl(client, f"/pki/ca/{name}.crl")
    }
