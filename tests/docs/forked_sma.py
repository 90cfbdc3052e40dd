"""`sma` for shell commands, forked from a process that has imported everything.

A program in the reader's folder passes its arguments, environment, directory and standard streams
over a Unix socket, and ends with the exit code of the forked command. If it is killed, the command
gets SIGTERM.
"""

import contextlib
import json
import os
import select
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.programs.commands import Command

_LENGTH = struct.Struct("!I")
_ONE_AT_A_TIME = threading.Lock()
"""Starting a process polls the others, and two polls at once can lose an exit code."""
_PROGRAM = """\
#!{python} -ES
import json, os, socket, struct, sys
request = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
with socket.socket(socket.AF_UNIX) as caller:
    caller.connect({address!r})
    socket.send_fds(caller, [struct.pack("!I", len(request))], [0, 1, 2])
    caller.sendall(request)
    code = caller.recv(16)
sys.exit(int(code or 70))
"""


@contextmanager
def offer_sma(program: Path) -> Iterator[None]:
    """Write the program, and run what it asks for until the end of the block."""
    address = str(program.with_suffix(".socket"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        program.write_text(
            _PROGRAM.format(python=sys.executable, address=address), encoding="utf-8"
        )
        program.chmod(0o755)
        thread = threading.Thread(target=_accept, args=(listener,))
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _accept(listener: socket.socket) -> None:
    callers = []
    with contextlib.suppress(OSError):  # the listener was shut down
        while True:
            caller, _ = listener.accept()
            callers.append(threading.Thread(target=_run, args=(caller,), daemon=True))
            callers[-1].start()
    for each in callers:
        each.join(90)


def _run(caller: socket.socket) -> None:
    """Run one command, and send its exit code."""
    with caller:
        head, streams, _, _ = socket.recv_fds(caller, _LENGTH.size, 3)
        [length] = _LENGTH.unpack(head)
        arguments, environ, folder = json.loads(_receive(caller, length))
        with (
            os.fdopen(streams[0], "r") as stdin,
            os.fdopen(streams[1], "w") as stdout,
            os.fdopen(streams[2], "w") as stderr,
            _ONE_AT_A_TIME,
        ):
            command = Command(
                arguments, environ, Path(folder), stdin=stdin, stdout=stdout, stderr=stderr
            )
        while _poll(command) is None:
            # The program sends nothing more, so something to read means that it has ended.
            if select.select([caller], [], [], 0.02)[0]:
                with _ONE_AT_A_TIME:
                    command.terminate()
                    command.wait(60)
        with contextlib.suppress(OSError):
            caller.sendall(str(command.returncode).encode())


def _poll(command: Command) -> int | None:
    with _ONE_AT_A_TIME:
        return command.poll()


def _receive(caller: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length and (part := caller.recv(65_536)):
        received += part
    return received
