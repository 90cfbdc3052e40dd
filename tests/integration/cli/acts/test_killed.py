"""A command that is killed at any statement leaves its change and its act, or neither."""

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.programs.commands import Background, sma
from tests.support.programs.kill_points import die_before_statement
from tests.support.programs.server import server_environ


def test_a_killed_command_leaves_both_or_none(database_url: str, tmp_path: Path) -> None:
    """Threat 30: devices and keys, one change after another, each killed a little later."""
    url = None if database_url.startswith("sqlite") else database_url
    environ = server_environ(tmp_path / "data", url)
    environ |= {"SMA_TABLES": "6", "SMA_KEYS_PER_TABLE": "16"}

    def ask(*arguments: str) -> Any:
        ran = sma(*arguments, "--json", environ=environ, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    ask("init")
    ask("provision", "cam")
    codes = set()
    for number in range(1, 40, 2):
        killed = partial(die_before_statement, number)
        act = "reinstate" if ask("devices", "show", "cam")["status"] == "suspended" else "suspend"
        for command in (
            ("devices", act, "cam"),
            ("keys", "create", f"{number}", "--scope", "admin"),
        ):
            ran = Background(*command, environ=environ, cwd=tmp_path, before=[killed])
            ran.communicate()
            codes.add(ran.returncode)
        status = ask("devices", "show", "cam")["status"]
        [*_, newest] = reversed(ask("acts", "list", "--subject", "cam")["acts"])
        assert newest["after"].get("status", "active") == status
        names = {each["name"] for each in ask("keys", "list")["keys"]}
        created = ask("acts", "list", "--act", "access-key.create", "--limit", "1000")["acts"]
        assert {each["after"]["name"] for each in created} == names
        if codes == {0, -signal.SIGKILL} and ran.returncode == 0:
            break
    assert codes == {0, -signal.SIGKILL}
