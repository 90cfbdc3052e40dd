"""Several issuers: rotation, compromise and a new root, before verifiers from outside."""

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.ceremony import finish_ceremony, root_key_files, root_key_path
from birthmark_sma.authority.ca.crl_publication import publish_due_crl
from birthmark_sma.authority.ca.issuers import trusted_roots
from birthmark_sma.authority.ca.store import CaRole, CaState
from birthmark_sma.authority.ca.succession import Successions
from birthmark_sma.authority.kek import rotation
from birthmark_sma.authority.kek.passphrase_policy import check_new_passphrase
from birthmark_sma.authority.provisioning.registration import register
from birthmark_sma.config import NewSecret, Settings
from birthmark_sma.errors import (
    CaStateError,
    ConfigurationError,
    IssuerChangedError,
    KeyRefusedError,
    RotationError,
    UnknownCaError,
)
from birthmark_sma.pki.keys.ca_keys import CaKeyType
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.locks import AdvisoryLock, only_one
from tests.support.authorities import new_camera, opened, openssl, quiet, request_for, rows_of
from tests.support.cameras.camera import public_pem
from tests.support.devices.actors import ACTOR
from tests.support.devices.acts import revoke_device
from tests.support.pki.certificate_verifiers import (
    ask_openssl,
    ask_pyca,
    ask_pyhanko,
    judges,
    lint_certificate,
    lint_crl,
    lint_pair,
    openssl_accepts_crl,
)
from tests.support.pki.chains import Chain

ACTIVE, RETIRING, PREPARED = CaState.ACTIVE, CaState.RETIRING, CaState.PREPARED


def successions(authority: Authority, **named: Any) -> Successions:
    """Return the acts on an open authority."""
    return Successions(authority.database, authority.settings, ACTOR, **named)


def follow(authority: Authority) -> None:
    """Notice the acts of other processes, as a server does twice a second."""
    with authority.database.read() as connection:
        authority.issuers.poll(connection)


def states(authority: Authority) -> dict[str, CaState]:
    """Return the states of all CAs, by name."""
    with authority.database.read() as connection:
        return {each.name: each.state for each in ca_store.list_cas(connection)}


def certificate_of(authority: Authority, name: str) -> x509.Certificate:
    """Return the certificate of a CA."""
    follow(authority)
    ca = authority.issuers.find(name)
    assert ca is not None
    return ca.certificate


def leaf_of(authority: Authority, serial: str) -> x509.Certificate:
    """Return the certificate of a device."""
    query = "SELECT device_certificate FROM registered_devices WHERE device_serial = :serial"
    [(pem,)] = rows_of(authority.database, query, serial=serial)
    return x509.load_pem_x509_certificate(pem.encode())


def issuer_of(authority: Authority, serial: str) -> str:
    """Return the registered issuer of a device."""
    query = "SELECT certificate_issuer FROM registered_devices WHERE device_serial = :serial"
    [(name,)] = rows_of(authority.database, query, serial=serial)
    return str(name)


def crl_of(authority: Authority, name: str) -> x509.CertificateRevocationList:
    """Return the newest list of a CA."""
    crl = authority.served_crls.newest(name)
    assert crl is not None
    return x509.load_der_x509_crl(crl.der)


def listed(crl: x509.CertificateRevocationList) -> set[int]:
    """Return the serial numbers on a list."""
    return {entry.serial_number for entry in crl}


def assert_sound(*chains: Chain) -> None:
    """Every verifier accepts every chain, and the linters find nothing."""
    for name, judge in judges().items():
        # Our own verifier takes exactly one intermediate.
        shown = [each for each in chains if name != "ourselves" or len(each.intermediates) == 1]
        complaints = dict(zip((each.name for each in shown), judge(shown), strict=True))
        assert not any(complaints.values()), (name, complaints)
    for chain in chains:
        path = [chain.leaf, *chain.intermediates, chain.root]
        for issued, issuer in pairwise(path):
            assert lint_certificate(issued) == []
            assert lint_pair(issuer, issued) == []


