"""Make the actor of a command, for the trail of acts.

Called by every command that changes the authority. The name is a
note for operators. It proves nothing: whoever runs commands on the database can write any name.
"""

import getpass
import os
import socket

from birthmark_sma.authority.acts.actor import Actor, Source

_MOST_CHARACTERS = 64  # of the columns


def find_actor() -> Actor:
    """Return the actor of this command, named user@host.

    With sudo, the user is the one who typed `sudo` (SUDO_USER), and not root.
    """
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = str(os.getuid())
    name = f"{user}@{socket.gethostname()}"
    # Names come from the environment, which may hold what no database stores, or terminals act on.
    printable = "".join(each if each.isprintable() else "?" for each in name)
    return Actor(printable[:_MOST_CHARACTERS], Source.COMMAND_LINE)
