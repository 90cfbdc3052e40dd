"""Run uv with the user's configuration of pip: `python checks/uv.py pip install -r FILE`.

uv does not read pip's configuration. This program asks pip for it, and gives index, CA certificate
and proxy to uv as environment variables. Nothing is stored. If uv is missing or fails to install,
pip installs instead. The Makefile calls it before anything is installed, so it must import the
standard library alone.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ENVIRONMENT = Path(".venv")
# The values of one option: pip separates them by white space, uv by the character given here.
_VARIABLES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "index-url": (("UV_DEFAULT_INDEX",), " "),
    "extra-index-url": (("UV_INDEX",), " "),
    "find-links": (("UV_FIND_LINKS",), ","),
    "trusted-host": (("UV_INSECURE_HOST",), " "),
    "cert": (("SSL_CERT_FILE",), " "),
    "client-cert": (("SSL_CLIENT_CERT",), " "),
    "proxy": (("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), " "),
    "default-timeout": (("UV_HTTP_TIMEOUT",), " "),
    "timeout": (("UV_HTTP_TIMEOUT",), " "),
}
_SECTIONS = ("global", "install", ":env:")  # the last one that has an option decides
_UV_ALONE = {"--compile-bytecode"}  # pip compiles unless it is told otherwise


def parse_pip_settings(listed: str) -> dict[str, str]:
    """Return the options of `pip install` from the output of `pip config list`."""
    by_section: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in listed.splitlines():
        name, separator, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if separator and section in by_section:
            by_section[section][option] = str(ast.literal_eval(value))
    return {option: value for each in by_section.values() for option, value in each.items()}


def uv_environment(settings: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that make uv follow the settings of pip.

    A variable of uv that the user has set stays as it is.
    """
    # As pip does: trust the system's CAs, and take the best version that any index has.
    found = {"UV_SYSTEM_CERTS": "1", "UV_INDEX_STRATEGY": "unsafe-best-match"}
    # pip reads these two itself, and uv does not.
    bundle = environ.get("REQUESTS_CA_BUNDLE") or environ.get("CURL_CA_BUNDLE") or ""
    settings = {"cert": bundle, **settings}
    for option, (variables, separator) in _VARIABLES.items():
        if value := settings.get(option):
            found |= dict.fromkeys(variables, separator.join(value.split()))
    return {
        name: value
        for name, value in found.items()
        if not (name.startswith("UV_") and environ.get(name))
    }


def uses_no_index(settings: Mapping[str, str]) -> bool:
    """Return whether pip asks no index. uv has a flag for that, and no variable."""
    return settings.get("no-index", "").lower() in {"1", "true", "yes", "on"}


def _pip() -> list[str]:
    own = ENVIRONMENT / "bin" / "pip"
    python = str(ENVIRONMENT / "bin" / "python")
    return [str(own)] if own.exists() else [sys.executable, "-m", "pip", "--python", python]


def _run(command: Sequence[str], environ: Mapping[str, str]) -> int:
    try:
        return subprocess.run(command, env=environ, check=False).returncode
    except OSError as error:
        print(f"{command[0]} cannot be run: {error.strerror}", file=sys.stderr)
        return 127


def main(arguments: list[str]) -> int:
    """Run uv, and pip if uv cannot install. Return the exit code."""
    pip = _pip()
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False)
    settings = parse_pip_settings(listed.stdout)
    environ = os.environ | uv_environment(settings, os.environ)
    installs = arguments[:2] == ["pip", "install"]
    command = [str(ENVIRONMENT / "bin" / "uv"), *arguments]
    if installs:
        no_index = ["--no-index"] if uses_no_index(settings) else []
        python = str(ENVIRONMENT / "bin" / "python")
        command[3:3] = ["--python", python, *no_index]
    code = _run(command, environ)
    if code == 0 or not installs:
        return code
    print("uv could not install. pip tries the same, which takes longer.", file=sys.stderr)
    rest = [each for each in arguments[2:] if each not in _UV_ALONE]
    return _run([*pip, "install", *rest], os.environ)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
