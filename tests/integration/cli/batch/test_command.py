"""`sma provision-batch`: every line its device or its reason, every device its result, once."""

import csv
import io
import json
import os
import resource
import signal
import stat
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.initialisation import initialise
from birthmark_sma.config import Settings
from birthmark_sma.protocol.verdict import Verdict
from tests.support.authorities import PASSPHRASE, opened, quiet, small_settings
from tests.support.cameras.camera import Camera, csr_pem, new_key, public_pem, sealed_fields
from tests.support.databases.postgres import Postgres
from tests.support.databases.standby import require_standby, waiting_commits
from tests.support.devices.actors import ACTOR
from tests.support.pki.certificate_verifiers import ask_openssl, ask_ourselves
from tests.support.pki.chains import DEVICE_KEY_KINDS, DEVICE_SERIALS, Chain, device_key
from tests.support.programs.commands import Background, sma
from tests.support.programs.kill_points import die_before_step
from tests.support.programs.running import query, wait_until
from tests.support.programs.server import server_environ
from tests.support.schemas import give_schema
from tests.support.soak import times

KEYS = [public_pem(new_key()) for _ in range(40)]


def text_of(lines: Sequence[object]) -> str:
    """Return JSON Lines."""
    return "".join(json.dumps(line) + "\n" for line in lines)


@dataclass(frozen=True)
class Factory:
    """An authority, and a directory in which batches are provisioned."""

    settings: Settings
    directory: Path

    @property
    def environ(self) -> dict[str, str]:
        """The environment in which `sma` finds the authority."""
        assert self.settings.kek_file is not None
        environ = server_environ(self.settings.data_dir, self.settings.resolved_database_url)
        return environ | {"CA_PASSWORD": PASSPHRASE, "SMA_KEK_FILE": str(self.settings.kek_file)}

    def path(self, name: str) -> Path:
        """A file in the directory."""
        return self.directory / name

    def write(self, name: str, lines: Sequence[object]) -> Path:
        """Write JSON Lines; bytes go in as they are."""
        encoded = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines]
        self.path(name).write_bytes(b"".join(line + b"\n" for line in encoded))
        return self.path(name)

    def arguments(self, devices: str = "devices.jsonl", *more: str) -> list[str]:
        """The arguments of a run of two processes."""
        return [devices, "--output", "results.jsonl", "--processes", "2", *more]

    def start(
        self, *arguments: str, reads: bool = False, before: Sequence[Callable[[], object]] = ()
    ) -> Background:
        """Start a run, as the leader of a process group of its own."""
        return Background(
            "provision-batch",
            *arguments,
            environ=self.environ,
            cwd=self.directory,
            reads=reads,
            before=before,
        )

    def start_on_a_pipe(self, lines: Sequence[object]) -> Background:
        """Start a run that gets these lines, and return when some devices are provisioned.

        Then it waits for more lines: it cannot end before the test has done what it wants to it.
        """
        run = self.start(*self.arguments("-", "--format", "jsonl"), reads=True)
        assert run.stdin is not None
        run.stdin.write(text_of(lines))
        run.stdin.flush()
        wait_until(lambda: len(self.registered()) > 0, 60)
        return run

    def run(self, *arguments: str, code: int = 0, stdin: str | None = None) -> str:
        """Run to the end, which must be this code; return what it said on stderr."""
        ran = sma(
            "provision-batch", *arguments, environ=self.environ, cwd=self.directory, stdin=stdin
        )
        assert ran.returncode == code, ran.stderr
        assert "Traceback" not in ran.stderr
        assert ran.stdout == ""
        return ran.stderr

    def results(self, name: str = "results.jsonl") -> dict[str, dict[str, Any]]:
        """The results by serial, each there once."""
        lines = self.path(name).read_text().splitlines()
        found = {result["device_serial"]: result for result in map(json.loads, lines)}
        assert len(found) == len(lines)
        return found

    def refused(self, name: str = "results.refused.jsonl") -> list[dict[str, Any]]:
        """The refused lines."""
        return [json.loads(line) for line in self.path(name).read_text().splitlines()]

    def registered(self) -> dict[str, str]:
        """Provisioning ids by serial, as the database has them."""
        rows = query(
            self.settings.resolved_database_url,
            "SELECT device_serial, provisioning_id FROM registered_devices",
        )
        return dict(rows)

    def assert_complete(self, serials: Sequence[str]) -> None:
        """These devices are registered, each has its one result, and nothing else is left."""
        registered = self.registered()
        assert sorted(registered) == sorted(serials)
        results = self.results()
        assert {s: r["provisioning_id"] for s, r in results.items()} == registered
        assert {s: r["device_certificate"] for s, r in results.items()} == dict(
            query(
                self.settings.resolved_database_url,
                "SELECT device_serial, device_certificate FROM registered_devices",
            )
        )
        assert [p.name for p in self.directory.iterdir() if "pending" in p.name] == []