def write(folder: Path, **files: Any) -> dict[str, str]:
    """Write certificates and lists as PEM files, each with one or several; return the paths."""
    folder.mkdir(exist_ok=True)
    paths = {}
    for name, content in files.items():
        each = content if isinstance(content, list | tuple) else [content]
        path = folder / f"{name}.pem"
        path.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in each))
        paths[name] = str(path)
    return paths


def openssl_verifies(folder: Path, *, leaf: Any, untrusted: Any, root: Any, crls: Any = ()) -> str:
    """Ask `openssl verify`, with -crl_check_all if there are lists; return "" or the refusal."""
    files = write(folder, leaf=leaf, untrusted=untrusted, root=root)
    lists = ["-crl_check_all", "-CRLfile", write(folder, crls=crls)["crls"]] if crls else []
    ran = openssl(
        *("verify", "-x509_strict", "-no-CApath", "-no-CAstore", *lists),
        *("-CAfile", files["root"], "-untrusted", files["untrusted"], files["leaf"]),
    )
    return "" if ran.returncode == 0 else ran.stdout + ran.stderr


# --- rotation


@pytest.mark.parametrize("key_type", [None, CaKeyType.EC_P384])
def test_a_rotation(authority: Authority, key_type: CaKeyType | None) -> None:
    """The old chain and the new one pass before all verifiers, and the register knows both."""
    new_camera(authority, "before")
    done = successions(authority).rotate(key_type)
    assert (done.active, done.added, done.retiring) == (
        "intermediate-2",
        ("intermediate-2",),
        ("intermediate",),
    )
    assert states(authority) == {
        "root": ACTIVE,
        "intermediate": RETIRING,
        "intermediate-2": ACTIVE,
    }
    new_camera(authority, "after")  # without a poll: provisioning looks before it signs
    assert issuer_of(authority, "before") == "intermediate"
    assert issuer_of(authority, "after") == "intermediate-2"
    root = certificate_of(authority, "root")
    old, new = (certificate_of(authority, each) for each in ("intermediate", "intermediate-2"))
    assert old.subject != new.subject
    assert_sound(
        Chain("old", leaf_of(authority, "before"), (old,), root),
        Chain("new", leaf_of(authority, "after"), (new,), root),
    )
    assert leaf_of(authority, "after").not_valid_after_utc <= new.not_valid_after_utc
    assert lint_certificate(root) == []


def test_each_issuer_has_its_own_list(authority: Authority, tmp_path: Path) -> None:
    """openssl -crl_check_all agrees with the register under two issuers."""
    for name in ("old-good", "old-bad"):
        new_camera(authority, name)
    successions(authority).rotate()
    for name in ("new-good", "new-bad"):
        new_camera(authority, name)
    for name in ("old-bad", "new-bad"):
        revoke_device(authority.database, name, "key_compromise")
    follow(authority)
    for issuer in authority.issuers.signing():
        assert publish_due_crl(authority.database, issuer)
        assert not publish_due_crl(authority.database, issuer)
    crls = {name: crl_of(authority, name) for name in ("root", "intermediate", "intermediate-2")}
    for kind, issuer_name in (("old", "intermediate"), ("new", "intermediate-2")):
        crl, signing = crls[issuer_name], certificate_of(authority, issuer_name)
        assert listed(crl) == {leaf_of(authority, f"{kind}-bad").serial_number}
        assert openssl_accepts_crl(crl, signing)
        assert lint_crl(crl) == []
        for quality, refusal in (("good", ""), ("bad", "certificate revoked")):
            verdict = openssl_verifies(
                tmp_path,
                leaf=leaf_of(authority, f"{kind}-{quality}"),
                untrusted=signing,
                root=certificate_of(authority, "root"),
                crls=list(crls.values()),
            )
            assert (refusal in verdict) if refusal else not verdict, verdict


