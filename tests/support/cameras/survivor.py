"""A camera that outlives kills of itself and of its authority, and what must be true of it then."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.issuers import ROOTS_PATH
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.key_tables import epochs
from birthmark_sma.client import verify_bundle
from birthmark_sma.device import UNSEALED, state
from birthmark_sma.device.state import Identity
from birthmark_sma.device.state_directory import PrivateDirectory
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.cameras.killed_camera import Journal, Life, live
from tests.support.programs.running import Running, new_serial


class Survivor:
    """One device. Each life is a process that captures, renews and captures again."""

    def __init__(
        self, running: Running, folder: Path, *, new_key: bool = True, supersede: bool = True
    ) -> None:
        """Provision the camera. The other arguments are those of its renewals."""
        self.serial = new_serial("survivor")
        self._folder = folder
        self._new_key = new_key
        self._supersede = supersede
        self._places = 0
        self._life = self._new_life(running)
        self.is_unharmed = False
        """Set by `assert_unharmed`, until the next life."""
        assert live(self._life) == 0

    @property
    def lines(self) -> int:
        """The lines that were counted in its last life that came to its end."""
        return int(Journal(self._life.journal).read().all("lines")[-1])

    def live(
        self, running: Running, *, last_line: int | None = None, ours_alone: bool = True
    ) -> int:
        """Live once, and return the exit code. Die before this line, counted as in `Life`."""
        url = running.server.url
        self.is_unharmed = False
        return live(replace(self._life, url=url, last_line=last_line, ours_alone=ours_alone))

    def reinstall(self, running: Running) -> None:
        """Lose the key and all else that is in the directory. The next life is provisioned."""
        self._life = self._new_life(running)

    def certificate(self, running: Running) -> str:
        """Return the serial number of the current certificate, as the register has it."""
        query = "SELECT certificate_serial FROM registered_devices WHERE device_serial = ?"
        [(serial,)] = running.rows(query, self.serial)
        return str(serial)

    def assert_unharmed(self, running: Running) -> None:
        """Live once more, which retries what was cut off; then all is as if nothing was."""
        assert self.live(running) == 0, self.serial
        journal = Journal(self._life.journal).read()
        assert set(journal.all("queued")) <= set(journal.all("sent")), "a bundle was lost"
        nonces = journal.all("nonce")
        assert len(set(nonces)) == len(nonces), "a nonce was used twice"
        identity = self._identity()
        assert (identity.renewal, identity.predecessor) == (None, None)
        self.assert_pictures_pass(running)
        self._assert_register_agrees(running, identity)
        self.is_unharmed = True

    def assert_pictures_pass(self, running: Running) -> None:
        """The last picture passes, and so does a token under each of the three tables."""
        identity = self._identity()
        held = {int(table): bytes.fromhex(key) for table, key in identity.table_keys.items()}
        camera = Camera(self.serial, bytes.fromhex(identity.nuc_hash), held, {})
        with running.client() as client:
            roots = x509.load_pem_x509_certificates(client.get(ROOTS_PATH).content)
            text = self._life.journal.with_suffix(".bundle").read_bytes()
            bundle = verify_bundle(text, root=roots, now=datetime.now(UTC))
            for token in (bundle.camera_token, *map(camera.token, held)):
                answer = client.post(VALIDATE, json=wire(token)).json()
                told = answer["validation_result"], answer["device_serial"]
                assert told == ("PASS", self.serial)

    def _assert_register_agrees(self, running: Running, identity: Identity) -> None:
        """The register has the camera's certificate and table keys; valid is what should be."""
        certificate = x509.load_pem_x509_certificate(identity.device_certificate.encode())
        with running.database() as database, database.read() as connection:
            device = device_store.find_device(connection, self.serial)
            current = {each.table_id: each.epoch for each in epochs.list_states(connection)}
            states = [(each.role, each.state) for each in ca_store.list_cas(connection)]
        assert device is not None
        assert device.certificate_serial == f"{certificate.serial_number:x}"
        assert device.table_epochs == tuple(current[each] for each in device.table_assignments)
        for role in (ca_store.CaRole.ROOT, ca_store.CaRole.INTERMEDIATE):
            assert states.count((role, ca_store.CaState.ACTIVE)) == 1, role
        earlier = {
            str(serial): bytes(key)
            for serial, key in running.rows(
                "SELECT certificate_serial, public_key_fingerprint FROM earlier_certificates"
                " WHERE device_serial = ?",
                self.serial,
            )
        }
        revoked = dict(
            running.rows(
                "SELECT certificate_serial, revocation_reason FROM revoked_certificates"
                " WHERE device_serial = ?",
                self.serial,
            )
        )
        assert earlier
        assert revoked == (dict.fromkeys(earlier, "superseded") if self._supersede else {})
        if not self._new_key:
            assert set(earlier.values()) == {device.public_key_fingerprint}

    def _identity(self) -> Identity:
        identity = state.load(PrivateDirectory(self._life.place), UNSEALED)
        assert isinstance(identity, Identity)
        return identity

    def _new_life(self, running: Running) -> Life:
        self._places += 1
        place = self._folder / f"{self.serial}-{self._places}"
        return Life(
            place,
            running.server.url,
            self.serial,
            place.with_suffix(".log"),
            renews=True,
            new_key=self._new_key,
            supersede=self._supersede,
            patience=2,
        )
