"""Encrypt a camera's secrets on its disk: AES-256-GCM under a secret of the app.

The secret is a passphrase (scrypt, RFC 7914), a key in a file, or a key that a command prints, for
a TPM or a secure element. A key becomes the sealing key by HKDF-SHA256 (RFC 5869). An app that
cannot store a secret uses `UNSEALED`: then only the mode 0600 protects the file, and a checksum
detects damage. `state` calls `seal` and `unseal`. No secret may appear in an error or a log.
"""

import base64
import hashlib
import json
import os
import stat
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from birthmark_sma.errors import DamagedDeviceStateError, DeviceSecretError

KEY_BYTES = 32
COMMAND_SECONDS = 30.0
_SALT_BYTES = 16
_NONCE_BYTES = 12
_FORMAT = "birthmark-camera-state-v1"
_NONE = "none"
# Cost: 32 MiB, and about half a second on a Raspberry Pi, once per start.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**15, 8, 1


@dataclass(frozen=True, slots=True)
class Sealing:
    """The way in which a camera's state is sealed.

    `kind` is stored in the file, so that an error can name a mismatch.
    """

    kind: str
    derive: Callable[[bytes], bytes] | None = field(default=None, repr=False)
    """Derives the 32-byte sealing key from a 16-byte salt. Raises DeviceSecretError."""


UNSEALED = Sealing(_NONE)
"""No encryption: only the file's mode protects the state."""


def passphrase(words: str) -> Sealing:
    """Seal under a passphrase. Raises DeviceSecretError if it is empty."""
    if not words:
        raise DeviceSecretError("The passphrase for the camera's state is empty. Pass another one.")

    def derive(salt: bytes) -> bytes:
        scrypt = Scrypt(salt=salt, length=KEY_BYTES, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P)
        return scrypt.derive(words.encode())

    return Sealing("passphrase", derive)


def key_file(path: Path) -> Sealing:
    """Seal under the key in a file of mode 0600: 32 raw bytes, or 64 hex digits."""
    return Sealing("file", lambda salt: _from_key(_read_key_file(path), salt, str(path)))


def key_command(arguments: Sequence[str]) -> Sealing:
    """Seal under the key that a program writes to stdout: 32 raw bytes, or 64 hex digits.

    It runs without a shell, for at most 30 seconds, and its output is never shown.
    """
    command = tuple(arguments)
    return Sealing("command", lambda salt: _from_key(_run(command), salt, "The key command"))


def seal(content: bytes, sealing: Sealing) -> bytes:
    """Return the text of a file that holds `content`. Raises DeviceSecretError."""
    if sealing.derive is None:
        return _json(
            {
                "format": _FORMAT,
                "sealing": sealing.kind,
                "sha256": hashlib.sha256(content).hexdigest(),
                "content": base64.b64encode(content).decode(),
            }
        )
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    # GCM authenticates the head as additional data, so it cannot be altered unnoticed.
    head = {"format": _FORMAT, "sealing": sealing.kind, "salt": salt.hex()}
    # Every file has its own salt and therefore its own key, so no nonce can repeat under a key.
    sealed = AESGCM(sealing.derive(salt)).encrypt(nonce, content, _json(head))
    return _json(head | {"nonce": nonce.hex(), "content": base64.b64encode(sealed).decode()})


def unseal(text: bytes, sealing: Sealing, path: Path) -> bytes:
    """Return the content of a file that `seal` wrote.

    Raises DamagedDeviceStateError if it is torn or altered, and DeviceSecretError if it is sealed
    in another way or under another secret.
    """
    fields = _parse(text, path)
    if fields["sealing"] != sealing.kind:
        raise DeviceSecretError(
            f"{path} is sealed by '{fields['sealing']}', but the app uses '{sealing.kind}'."
            " Use the same sealing as at the first start."
        )
    try:
        content = base64.b64decode(fields["content"], validate=True)
        if sealing.derive is None:
            if hashlib.sha256(content).hexdigest() != fields["sha256"]:
                raise _damaged(path)
            return content
        salt, nonce = bytes.fromhex(fields["salt"]), bytes.fromhex(fields["nonce"])
        if len(salt) != _SALT_BYTES or len(nonce) != _NONCE_BYTES:
            raise _damaged(path)
    except (KeyError, TypeError, ValueError):
        raise _damaged(path) from None
    head = {"format": _FORMAT, "sealing": sealing.kind, "salt": salt.hex()}
    try:
        return AESGCM(sealing.derive(salt)).decrypt(nonce, content, _json(head))
    except InvalidTag:
        raise DeviceSecretError(
            f"{path} cannot be decrypted: the secret is wrong, or the file was altered."
        ) from None


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError:
        raise _damaged(path) from None
    if not isinstance(fields, dict) or not isinstance(fields.get("sealing"), str):
        raise _damaged(path)
    if fields.get("format") != _FORMAT:
        raise DamagedDeviceStateError(
            f"{path} has an unknown format. Install a newer version of this program."
        )
    return fields


def _from_key(key: bytes, salt: bytes, what: str) -> bytes:
    if len(key) != KEY_BYTES:
        try:
            key = bytes.fromhex(key.decode("ascii").strip())
        except ValueError:
            key = b""
    if len(key) != KEY_BYTES:
        raise DeviceSecretError(
            f"{what} gives neither 32 raw bytes nor 64 hex digits. To make a key, run:"
            " openssl rand -hex 32"
        )
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=_FORMAT.encode()).derive(key)


def _read_key_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            key = file.read(1_024)
    except OSError as error:
        raise DeviceSecretError(f"The key file {path} cannot be read: {error.strerror}.") from None
    if stat.S_IMODE(mode) & 0o077:
        raise DeviceSecretError(f"Other users can read {path}. Run: chmod 600 {path}")
    return key


def _run(command: tuple[str, ...]) -> bytes:
    try:
        done = subprocess.run(  # noqa: S603  the app's own command
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it might contain secrets that must not reach a log
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeviceSecretError(
            f"The key command did not end within {COMMAND_SECONDS:g} s."
        ) from None
    except (OSError, ValueError, IndexError):
        raise DeviceSecretError(
            "The key command cannot be run. Check its path and its mode."
        ) from None
    if done.returncode != 0:
        raise DeviceSecretError(f"The key command ended with exit code {done.returncode}.")
    return done.stdout


def _damaged(path: Path) -> DamagedDeviceStateError:
    return DamagedDeviceStateError(
        f"{path} is damaged or altered. Restore it from a backup. Without a backup, provision"
        " this camera again under a new serial, in an empty directory."
    )


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
