"""The source of a key-encryption key: a passphrase, a file, or the output of a command.

Called by `wrapping`. The command is for operators who keep the key in a key management service
(KMS) or a hardware security module (HSM). It runs without a shell, and its output must never get
into an error message or a log.
"""

import contextlib
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from birthmark_sma.authority.kek.passphrase_file import find_passphrase
from birthmark_sma.config import SECRET_FIELDS, NewSecret, Settings, environment_variable
from birthmark_sma.errors import ConfigurationError
from birthmark_sma.runtime.secret_files import read_private_file

KEK_BYTES = 32
SALT_BYTES = 16
COMMAND_SECONDS = 30.0
"""The timeout of a command. A remote service responds within a second or two."""
_COMMAND_OUTPUT_BYTES = 1_024  # far more than 64 hex digits and a line end; more is an error
# scrypt (RFC 7914) with 64 MiB and about 0.2 s: expensive for an attacker, who pays it for each
# guess, and hardly noticed by an operator, who pays it once at each start.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**16, 8, 1
# Secrets that a command must not inherit in its environment.
_NOT_FOR_COMMANDS = frozenset(map(environment_variable, (*SECRET_FIELDS, "new_ca_password")))


class KekSource(StrEnum):
    """The kinds of sources, with the values that the table `key_encryption_keys` stores."""

    PASSPHRASE = "passphrase"  # noqa: S105  the name of a source
    FILE = "file"
    COMMAND = "command"


@dataclass(frozen=True, slots=True)
class KekSecret:
    """The secret that an operator configured. `passphrase` is called only if it is needed."""

    passphrase: Callable[[], bytes] = field(repr=False)
    kek_file: Path | None = None
    kek_command: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, settings: Settings) -> "KekSecret":
        """Return the secret that is configured in the settings."""
        return cls(lambda: find_passphrase(settings), settings.kek_file, settings.kek_command)

    @classmethod
    def new(cls, new: NewSecret, passphrase: Callable[[], bytes]) -> "KekSecret":
        """Return the secret that a rotation shall put in force."""
        return cls(passphrase, new.new_kek_file, new.new_kek_command)

    @property
    def source(self) -> KekSource:
        """The source of a new key. Raises ConfigurationError if a file and a command are given."""
        if self.kek_file is not None and self.kek_command is not None:
            raise ConfigurationError(
                "A key-encryption key comes from a file or from a command. Leave one of them out."
            )
        if self.kek_file is not None:
            return KekSource.FILE
        return KekSource.PASSPHRASE if self.kek_command is None else KekSource.COMMAND

    def obtain(self, source: str, salt: bytes) -> bytes:
        """Return the 32 bytes of the key from this source. `salt` is for a passphrase only.

        Raises ConfigurationError if the source is not configured, is unknown or yields no key, and
        PrivateFileError if a file is missing or others can read it. A command may take 30 seconds.
        """
        match source:
            case KekSource.FILE:
                if self.kek_file is None:
                    raise ConfigurationError(
                        "This authority's key-encryption key is in a file. Set SMA_KEK_FILE to its"
                        " path."
                    )
                return _read_kek_file(self.kek_file)
            case KekSource.COMMAND:
                if self.kek_command is None:
                    raise ConfigurationError(
                        "This authority's key-encryption key comes from a command. Set"
                        " SMA_KEK_COMMAND to it."
                    )
                return run_kek_command(self.kek_command)
            case KekSource.PASSPHRASE:
                scrypt = Scrypt(salt=salt, length=KEK_BYTES, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P)
                return scrypt.derive(self.passphrase())
            case _:
                raise ConfigurationError(
                    "This authority's key-encryption key has a source that this program does not"
                    " know. Install the newer program."
                )


def run_kek_command(command: str, seconds: float = COMMAND_SECONDS) -> bytes:
    """Run a command line without a shell, and return the 32-byte key that it writes to stdout.

    Kill it after `seconds`. Raises ConfigurationError if it cannot be run, fails, takes too long or
    writes no key. The error never contains a part of its output.
    """
    try:
        arguments = shlex.split(command)
    except ValueError:
        raise ConfigurationError(
            "SMA_KEK_COMMAND cannot be parsed as a command line: a quotation mark is missing."
        ) from None
    if not arguments:
        raise ConfigurationError("SMA_KEK_COMMAND is empty.")
    try:
        process = subprocess.Popen(  # noqa: S603  the operator's own command
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it may contain secrets, which must not get into a log
            env={
                name: value for name, value in os.environ.items() if name not in _NOT_FOR_COMMANDS
            },
            start_new_session=True,  # its own process group, so that `_end` kills its children too
        )
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it holds a character that no command can have"
        raise ConfigurationError(f"SMA_KEK_COMMAND cannot be run: {why}.") from None
    try:
        output, code = _read_output(process, time.monotonic() + seconds)
    finally:
        _end(process)
    if output is None or code is None:
        raise ConfigurationError(
            f"SMA_KEK_COMMAND did not end within {seconds:g} seconds. Run it by hand to see why."
        )
    if len(output) > _COMMAND_OUTPUT_BYTES:
        raise ConfigurationError(
            "SMA_KEK_COMMAND wrote more than a key. It must write 32 raw bytes or 64 hex digits."
        )
    if code != 0:
        how = f"with exit code {code}" if code > 0 else f"by signal {-code}"
        raise ConfigurationError(
            f"SMA_KEK_COMMAND ended {how}. Run it by hand to see what it says."
        )
    if not output:
        raise ConfigurationError("SMA_KEK_COMMAND wrote nothing. It must write the key to stdout.")
    return _parse(output, "SMA_KEK_COMMAND wrote")


def _read_output(
    process: "subprocess.Popen[bytes]", deadline: float
) -> tuple[bytes | None, int | None]:
    """Return the output and the exit code; None for one that is not there by the deadline.

    Not `communicate`, which would read any amount of output.
    """
    if process.stdout is None:
        raise RuntimeError("a command was started without a pipe")
    output = b""
    while len(output) <= _COMMAND_OUTPUT_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            return None, None
        part = os.read(process.stdout.fileno(), _COMMAND_OUTPUT_BYTES + 1)
        if not part:
            break
        output += part
    else:
        return output, 0  # too much output is an error, whatever the exit code
    try:
        return output, process.wait(max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        return output, None


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.stdout is not None:
        process.stdout.close()
    if process.poll() is None:
        # The whole process group: the command may have started other processes.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read_kek_file(path: Path) -> bytes:
    return _parse(read_private_file(path), "SMA_KEK_FILE holds")


def _parse(content: bytes, what: str) -> bytes:
    if len(content) == KEK_BYTES:
        return content
    try:
        key = bytes.fromhex(content.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEK_BYTES:
        raise ConfigurationError(
            f"{what} neither 32 raw bytes nor 64 hex digits. To make a key, type:"
            " openssl rand -hex 32"
        )
    return key