@pytest.fixture
def factory(database_url: str, tmp_path: Path) -> Factory:
    """A factory with an authority of its own, once on each kind of database."""
    return found(tmp_path, database_url)


def found(tmp_path: Path, database_url: str) -> Factory:
    """Found an authority for a factory."""
    settings = small_settings(tmp_path, database_url)
    give_schema(settings.resolved_database_url)
    initialise(settings, quiet, actor=ACTOR)
    (tmp_path / "batch").mkdir()
    return Factory(settings, tmp_path / "batch")


def device(number: int, **fields: Any) -> dict[str, Any]:
    """A line that describes a device; its key is one of 40, or a new one."""
    key = KEYS[number] if number < len(KEYS) else public_pem(new_key())
    line = {
        "device_serial": f"camera-{number:05}",
        "device_family": "Test",
        "device_public_key": key,
    } | fields
    return {name: value for name, value in line.items() if value is not None}


# --- what comes of a line


def test_every_kind_of_device(factory: Factory) -> None:
    """Each gets what the API would have answered, and openssl verifies every certificate."""
    key = new_key()
    recipient = x25519.X25519PrivateKey.generate()
    lines = [
        *(
            device(n, device_public_key=public_pem(device_key(kind)))
            for n, kind in enumerate(DEVICE_KEY_KINDS)
        ),
        *(device(10 + n, device_serial=s) for n, s in enumerate(DEVICE_SERIALS.values())),
        device(20, device_public_key=None, csr=csr_pem(key)),
        device(21, **sealed_fields("camera-00021", recipient)),
        device(22, nuc_hash="AB" * 32, app_version="1.2.3"),
    ]
    factory.write("devices.jsonl", lines)
    said = factory.run(*factory.arguments())
    assert f"{len(lines)} devices were provisioned in " in said
    assert " devices/s." in said
    factory.assert_complete([line["device_serial"] for line in lines])
    assert factory.refused() == []
    results = factory.results()
    sealed = results["camera-00021"]
    assert not {"table_keys", "simulated_nuc_hash"} & set(sealed)
    assert len(sealed["sealed_secrets"].split(".")) == 5
    assert results["camera-00022"]["simulated_nuc_hash"] == "ab" * 32
    certificate = x509.load_pem_x509_certificate(
        results["camera-00020"]["device_certificate"].encode()
    )
    assert certificate.public_key() == key.public_key()
    assert set(results["camera-00000"]) == {
        "device_serial",
        "device_certificate",
        "certificate_chain",
        "table_assignments",
        "provisioning_id",
        "simulated_nuc_hash",
        "table_keys",
        "request_sha256",
    }
    chains = [chain_of(serial, result) for serial, result in results.items()]
    assert ask_openssl(chains) == [None] * len(chains)
    assert ask_ourselves(chains) == [None] * len(chains)
    with opened(factory.settings) as authority:
        token = Camera.of("camera-00022", results["camera-00022"]).token()
        validation = authority.validator.submit(token, Caller(None)).result(30)
    assert (validation.verdict, validation.device_serial) == (Verdict.PASS, "camera-00022")