def test_a_prepared_intermediate_signs_once_it_is_activated(
    authority: Authority, settings: Settings
) -> None:
    """The root's key is needed for the first step only."""
    done = successions(authority).rotate(prepare_only=True)
    assert (done.active, done.added) == ("intermediate", ("intermediate-2",))
    new_camera(authority, "one")
    with pytest.raises(CaStateError, match="intermediate-2 is prepared already"):
        successions(authority).rotate()
    with pytest.raises(UnknownCaError):
        successions(authority).activate("intermediate-3")
    with pytest.raises(CaStateError, match="is active"):
        successions(authority).activate("intermediate")
    root_key_path(settings, "root").unlink()
    done = successions(authority).activate("intermediate-2")
    assert (done.active, done.retiring) == ("intermediate-2", ("intermediate",))
    new_camera(authority, "two")
    assert [issuer_of(authority, each) for each in ("one", "two")] == [
        "intermediate",
        "intermediate-2",
    ]
    with pytest.raises(ConfigurationError, match="private key of root"):
        successions(authority).rotate()


def test_what_was_prepared_before_a_new_root(authority: Authority) -> None:
    """It stays unused, and does not stand in the way of another one."""
    successions(authority).rotate(prepare_only=True)
    assert successions(authority).roll_root().active == "intermediate-3"
    with pytest.raises(CaStateError, match="intermediate-2 belongs to root, which is retiring"):
        successions(authority).activate("intermediate-2")
    assert successions(authority).rotate().active == "intermediate-4"
    assert successions(authority).compromise("intermediate-4").active == "intermediate-5"


def test_files_of_another_authority_in_the_same_folder(
    authority: Authority, settings: Settings
) -> None:
    """An authority on the other database has its own names, also before they are final."""
    first = root_key_path(settings, "root")
    other = "simulated-mfg-root-ca.other.key"
    strangers = [first.with_name(each) for each in (f"{other}.0123456789abcdef.new", other)]
    left_over = first.with_name(f"{first.stem}-7{first.suffix}.0123456789abcdef.new")
    for path in (*strangers, left_over):
        path.write_text("a key")
    finish_ceremony(authority.database, settings)  # a server starts while another root is made
    assert left_over.exists()
    successions(authority).roll_root()
    assert root_key_files(settings) == [first, root_key_path(settings, "root-2")]
    assert all(path.exists() for path in strangers)
    assert not left_over.exists()


def test_a_dry_run_changes_nothing(authority: Authority, settings: Settings) -> None:
    """It makes all checks. No file is left either."""
    files = sorted(settings.data_dir.rglob("*.key*"))
    dry = successions(authority, dry_run=True)
    assert dry.rotate().active == "intermediate-2"
    assert dry.roll_root().added == ("root-2", "cross-1", "cross-2", "intermediate-2")
    assert dry.compromise("intermediate").compromised == "intermediate"
    assert states(authority) == {"root": ACTIVE, "intermediate": ACTIVE}
    assert sorted(settings.data_dir.rglob("*.key*")) == files
    root_key_path(settings, "root").unlink()
    with pytest.raises(ConfigurationError):
        dry.rotate()


def test_two_acts_at_once(authority: Authority) -> None:
    """Neither two acts, nor an act and a rotation of secrets."""
    with only_one(authority.database, AdvisoryLock.KEY_ROTATION) as alone:
        assert alone
        for act in (successions(authority).rotate, successions(authority).roll_root):
            with pytest.raises(RotationError):
                act()
    assert states(authority) == {"root": ACTIVE, "intermediate": ACTIVE}


def test_keys_of_all_cas_are_refused(authority: Authority) -> None:
    """Threat 39: also those of a root, a retired intermediate and a prepared one."""
    successions(authority).rotate()
    successions(authority).roll_root()
    successions(authority).rotate(prepare_only=True)
    follow(authority)
    assert len(authority.issuers.cas) == 8
    for ca in authority.issuers.cas:
        pem = public_pem_of(ca.certificate)
        with pytest.raises(KeyRefusedError, match="authority itself"):
            authority.provisioner.provision_device(request_for("x", device_public_key=pem))


def public_pem_of(certificate: x509.Certificate) -> str:
    """Return the public key of a certificate as PEM."""
    holder: Any = certificate
    return public_pem(holder)


# --- races


def test_what_an_outdated_intermediate_signed_is_not_registered(authority: Authority) -> None:
    """It signed before the rotation; the register asks for another signature."""
    maker = authority.provisioner._maker
    candidate = maker.make(maker.check(request_for("late")), authority.database.clock.now())
    successions(authority).rotate()
    with authority.database.write() as transaction:
        [outcome] = register(
            transaction,
            [candidate],
            authority.provisioner._first_answers,
            authority.database.clock,
        )
    assert isinstance(outcome, IssuerChangedError)
    assert rows_of(authority.database, "SELECT * FROM registered_devices") == []


