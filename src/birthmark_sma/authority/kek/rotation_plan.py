"""Plan a rotation: find the new secret, the keys that open the authority, and the files to change.

`rotation` calls this module before it changes the database. The plan changes no file but those of
an unfinished rotation, beside the files in force.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from birthmark_sma.authority.ca.ceremony import root_key_files
from birthmark_sma.authority.ca.root_key_file import RootKey
from birthmark_sma.authority.kek.passphrase_file import PassphraseFile, find_passphrase
from birthmark_sma.authority.kek.sources import KekSecret
from birthmark_sma.authority.kek.store import KekRecord
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKeys, open_keys, open_record
from birthmark_sma.config import NewSecret, Settings
from birthmark_sma.errors import ConfigurationError, WrongSecretError


def has_new_secret(settings: Settings, new: NewSecret) -> bool:
    """Return whether a rotation knows the new secret, so that the command need not prompt for it.

    It does if one is given, or if the one in force was generated.
    """
    given = new.new_ca_password or new.new_kek_file or new.new_kek_command
    return given is not None or PassphraseFile.in_force(settings) is not None


@dataclass(frozen=True, slots=True)
class RotationPlan:
    """The secret in force, the new secret, and the files that a rotation has to change."""

    settings: Settings
    given: KekSecret
    new: KekSecret
    new_passphrase: bytes | None = field(repr=False)
    file: PassphraseFile | None
    root_keys: tuple[RootKey, ...] = field(repr=False)
    """The files of the roots' keys, the first root's first."""
    keeps_passphrase: bool
    """True if CA_PASSWORD stays, because the new key comes from a file or a command."""

    @property
    def is_unfinished(self) -> bool:
        """True if there are files of a rotation that its last step would remove."""
        return any(each.is_pending for each in self.root_keys) or (
            self.file is not None and self.file.has_old
        )

    @property
    def old_passphrases(self) -> list[bytes]:
        """The passphrases that may decrypt the root's key before the rotation."""
        kept = [] if self.file is None else self.file.kept()
        try:
            return [find_passphrase(self.settings), *kept]
        except ConfigurationError:
            return kept

    @property
    def passphrases(self) -> list[bytes]:
        """All passphrases that may decrypt the root's key."""
        new = [] if self.new_passphrase is None else [self.new_passphrase]
        return [*self.old_passphrases, *new]

    def open_keys(self, records: Sequence[KekRecord]) -> tuple[KeyEncryptionKeys, int | None, bool]:
        """Return all keys, the id of the newest or None, and whether the old secret is superseded.

        The id is None unless the new secret is that of the newest key, so that the rotation has
        begun already. The old secret is superseded if it opens no key any more; then the new secret
        opens the keys. Raises WrongSecretError or ConfigurationError if neither opens them.
        """
        newest: int | None = None
        if self.new.source == records[-1].source:
            with contextlib.suppress(WrongSecretError):
                newest = open_record(records[-1], self.new).kek_id
        try:
            keys, superseded = open_keys(records, self.given), False
        except (WrongSecretError, ConfigurationError):
            if newest is None:
                raise
            keys, superseded = open_keys(records, self.new), True
        return KeyEncryptionKeys(keys, self.given), newest, superseded

    def prepare_files(self) -> None:
        """Write the new passphrase, and the root's key under it, beside the files in force.

        If that fails, remove what was written: nothing depends on it yet, and a later rotation
        would take it for the rest of an interrupted one. Raises ConfigurationError if no passphrase
        decrypts the root's key, and PrivateFileError.
        """
        if self.new_passphrase is None:
            return
        before = self._leftovers()
        old = self.old_passphrases
        try:
            if self.file is not None:
                self.file.prepare(self.new_passphrase)
            for root_key in self.root_keys:
                root_key.prepare(old)
        except Exception:
            for path in self._leftovers() - before:
                path.unlink()
            raise

    def _leftovers(self) -> set[Path]:
        roots = (path for each in self.root_keys for path in each.leftovers)
        return {*roots, *(self.file.leftovers if self.file is not None else ())}


def make_plan(settings: Settings, new: NewSecret, records: Sequence[KekRecord]) -> RotationPlan:
    """Return the plan. If no new secret is given and the one in force was generated, generate one.

    Raises ConfigurationError if there is no new secret, and PrivateFileError.
    """
    file = PassphraseFile.in_force(settings)
    given = KekSecret.of(settings)
    by_key = new.new_kek_file is not None or new.new_kek_command is not None
    passphrase: bytes | None
    if new.new_ca_password is not None:
        passphrase = new.new_ca_password.get_secret_value().encode()
    elif by_key:
        passphrase = _kept_passphrase(settings, file)
    elif file is None:
        raise ConfigurationError(
            "No new secret was given. Set SMA_NEW_CA_PASSWORD, or give --new-kek-file or"
            " --new-kek-command."
        )
    elif file.has_old and _is_in_place(records, given):
        # The new passphrase is in place: only the root's key is still under the old one.
        passphrase = file.current()
    else:
        passphrase = file.successor()
    return RotationPlan(
        settings=settings,
        given=given,
        new=KekSecret.new(new, lambda: passphrase or b""),
        new_passphrase=passphrase,
        file=file,
        root_keys=tuple(RootKey(each, passphrase) for each in root_key_files(settings)),
        keeps_passphrase=by_key and new.new_ca_password is None,
    )


def _kept_passphrase(settings: Settings, file: PassphraseFile | None) -> bytes | None:
    """Return the passphrase in force, if files of an interrupted rotation must return to it.

    Return None if there are no such files, or if no passphrase is given.
    """
    pending = any(RootKey(each, None).is_pending for each in root_key_files(settings))
    if not pending and (file is None or not file.leftovers):
        return None
    try:
        return find_passphrase(settings)
    except ConfigurationError:
        return None


def _is_in_place(records: Sequence[KekRecord], given: KekSecret) -> bool:
    """Return whether the given secret is already that of the newest key."""
    try:
        open_record(records[-1], given)
    except (WrongSecretError, ConfigurationError):
        return False
    return True