def chain_of(serial: str, result: dict[str, Any]) -> Chain:
    """The certification path of a result."""
    leaf, intermediate, root = (
        x509.load_pem_x509_certificate(pem.encode())
        for pem in (result["device_certificate"], *result["certificate_chain"])
    )
    return Chain(serial, leaf, (intermediate,), root)


def test_csv_and_json_say_the_same(factory: Factory) -> None:
    """What came from CSV is recognised in JSON Lines, and from standard input."""
    lines = [device(n, app_version="1" if n % 2 else None) for n in range(6)]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["app_version", *device(0)])
    writer.writeheader()
    writer.writerows(lines)
    factory.path("devices.CSV").write_text(text.getvalue())
    factory.run(*factory.arguments("devices.CSV"))
    factory.assert_complete([line["device_serial"] for line in lines])
    before = factory.path("results.jsonl").read_bytes()
    text_lines = "".join(json.dumps(line) + "\n" for line in lines)
    said = factory.run(*factory.arguments("-", "--format", "jsonl"), stdin=text_lines)
    assert "6 were provisioned by an earlier run" in said
    assert factory.path("results.jsonl").read_bytes() == before


def test_results_are_private(factory: Factory) -> None:
    """Threat 29: they hold table keys and NUC hashes; nothing secret is said on the way."""
    factory.write("devices.jsonl", [device(1), device(2, device_public_key="no")])
    said = factory.run(*factory.arguments(), code=6)
    for name in ("results.jsonl", "results.refused.jsonl"):
        assert stat.S_IMODE(factory.path(name).stat().st_mode) == 0o600
    assert factory.results()["camera-00001"]["simulated_nuc_hash"] not in said
    factory.path("results.jsonl").chmod(0o644)
    assert "chmod 600" in factory.run(*factory.arguments(), code=3)