def test_rotations_while_two_processes_provision(authority: Authority, settings: Settings) -> None:
    """Every certificate verifies under the issuer that is registered for it."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def provision(other: Authority, name: str) -> None:
        number = 0
        try:
            while not stop.is_set() or number < 5:
                new_camera(other, f"{name}-{number}")
                number += 1
        except BaseException as error:
            failures.append(error)

    with opened(settings) as second:
        threads = [
            threading.Thread(target=provision, args=(each, name))
            for name, each in (("one", authority), ("two", second))
        ]
        for thread in threads:
            thread.start()
        for _ in range(3):
            successions(authority).rotate()
        stop.set()
        for thread in threads:
            thread.join(60)
    assert failures == []
    follow(authority)
    rows = rows_of(
        authority.database,
        "SELECT certificate_issuer, device_certificate FROM registered_devices",
    )
    assert len(rows) >= 10
    for issuer, pem in rows:
        leaf = x509.load_pem_x509_certificate(pem.encode())
        leaf.verify_directly_issued_by(certificate_of(authority, issuer))
    assert states(authority)["intermediate-4"] is ACTIVE


# --- compromise


def test_a_compromised_intermediate(authority: Authority, tmp_path: Path) -> None:
    """Verifiers refuse its devices by the root's list; their tokens still pass."""
    camera = new_camera(authority, "exposed")
    publish_due_crl(authority.database, authority.issuer)
    since = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)
    done = successions(authority).compromise("intermediate", since)
    assert (done.active, done.compromised) == ("intermediate-2", "intermediate")
    assert states(authority)["intermediate"] is CaState.COMPROMISED
    new_camera(authority, "renewed")
    follow(authority)
    assert [each.name for each in authority.issuers.signing()] == ["intermediate-2"]
    publish_due_crl(authority.database, authority.issuer)
    root, root_list = certificate_of(authority, "root"), crl_of(authority, "root")
    gone = certificate_of(authority, "intermediate")
    [entry] = root_list
    assert entry.serial_number == gone.serial_number
    reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    assert reason is x509.ReasonFlags.key_compromise
    dated = entry.extensions.get_extension_for_class(x509.InvalidityDate).value
    assert dated.invalidity_date_utc == since
    assert openssl_accepts_crl(root_list, root)
    assert [each.code for each in lint_crl(root_list)] == ["cabf.crl_invalid_validity_period"]
    crls = [root_list, crl_of(authority, "intermediate"), crl_of(authority, "intermediate-2")]
    for serial, issuer, refusal in (
        ("exposed", gone, "certificate revoked"),
        ("renewed", certificate_of(authority, "intermediate-2"), ""),
    ):
        verdict = openssl_verifies(
            tmp_path, leaf=leaf_of(authority, serial), untrusted=issuer, root=root, crls=crls
        )
        assert (refusal in verdict) if refusal else not verdict, verdict
    judged = authority.validator.submit(camera.token(), Caller(None)).result(30)
    assert judged.reason is Reason.GENUINE
    with pytest.raises(CaStateError, match="no intermediate"):
        successions(authority).compromise("root")
    with pytest.raises(CaStateError, match="future"):
        successions(authority).compromise("intermediate-2", datetime.now(UTC) + timedelta(days=1))


def test_a_compromise_is_idempotent_and_its_time_can_be_corrected(authority: Authority) -> None:
    """The list keeps the time of the revocation, and its number only grows."""
    since = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)
    successions(authority).compromise("intermediate")
    follow(authority)
    first = crl_of(authority, "root")
    [entry] = first
    done = successions(authority).compromise("intermediate")
    assert (done.active, done.added, done.compromised) == ("intermediate-2", (), None)
    assert crl_of(authority, "root") == first
    done = successions(authority).compromise("intermediate", since)
    assert (done.active, done.added, done.compromised) == ("intermediate-2", (), "intermediate")
    second = crl_of(authority, "root")
    [corrected] = second
    dated = corrected.extensions.get_extension_for_class(x509.InvalidityDate).value
    assert dated.invalidity_date_utc == since
    assert corrected.revocation_date_utc == entry.revocation_date_utc
    for again in (since, None):
        assert successions(authority).compromise("intermediate", again).compromised is None
    # It would make valid what verifiers received after the revocation.
    with pytest.raises(CaStateError, match="earlier time"):
        successions(authority).compromise("intermediate", authority.database.clock.now())
    assert crl_of(authority, "root") == second
    assert set(states(authority)) == {"root", "intermediate", "intermediate-2"}


