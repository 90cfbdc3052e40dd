"""Name who runs a command, for the acts that record it.

Called by the commands that change devices, permit re-enrolments or order renewals. The name is a
note for operators. It proves nothing: whoever runs commands on the database can write any name.
"""

import getpass
import os
import socket

_MOST_CHARACTERS = 64  # of the columns


def find_actor() -> str:
    """Return who runs this command, as user@host.

    With sudo, the user is the one who typed `sudo` (SUDO_USER), and not root.
    """
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = str(os.getuid())
    name = f"{user}@{socket.gethostname()}"
    # Names come from the environment, which may hold what no database stores, or terminals act on.
    return "".join(each if each.isprintable() else "?" for each in name)[:_MOST_CHARACTERS]