def test_keys_are_made_when_asked_for(factory: Factory) -> None:
    """A factory that writes devices' memory gets each device's private key with its result."""
    lines = [device(1), device(2, device_public_key=None), device(3, device_public_key=None)]
    factory.write("devices.jsonl", lines)
    factory.run(*factory.arguments("devices.jsonl"), code=6)
    assert [each["line"] for each in factory.refused()] == [2, 3]
    factory.run(*factory.arguments("devices.jsonl", "--make-keys"))
    factory.assert_complete(["camera-00001", "camera-00002", "camera-00003"])
    results = factory.results()
    assert "device_private_key" not in results["camera-00001"]
    for serial in ("camera-00002", "camera-00003"):
        private = results[serial]["device_private_key"].encode()
        key = serialization.load_pem_private_key(private, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        certificate = chain_of(serial, results[serial]).leaf
        assert certificate.public_key() == key.public_key()
    before = factory.path("results.jsonl").read_bytes()
    factory.run(*factory.arguments("devices.jsonl", "--make-keys"))
    assert factory.path("results.jsonl").read_bytes() == before


REFUSED: dict[str, tuple[object, str]] = {
    "no JSON": (b"{device_serial: 1}", "not JSON"),
    "no object": ([1, 2], "body"),
    "a name twice": (b'{"device_serial": "x", "device_serial": "y"}', "twice"),
    "not UTF-8": (b'{"device_serial": "\xff"}', "UTF-8"),
    "too long": (b'{"device_serial": "' + b"x" * 70_000 + b'"}', "65536 bytes"),
    "an unknown field": (device(30, colour="red"), "colour"),
    "no serial": (device(30, device_serial=None), "device_serial"),
    "a long serial": (device(30, device_serial="x" * 65), "device_serial"),
    "a control character": (device(30, device_serial="a\nb"), "device_serial"),
    "a NUL": (device(30, device_family="a\0b"), "device_family"),
    "a lone surrogate": (b'{"device_serial": "\\ud800", "device_family": "F"}', "not JSON"),
    "a number": (device(30, device_serial=7), "device_serial"),
    "no key": (device(30, device_public_key=None), "exactly one of"),
    "two keys": (device(30, csr=csr_pem(new_key())), "exactly one of"),
    "a bad key": (device(30, device_public_key="no key"), "PEM"),
    "a private key": (device(30, device_public_key="-----BEGIN PRIVATE KEY-----"), "private key"),
    "a key that cannot sign": (
        device(30, device_public_key=public_pem(x25519.X25519PrivateKey.generate())),
        "X25519",
    ),
    "a bad CSR": (device(30, device_public_key=None, csr="no"), "CSR"),
    "a bad NUC hash": (device(30, nuc_hash="xy"), "nuc_hash"),
    "a key that cannot decrypt": (
        device(30, key_encryption_public_key=public_pem(device_key("ed25519"))),
        "Ed25519",
    ),
    "the serial of another line": (
        device(0, device_public_key=public_pem(new_key())),
        "Device already provisioned",
    ),
    "the same line again": (device(0, nuc_hash="01" * 32), "Device already provisioned"),
    "the key of another line": (device(30, device_public_key=KEYS[0]), "public key belongs"),
    "the NUC hash of another line": (device(30, nuc_hash="01" * 32), "NUC hash belongs"),
}


def test_a_refused_line_never_stops_the_rest(factory: Factory) -> None:
    """Each is told with its line, its serial and a sentence, and again so by the next run."""
    first, last = device(0, nuc_hash="01" * 32), device(1)
    factory.write("devices.jsonl", [first, *(line for line, _ in REFUSED.values()), b"", last])
    for run in range(2):
        said = factory.run(*factory.arguments(), code=6)
        assert f"{len(REFUSED)} lines were refused: see results.refused.jsonl" in said
        assert ("2 were provisioned by an earlier run" in said) == (run == 1)
        factory.assert_complete(["camera-00000", "camera-00001"])
        refused = factory.refused()
        assert [each["line"] for each in refused] == list(range(2, 2 + len(REFUSED)))
        for each, (name, (line, words)) in zip(refused, REFUSED.items(), strict=True):
            if run == 1 and name == "the serial of another line":
                words = "from a different line"  # noqa: PLW2901
            assert words in each["problem"], name
            if isinstance(line, dict) and name not in {"no serial", "a long serial", "a number"}:
                assert each["device_serial"] == line["device_serial"]


def test_a_misspelt_column(factory: Factory) -> None:
    """Before anything is provisioned, with the nearest known name."""
    factory.path("devices.csv").write_text("device_serial,device_familly\na,F\n")
    said = factory.run(*factory.arguments("devices.csv"), code=3)
    assert said == (
        "sma: The CSV has an unknown column: device_familly. Did you mean device_family?\n"
    )
    assert factory.registered() == {}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["devices.txt", "--output", "r"], 2, "--format"),
        (["-", "--output", "r"], 2, "--format"),
        (["devices.jsonl", "--output", "r", "--format", "xml"], 2, "--format"),
        (["devices.jsonl", "--output", "r", "--refused", "r"], 2, "are the same file"),
        (["devices.jsonl"], 2, "--output"),
        (["missing.jsonl", "--output", "r"], 3, "missing.jsonl"),
        (["devices.jsonl", "--output", "devices.jsonl"], 2, "overwrite the devices"),
        (
            ["devices.jsonl", "--output", "r", "--refused", "devices.jsonl"],
            2,
            "overwrite the devices",
        ),
        (["devices.jsonl", "--output", "r", "--refused", "link.jsonl"], 2, "overwrite the devices"),
        (["link.jsonl", "--output", "r", "--refused", "r"], 2, "are the same file"),
        (["twin.refused.jsonl", "--output", "twin.jsonl"], 2, "overwrite the devices"),
        (["devices.jsonl", "--output", "secret.txt"], 3, "none of this program's"),
        (["devices.jsonl", "--output", "no-line-end.txt"], 3, "none of this program's"),
    ],
)
def test_arguments_that_cannot_be(
    factory: Factory, arguments: list[str], code: int, words: str
) -> None:
    """They are told in a sentence, and no file is harmed."""
    devices = factory.write("devices.jsonl", [device(1)])
    factory.path("link.jsonl").symlink_to("devices.jsonl")
    factory.path("twin.refused.jsonl").hardlink_to(devices)
    factory.path("secret.txt").write_bytes(b"not\nours\n")
    factory.path("no-line-end.txt").write_bytes(b"not ours")
    files = [each for each in factory.directory.iterdir() if not each.is_symlink()]
    for file in files:
        file.chmod(0o600)
    before = [file.read_bytes() for file in files]
    assert words in factory.run(*arguments, code=code)
    assert [file.read_bytes() for file in files] == before
    assert factory.registered() == {}