def test_a_prepared_intermediate_replaces_a_compromised_one(authority: Authority) -> None:
    """And a compromise of one that does not sign changes nothing for the active one."""
    successions(authority).rotate(prepare_only=True)
    done = successions(authority).compromise("intermediate")
    assert (done.active, done.added) == ("intermediate-2", ())
    successions(authority).rotate()
    done = successions(authority).compromise("intermediate-2")
    assert (done.active, done.added) == ("intermediate-3", ())
    assert listed(crl_of(authority, "root")) == {
        certificate_of(authority, each).serial_number for each in ("intermediate", "intermediate-2")
    }


# --- a new root


def test_a_new_root(authority: Authority, settings: Settings, tmp_path: Path) -> None:
    """Old and new devices verify under either root, by cross-certificates."""
    new_camera(authority, "before")
    done = successions(authority).roll_root()
    assert done.added == ("root-2", "cross-1", "cross-2", "intermediate-2")
    assert done.retiring == ("root", "intermediate")
    assert done.root_key_file == root_key_path(settings, "root-2")
    assert [each.stat().st_mode & 0o777 for each in root_key_files(settings)] == [0o600, 0o600]
    new_camera(authority, "after")
    root, root_2, old, new, new_with_old, old_with_new = (
        certificate_of(authority, each)
        for each in ("root", "root-2", "intermediate", "intermediate-2", "cross-1", "cross-2")
    )
    before, after = (leaf_of(authority, each) for each in ("before", "after"))
    assert_sound(
        Chain("before, old root", before, (old,), root),
        Chain("before, new root", before, (old, old_with_new), root_2),
        Chain("after, new root", after, (new,), root_2),
        Chain("after, old root", after, (new, new_with_old), root),
    )
    assert [lint_certificate(each) for each in (root, root_2)] == [[], []]
    follow(authority)
    for name, expected in (
        ("intermediate", (old, old_with_new, root)),
        ("intermediate-2", (new, new_with_old, root_2)),
    ):
        chain = [x509.load_pem_x509_certificate(p.encode()) for p in authority.issuers.chain(name)]
        assert chain == list(expected)
    # Both roots have lists, and -crl_check_all passes through a cross-certificate.
    for issuer in authority.issuers.signing():
        publish_due_crl(authority.database, issuer)
    crls = [crl_of(authority, e) for e in ("root", "root-2", "intermediate", "intermediate-2")]
    for leaf, untrusted, trusted in (
        (before, [old], root),
        (before, [old, old_with_new], root_2),
        (after, [new, new_with_old], root),
        (after, [new], root_2),
    ):
        arguments = {"leaf": leaf, "untrusted": untrusted, "root": trusted}
        assert openssl_verifies(tmp_path, **arguments, crls=crls) == ""


def test_several_new_roots(authority: Authority, tmp_path: Path) -> None:
    """The files of each intermediate connect it with every root."""
    new_camera(authority, "first")
    successions(authority).roll_root()
    new_camera(authority, "second")
    successions(authority).roll_root()
    new_camera(authority, "third")
    follow(authority)
    chains = []
    for serial in ("first", "second", "third"):
        pems = authority.issuers.chain(issuer_of(authority, serial))
        assert len(set(pems)) == len(pems) == 4  # the intermediate, two crosses, its root
        served = tuple(x509.load_pem_x509_certificate(each.encode()) for each in pems)
        chains += [
            Chain(f"{serial}, {root}", leaf_of(authority, serial), served, root_certificate)
            for root in ("root", "root-2", "root-3")
            for root_certificate in [certificate_of(authority, root)]
        ]
    for ask in (ask_pyca, ask_pyhanko):
        assert ask(chains) == [None] * 9
    # OpenSSL takes one issuer of each certificate, and tries no other if it leads nowhere.
    in_line = [each for each in chains if not each.name.startswith("second")]
    assert ask_openssl(in_line) == [None] * 6


