"""Replace CAs: a new intermediate, a compromised one, a new root.

Called by `sma ca rotate`, `compromised` and `roll-root`. Each act is one transaction: a crash
leaves the authority as it was before the act or after it. The key of a new root is written to its
file before the commit. Servers notice the change by themselves (`issuers`), and must never call
this module, because it loads the keys of roots.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind, Actor
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.ceremony import (
    finish_ceremony,
    load_root_signers,
    remove_failed_root_keys,
    root_key_path,
    write_pending_root_key,
)
from birthmark_sma.authority.ca.crl_publication import add_root_crl
from birthmark_sma.authority.ca.issuers import trusted_roots
from birthmark_sma.authority.ca.store import CaRole, CaState, StoredCa
from birthmark_sma.authority.ca.successors import (
    generate_like,
    new_crosses,
    new_intermediate,
    new_root,
)
from birthmark_sma.authority.kek.passphrase_file import find_passphrase
from birthmark_sma.authority.kek.wrapping import open_stored_secrets
from birthmark_sma.config import Settings
from birthmark_sma.errors import (
    CaStateError,
    ConfigurationError,
    RotationError,
)
from birthmark_sma.pki.crl import OLDEST_INVALIDITY
from birthmark_sma.pki.keys.ca_keys import CaKeyType, Signer
from birthmark_sma.pki.trust_list import sign_trust_list
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.locks import AdvisoryLock, only_one


@dataclass(frozen=True, slots=True)
class Succession:
    """The result of an act: the names of CAs, by what became of them.

    `active` is the intermediate that signs new device certificates from now on. `compromised` is
    None if the act changed nothing. `root_key_file` has the key of a new root.
    """

    active: str
    added: tuple[str, ...] = ()
    retiring: tuple[str, ...] = ()
    compromised: str | None = None
    root_key_file: Path | None = None


class _DryRun(Exception):  # noqa: N818  rolls a transaction back; no error
    pass


class Successions:
    """Changes the CAs of an authority. Each method is one act.

    With `dry_run`, an act makes all checks and signatures, and changes nothing.

    Every act raises RotationError if another act or a rotation of secrets is running,
    NotInitialisedError, WrongSecretError, ConfigurationError if the key of a root is missing,
    PrivateFileError, and DatabaseUnavailableError.
    """

    def __init__(
        self, database: Database, settings: Settings, actor: Actor, *, dry_run: bool = False
    ) -> None:
        self._database = database
        self._actor = actor
        self._settings = settings
        self._dry_run = dry_run

    def rotate(
        self, key_type: CaKeyType | None = None, *, prepare_only: bool = False
    ) -> Succession:
        """Sign a new intermediate. The active one becomes retiring, unless `prepare_only`.

        Without a key type, the new key has that of the active intermediate. Raises CaStateError if
        an intermediate is prepared already, and IssuerExpiredError if the root has expired.
        """
        with self._alone() as cas:
            active = ca_store.pick_active(cas, CaRole.INTERMEDIATE)
            root = ca_store.pick_active(cas, CaRole.ROOT)
            for each in self._prepared(cas, root):
                raise CaStateError(
                    f"{each.name} is prepared already. To let it sign, type: sma ca rotate"
                    f" --activate {each.name}"
                )
            root_signer = self._root_signer(root)
            new = self._new_intermediate(cas, root, root_signer, key_type)

            def add(transaction: Connection, now: datetime) -> None:
                if prepare_only:
                    ca_store.add_ca(transaction, replace(new, state=CaState.PREPARED), now)
                else:
                    _set(transaction, active, CaState.RETIRING, now)
                    ca_store.add_ca(transaction, new, now)
                add_root_crl(transaction, root_signer)

            self._act(ActKind.CA_PREPARE if prepare_only else ActKind.CA_ROTATE, add)
        if prepare_only:
            return Succession(active.name, added=(new.name,))
        return Succession(new.name, added=(new.name,), retiring=(active.name,))

    def activate(self, name: str) -> Succession:
        """Let a prepared intermediate sign, and make the active one retiring.

        Needs no key of a root. Raises UnknownCaError, or CaStateError if it is not prepared.
        """
        with self._alone() as cas:
            chosen = ca_store.pick(cas, name)
            active = ca_store.pick_active(cas, CaRole.INTERMEDIATE)
            if chosen.state is not CaState.PREPARED:
                raise CaStateError(f"{name} is {chosen.state.value}, so it cannot become active.")
            if chosen.issuer != ca_store.pick_active(cas, CaRole.ROOT).name:
                raise CaStateError(
                    f"{name} belongs to {chosen.issuer}, which is retiring. For one under the"
                    " active root, type: sma ca rotate --prepare-only"
                )
            if not self._prepared([chosen], ca_store.pick(cas, chosen.issuer)):
                raise CaStateError(f"The certificate of {name} has ended.")

            def change(transaction: Connection, now: datetime) -> None:
                _set(transaction, active, CaState.RETIRING, now)
                _set(transaction, chosen, CaState.ACTIVE, now)

            self._act(ActKind.CA_ACTIVATE, change)
        return Succession(name, retiring=(active.name,))

    def compromise(
        self, name: str, since: datetime | None = None, key_type: CaKeyType | None = None
    ) -> Succession:
        """Put an intermediate on the CRL of its root, and stop signing with its key.

        If it is the active one, a prepared intermediate takes its place, or else a new one. `since`
        is the time since when the key may be in other hands; another act with another time corrects
        it, and one without a time or with the same changes nothing. Raises UnknownCaError, and
        CaStateError if it is no intermediate, or if `since` is in the future, before 1970, or later
        than the revocation that it corrects.
        """
        with self._alone() as cas:
            gone = ca_store.pick(cas, name)
            self._check_compromise(gone, since)
            is_known = gone.state is CaState.COMPROMISED
            if is_known and since in {None, gone.invalid_since}:
                return Succession(ca_store.pick_active(cas, CaRole.INTERMEDIATE).name)
            signers = {gone.issuer: self._root_signer(ca_store.pick(cas, gone.issuer))}
            successor: StoredCa | None = None
            is_new = False
            if gone.state is CaState.ACTIVE:
                root = ca_store.pick_active(cas, CaRole.ROOT)
                signers.setdefault(root.name, self._root_signer(root))
                prepared = self._prepared(cas, root)
                is_new = not prepared
                successor = (
                    self._new_intermediate(cas, root, signers[root.name], key_type)
                    if is_new
                    else prepared[-1]
                )

            def change(transaction: Connection, now: datetime) -> None:
                # The list keeps the time of the revocation when the other time is corrected.
                at = gone.state_changed_at if is_known else now
                _set(transaction, gone, CaState.COMPROMISED, at or now, invalid_since=since)
                if is_new and successor is not None:
                    ca_store.add_ca(transaction, successor, now)
                elif successor is not None:
                    _set(transaction, successor, CaState.ACTIVE, now)
                for signer in signers.values():
                    add_root_crl(transaction, signer)

            self._act(ActKind.CA_COMPROMISE, change)
        active = successor or ca_store.pick_active(cas, CaRole.INTERMEDIATE)
        added = (active.name,) if is_new else ()
        return Succession(active.name, added=added, compromised=name)

    def roll_root(self, key_type: CaKeyType | None = None) -> Succession:
        """Create a new root, cross-certificates in both directions, and a new intermediate.

        RFC 4210, section 4.4. The old root and the active intermediate become retiring. The old
        root signs the list of trusted roots. Raises IssuerExpiredError if it has expired.
        """
        with self._alone() as cas:
            old = ca_store.pick_active(cas, CaRole.ROOT)
            active = ca_store.pick_active(cas, CaRole.INTERMEDIATE)
            old_signer = self._root_signer(old)
            signer, now = generate_like(old, key_type), self._database.clock.now()
            new = new_root(cas, signer, now)
            crosses = new_crosses(cas, (old, old_signer), (new, signer), now)
            intermediate = self._new_intermediate(cas, new, signer, key_type)
            key_file = root_key_path(self._settings, new.name)
            if key_file.exists():
                raise ConfigurationError(f"{key_file} exists. Move it to a safe place first.")
            if not self._dry_run:
                write_pending_root_key(
                    key_file, new.load(), signer, find_passphrase(self._settings)
                )

            def change(transaction: Connection, now: datetime) -> None:
                _set(transaction, active, CaState.RETIRING, now)
                _set(transaction, old, CaState.RETIRING, now)
                _retire_ended(transaction, cas, now)
                for each in (new, *crosses):
                    ca_store.add_ca(transaction, each, now)
                ca_store.add_ca(transaction, intermediate, now)
                for root_signer in (old_signer, signer):
                    add_root_crl(transaction, root_signer)
                roots = trusted_roots(ca_store.list_cas(transaction))
                signature = sign_trust_list(roots, old.load(), old_signer)
                ca_store.put_roots_signature(transaction, signature)

            self._act(ActKind.CA_ROLL_ROOT, change)
            if not self._dry_run:
                finish_ceremony(self._database, self._settings)
        added = (new.name, *(each.name for each in crosses), intermediate.name)
        return Succession(
            intermediate.name, added, retiring=(old.name, active.name), root_key_file=key_file
        )

    def _new_intermediate(
        self,
        cas: Sequence[StoredCa],
        root: StoredCa,
        root_signer: Signer,
        key_type: CaKeyType | None,
    ) -> StoredCa:
        kek = open_stored_secrets(self._database, self._settings).keks.newest
        now = self._database.clock.now()
        return new_intermediate(cas, root, root_signer, key_type, kek=kek, now=now)

    def _prepared(self, cas: Sequence[StoredCa], root: StoredCa) -> list[StoredCa]:
        """Return the intermediates of a root that are prepared and can sign."""
        now = self._database.clock.now()
        return [
            each
            for each in cas
            if each.state is CaState.PREPARED
            and each.issuer == root.name
            and each.load().not_valid_after_utc > now
        ]

    # --- the transaction

    @contextmanager
    def _alone(self) -> Iterator[list[StoredCa]]:
        """Yield all CAs. No other act and no rotation of secrets runs meanwhile."""
        # The lock of rotations of secrets: those wrap the keys anew that an act adds.
        with only_one(self._database, AdvisoryLock.KEY_ROTATION) as alone:
            if not alone:
                raise RotationError(
                    "The CAs or the secrets of this authority are being changed by another command."
                    " Wait until it has ended."
                )
            remove_failed_root_keys(self._database, self._settings)
            finish_ceremony(self._database, self._settings)
            with self._database.read() as connection:
                yield ca_store.list_cas(connection)

    def _act(self, kind: ActKind, change: Callable[[Connection, datetime], None]) -> None:
        """Run a change in one transaction, and record it; roll it back in a dry run."""

        def work(transaction: Connection) -> None:
            before = ca_store.describe_states(transaction)
            change(transaction, self._database.clock.now())
            changed = trail.compare(before, ca_store.describe_states(transaction))
            trail.record(transaction, self._actor, kind, changed)
            if self._dry_run:
                raise _DryRun

        try:
            self._database.transact(work)
        except _DryRun:
            return

    def _root_signer(self, root: StoredCa) -> Signer:
        public_key = root.load().public_key()
        for signer in load_root_signers(self._settings):
            if signer.public_key == public_key:
                return signer
        raise ConfigurationError(
            f"This needs the private key of {root.name}, which is neither in"
            f" {root_key_path(self._settings, root.name)} nor in another file that CA_PASSWORD"
            " opens. Bring the file here, and name it with --root-key-file."
        )

    def _check_compromise(self, ca: StoredCa, since: datetime | None) -> None:
        if ca.role is not CaRole.INTERMEDIATE:
            raise CaStateError(
                f"{ca.name} is no intermediate. Verifiers must stop to trust a compromised root by"
                " themselves: no CRL can tell them. See docs/operate/certificates.md."
            )
        if since is None:
            return
        if not OLDEST_INVALIDITY <= since <= self._database.clock.now():
            raise CaStateError(
                "The key cannot be compromised since a time in the future, or before 1970. Give"
                " another time with --since, or none if nobody knows it."
            )
        # A later time would make pictures valid that were received after the revocation.
        at = ca.state_changed_at
        if ca.state is CaState.COMPROMISED and at is not None and since > at:
            raise CaStateError(
                f"{ca.name} was revoked at {at:%Y-%m-%d %H:%M:%S} UTC, so its key was compromised"
                " before. Give an earlier time with --since."
            )


def _set(
    transaction: Connection, ca: StoredCa, new: CaState, now: datetime, **values: datetime | None
) -> None:
    if not ca_store.set_state(transaction, ca.name, old=ca.state, new=new, now=now, **values):
        raise CaStateError(f"The state of {ca.name} has just changed. Look at: sma ca list")


def _retire_ended(transaction: Connection, cas: Sequence[StoredCa], now: datetime) -> None:
    """Take roots that have expired off the list of trusted roots."""
    for each in cas:
        if (
            each.role is CaRole.ROOT
            and each.state is CaState.RETIRING
            and each.load().not_valid_after_utc < now
        ):
            _set(transaction, each, CaState.RETIRED, now)