# --- resuming


@pytest.mark.soak
def test_killed_again_and_again(factory: Factory) -> None:
    """Threats 8 and 30: SIGKILL to the parent alone in the middle, several times, then to the end.

    Its processes end by themselves, and whoever resumes at once waits for them.
    """
    lines = [device(number) for number in range(2_500)]
    factory.write("devices.jsonl", lines)
    for round_ in range(1, times(3, 6)):
        before = len(factory.registered())
        run = factory.start(*factory.arguments())
        wait_until(
            lambda before=before, run=run: (
                len(factory.registered()) > before  # type: ignore[misc]
                or run.poll() is not None
            ),
            60,
        )
        time.sleep(0.03 * round_)
        run.kill()
        run.communicate()
    assert factory.results().keys() <= factory.registered().keys()
    factory.run(*factory.arguments())
    factory.assert_complete([line["device_serial"] for line in lines])
    assert factory.refused() == []


@pytest.mark.soak
@pytest.mark.parametrize("step", range(2, 14, times(2, 1)))
def test_killed_at_each_step(tmp_path: Path, step: int) -> None:
    """Threats 8 and 29: all processes die just before a file is touched, for the n-th time each.

    So a result is lost between its chunk, the commit and the results; the next run finds it.
    """
    factory = found(tmp_path, f"sqlite:///{tmp_path / 'sma.db'}")
    lines = [device(number) for number in range(12)]
    factory.write("devices.jsonl", lines)
    cut = factory.start(
        *factory.arguments(str(factory.path("devices.jsonl"))),
        before=[partial(die_before_step, factory.directory, step)],
    )
    _, told = cut.communicate()
    assert cut.returncode in {0, -signal.SIGKILL}, told
    factory.run(*factory.arguments())
    factory.assert_complete([line["device_serial"] for line in lines])