@pytest.mark.parametrize("key_type", CaKeyType)
def test_the_old_root_signs_the_list_of_roots(
    authority: Authority, tmp_path: Path, key_type: CaKeyType
) -> None:
    """`openssl cms -verify` accepts it with the old root alone, and not with the new one."""
    follow(authority)
    pem, p7s, trusted = (tmp_path / each for each in ("roots.pem", "roots.pem.p7s", "trusted.pem"))

    def verifies(root: x509.Certificate) -> bool:
        pem.write_bytes(trusted_roots(each.stored for each in authority.issuers.cas))
        p7s.write_bytes(authority.issuers.roots_signature or b"")
        trusted.write_bytes(root.public_bytes(Encoding.PEM))
        ran = openssl(
            *("cms", "-verify", "-binary", "-inform", "DER", "-in", p7s, "-content", pem),
            *("-CAfile", trusted, "-purpose", "any", "-no-CApath", "-no-CAstore"),
            *("-out", tmp_path / "out"),
        )
        return ran.returncode == 0

    root = certificate_of(authority, "root")
    assert verifies(root)
    successions(authority).roll_root(key_type)
    root_2 = certificate_of(authority, "root-2")
    assert verifies(root)
    assert x509.load_pem_x509_certificates(pem.read_bytes()) == [root, root_2]
    assert not verifies(root_2)
    successions(authority).roll_root()
    follow(authority)
    assert verifies(root_2)
    pem.write_bytes(pem.read_bytes()[:-1])
    assert openssl("cms", "-verify", "-in", p7s, "-content", pem, "-inform", "DER").returncode != 0


def test_a_rotation_of_secrets_wraps_the_keys_of_all_cas(
    authority: Authority, settings: Settings
) -> None:
    """And encrypts the files of both roots anew."""
    successions(authority).roll_root()
    other = "another passphrase for tests alone"
    check_new_passphrase(other.encode())
    done = rotation.rotate(
        authority.database,
        settings,
        NewSecret(new_ca_password=other, new_kek_file=None),  # type: ignore[arg-type]
        quiet,
        wait=lambda _: None,
        actor=ACTOR,
    )
    assert (done.left.total, done.rewrapped.ca_keys) == (0, 2)
    changed = settings.model_copy(
        update={"ca_password": NewSecret(new_ca_password=other).new_ca_password, "kek_file": None}  # type: ignore[arg-type]
    )
    with opened(changed) as again:
        assert successions(again).rotate().active == "intermediate-3"
        new_camera(again, "camera")
        # The first root's key opens as well: its list is signed.
        assert successions(again).compromise("intermediate").active == "intermediate-3"


def test_a_retiring_ca_is_retired_once_its_certificate_has_ended(authority: Authority) -> None:
    """By the database's clock: a wrong clock changes nothing that is stored."""
    successions(authority).rotate()
    follow(authority)
    ca = authority.issuers.find("intermediate")
    assert ca is not None
    end = ca.certificate.not_valid_after_utc
    assert ca.state_at(end - timedelta(seconds=1)) is RETIRING
    assert ca.state_at(end + timedelta(seconds=1)) is CaState.RETIRED
    active = replace(ca, stored=replace(ca.stored, state=ACTIVE))
    assert active.state_at(end + timedelta(seconds=1)) is ACTIVE


def test_one_root_and_one_intermediate_are_active(authority: Authority) -> None:
    """The database refuses a second one of either."""
    with authority.database.read() as connection:
        cas = ca_store.list_cas(connection)
    for ca in cas:
        second = replace(ca, name=f"{ca.role.value}-9", kek_id=None, sealed_private_key=None)
        with pytest.raises(Exception, match=r"(?i)unique"), authority.database.write() as write_:
            ca_store.add_ca(write_, second, datetime.now(UTC))
    assert {each.role for each in cas} == {CaRole.ROOT, CaRole.INTERMEDIATE}
