"""Check all pinned packages for known vulnerabilities with pip-audit.

pip-audit exits with the same code in three cases: it found something, it could not reach a
database, or the database knows none of the packages. Only the first case may fail the check,
because developers also work without a network. The last case must not count as success. So this
module parses pip-audit's report.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

LOCK = "requirements/dev.lock"
"""The lock for development. It contains every package of run.lock too."""
SERVICES = ("pypi", "osv")
"""The vulnerability databases that pip-audit supports, in the order in which they are queried."""

_SECONDS = 45
_SOCKET_SECONDS = 5


def main(arguments: Sequence[str] = ()) -> int:
    """Print the known vulnerabilities. Return 1 if there is one, else 0.

    If no database responds, print that and return 0. `arguments` are passed to pip-audit.
    """
    for service in SERVICES:
        audited = _audited(service, arguments)
        if audited:
            return _tell(audited)
    print(f"vulnerabilities: not checked, because no database of {' or '.join(SERVICES)} responds")
    return 0


def _audited(service: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Return the report of each package that a database knows.

    The list is empty if the database does not respond within 45 seconds.
    """
    command = [
        *(sys.executable, "-m", "pip_audit", "--requirement", LOCK, "--require-hashes"),
        *("--disable-pip", "--vulnerability-service", service, "--format", "json"),
        *("--timeout", str(_SOCKET_SECONDS), "--progress-spinner", "off", *arguments),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        report = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return []
    return [each for each in report["dependencies"] if "skip_reason" not in each]


def _tell(audited: Sequence[dict[str, Any]]) -> int:
    known = [(each, found) for each in audited for found in each["vulns"]]
    for each, found in known:
        fixed = ", ".join(found["fix_versions"]) or "no version yet"
        print(f"{each['name']} {each['version']}: {found['id']}, fixed in {fixed}")
    print(f"vulnerabilities: {len(known)} known in {len(audited)} packages")
    return 1 if known else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