def test_a_torn_last_line_is_mended(factory: Factory) -> None:
    """Whatever a crash left of it: the device's whole result takes its place.

    A chunk that was left beside it counts for what is registered, and for nothing else.
    """
    lines = [device(number) for number in range(3)]
    factory.write("devices.jsonl", lines)
    factory.run(*factory.arguments())
    whole = factory.path("results.jsonl").read_bytes()
    *_, last = whole.splitlines(keepends=True)
    stranger = json.loads(last) | {"device_serial": "stranger", "provisioning_id": "PROV-1-0F"}
    for length in (1, len(last) // 2, len(last) - 1):
        factory.path("results.jsonl").write_bytes(whole[: -len(last)] + last[:length])
        pending = factory.path(".results.jsonl.pending")
        pending.mkdir()
        (pending / "a.jsonl").write_bytes(json.dumps(stranger).encode() + b"\n" + last)
        factory.run(*factory.arguments())
        assert factory.path("results.jsonl").read_bytes() == whole
        factory.assert_complete([line["device_serial"] for line in lines])


def test_another_authority_touches_nothing(factory: Factory, tmp_path: Path) -> None:
    """Whoever resumes with another database must not lose what is on its way to the results."""
    lines = [device(number) for number in range(3)]
    factory.write("devices.jsonl", lines)
    factory.run(*factory.arguments())
    whole = factory.path("results.jsonl").read_bytes()
    pending = factory.path(".results.jsonl.pending")
    pending.mkdir()
    (pending / "a.jsonl").write_bytes(whole)
    (tmp_path / "other").mkdir()
    other = small_settings(tmp_path / "other", None)
    initialise(other, quiet, actor=ACTOR)
    elsewhere = Factory(other, factory.directory)
    for written in (b"", whole[:-1], whole):
        factory.path("results.jsonl").write_bytes(written)
        assert "of another authority" in elsewhere.run(*factory.arguments(), code=3)
        assert factory.path("results.jsonl").read_bytes() == written
        assert (pending / "a.jsonl").read_bytes() == whole
    assert elsewhere.registered() == {}
    factory.path("results.jsonl").write_bytes(b"")
    factory.run(*factory.arguments())
    factory.assert_complete([line["device_serial"] for line in lines])


def test_a_line_that_was_changed_is_refused(factory: Factory) -> None:
    """Whatever differs; and those that did not change are left alone."""
    factory.write("devices.jsonl", [device(number) for number in range(8)])
    factory.run(*factory.arguments())
    before = factory.path("results.jsonl").read_bytes()
    changed = [
        device(0, device_family="Other"),
        device(1, app_version="2"),
        device(2, nuc_hash="00" * 32),
        device(3, device_public_key=public_pem(new_key())),
        device(4, device_public_key=None, csr=csr_pem(new_key())),
        device(5, **sealed_fields("camera-00005")),
        device(6),
        device(7, app_version=None),
        device(8),
    ]
    factory.write("devices.jsonl", changed)
    said = factory.run(*factory.arguments(), code=6)
    assert "2 were provisioned by an earlier run" in said
    refused = factory.refused()
    assert [each["line"] for each in refused] == [1, 2, 3, 4, 5, 6]
    assert all("from a different line" in each["problem"] for each in refused)
    assert factory.path("results.jsonl").read_bytes().startswith(before)
    factory.assert_complete([f"camera-{number:05}" for number in range(9)])


def test_two_runs_of_one_file_at_once(factory: Factory) -> None:
    """Every device is provisioned by one of them, which has its result; the other refuses it."""
    lines = [device(number) for number in range(1_500)]
    factory.write("devices.jsonl", lines)
    runs = [
        factory.start("devices.jsonl", "--output", f"{name}.jsonl", "--processes", "2")
        for name in ("one", "two")
    ]
    for run in runs:
        _, said = run.communicate(timeout=120)
        assert run.returncode in {0, 6}, said
    one, two = factory.results("one.jsonl"), factory.results("two.jsonl")
    assert not one.keys() & two.keys()
    both = one | two
    assert {s: r["provisioning_id"] for s, r in both.items()} == factory.registered()
    assert len(both) == 1_500
    for name, mine in (("one", one), ("two", two)):
        refused = factory.refused(f"{name}.refused.jsonl")
        assert {each["device_serial"] for each in refused} == both.keys() - mine.keys()
        assert {each["problem"] for each in refused} <= {"Device already provisioned"}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_two_runs_into_one_file(factory: Factory) -> None:
    """The second waits for the first, and gives up with a sentence where that takes long."""
    factory.write("devices.jsonl", [device(1)])
    slow = factory.start(*factory.arguments("-", "--format", "jsonl"), reads=True)
    wait_until(factory.path("results.refused.jsonl").exists, 30)
    said = factory.run(*factory.arguments(), code=3)
    assert said == "sma: Another run writes to results.jsonl at this moment.\n"
    slow.communicate("", timeout=30)
    assert slow.returncode == 0
    factory.run(*factory.arguments())
    factory.assert_complete(["camera-00001"])


def test_the_database_goes_away(tmp_path: Path, own_postgres: Postgres) -> None:
    """Threats 8 and 19: a sentence that says what to do, and then no device is lost."""
    factory = found(tmp_path, own_postgres.url)
    lines = [device(number) for number in range(1_500)]
    factory.write("devices.jsonl", lines)
    run = factory.start_on_a_pipe(lines[:1_000])
    own_postgres.kill()
    _, said = run.communicate(text_of(lines[1_000:]), timeout=60)
    assert run.returncode == 4, said
    assert said.startswith("sma: The database does not answer")
    assert said.endswith("run the same command again to continue.\n")
    assert len(said.splitlines()) == 1
    own_postgres.restart()
    factory.run(*factory.arguments())
    factory.assert_complete([line["device_serial"] for line in lines])


def test_killed_while_the_database_commits(tmp_path: Path, own_postgres: Postgres) -> None:
    """PostgreSQL finishes a commit whose program is gone: its results must not be given up.

    A standby that does not answer holds the commit up for as long as the test wants.
    """
    factory = found(tmp_path, own_postgres.url)
    lines = [device(number) for number in range(100)]
    factory.write("devices.jsonl", lines)
    require_standby(own_postgres.url, "absent")
    run = factory.start(*factory.arguments())
    wait_until(lambda: len(waiting_commits(own_postgres.url)) == 1, 60)
    run.kill()
    run.communicate(timeout=30)
    assert factory.registered() == {}
    said = factory.run(*factory.arguments(), code=4)
    assert "a long query or transaction holds what must change" in said
    again = factory.start(*factory.arguments())
    wait_until(lambda: _waiting_for_locks(own_postgres) == 1, 30)
    require_standby(own_postgres.url, "")
    _, said = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert "100 were provisioned by an earlier run" in said
    factory.assert_complete([line["device_serial"] for line in lines])


def _waiting_for_locks(server: Postgres) -> int:
    count = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with psycopg.connect(server.url, autocommit=True) as connection:
        row = connection.execute(count).fetchone()
    assert row is not None
    return int(row[0])


def test_interrupted(factory: Factory) -> None:
    """Ctrl-C: it says how to go on."""
    lines = [device(number) for number in range(1_500)]
    factory.write("devices.jsonl", lines)
    run = factory.start_on_a_pipe(lines[:1_000])
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert said == "Interrupted: run the same command again to continue.\n"
    factory.run(*factory.arguments())
    factory.assert_complete([line["device_serial"] for line in lines])


def test_a_disk_that_is_full(factory: Factory) -> None:
    """The results may not grow beyond a chunk; once they may, no device is without its own.

    The results of two chunks with private keys are larger than the limit. The database and its log
    are not.
    """
    lines = [device(number, device_public_key=None) for number in range(1_000)]
    factory.write("devices.jsonl", lines)
    limit = 3_250_000
    run = factory.start(
        *factory.arguments("devices.jsonl", "--make-keys"),
        before=[partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))],
    )
    _, said = run.communicate(timeout=60)
    assert run.returncode == 3, said
    assert said.startswith("sma: Results cannot be written: ")
    assert said.endswith("; run the same command again to continue.\n")
    factory.run(*factory.arguments("devices.jsonl", "--make-keys"))
    factory.assert_complete([line["device_serial"] for line in lines])


