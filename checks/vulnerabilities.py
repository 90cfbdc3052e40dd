"""Ask for known vulnerabilities of everything that the locks pin.

pip-audit ends alike whether it found something, could not reach a database, or reached one that
knows none of the packages. Only the first is a reason to stop whoever works without a network, and
the last must not pass for good news. So its report is read here.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

LOCK = "requirements/dev.lock"
"""All that run.lock pins stands there too."""
SERVICES = ("pypi", "osv")
"""The databases that pip-audit knows, in the order in which they are asked."""

_SECONDS = 45
_SOCKET_SECONDS = 5


def main(arguments: Sequence[str] = ()) -> int:
    """Say what is known, in a line or two; 1 where a vulnerability is. `arguments` go to pip-audit.

    A database that cannot be asked is no failure: then it says so, and 0.
    """
    for service in SERVICES:
        audited = _audited(service, arguments)
        if audited:
            return _tell(audited)
    print(f"vulnerabilities: could not ask, as no database of {' or '.join(SERVICES)} answers")
    return 0


def _audited(service: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Return what a database says of each package that it knows; nothing where it is away."""
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
