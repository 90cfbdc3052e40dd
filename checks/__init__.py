"""Checks of `make check` that no linter does: vulnerabilities and the public surface."""