def test_a_process_that_is_killed(factory: Factory) -> None:
    """As by a kernel short of memory: a sentence, and the next run carries on.

    Two chunks are left, so that each process is asked again: nobody misses one that is not.
    """
    lines = [device(number) for number in range(2_000)]
    factory.write("devices.jsonl", lines)
    run = factory.start_on_a_pipe(lines[:1_000])
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, said = run.communicate(text_of(lines[1_000:]), timeout=60)
    assert run.returncode == 4, said
    assert "Run the same command again" in said
    factory.run(*factory.arguments())
    factory.assert_complete([line["device_serial"] for line in lines])


def test_no_process_outlives_its_parent(factory: Factory) -> None:
    """Whoever kills the parent has ended the batch."""
    run = factory.start(*factory.arguments("-", "--format", "jsonl"), reads=True)
    wait_until(factory.path("results.refused.jsonl").exists, 30)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(children) == 2
    run.kill()
    run.communicate()
    wait_until(lambda: not any(_lives(pid) for pid in children), 10)


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_tables_and_nuc_hashes_differ(factory: Factory) -> None:
    """Threat 10: forked processes do not draw the same numbers."""
    factory.write("devices.jsonl", [device(number) for number in range(1_200)])
    factory.run(*factory.arguments())
    results = factory.results().values()
    for field in ("simulated_nuc_hash", "provisioning_id"):
        assert len({result[field] for result in results}) == 1_200
    tables = Counter(tuple(result["table_assignments"]) for result in results)
    assert len(tables) == 20  # all triples of six tables
