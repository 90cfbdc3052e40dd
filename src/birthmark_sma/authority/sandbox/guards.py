"""Checks that keep a sandbox apart from production.

`authority.authority` calls them before it creates or opens an authority.
"""

from birthmark_sma.authority.sandbox.verdicts import FIRST_SCRIPTED_TABLE
from birthmark_sma.config import Access, Settings
from birthmark_sma.errors import ConfigurationError
from birthmark_sma.http_requests import is_loopback


def check_settings(settings: Settings) -> None:
    """Raise ConfigurationError if the settings do not fit a sandbox.

    A sandbox listens on loopback only, has open access, runs in one process and has no secret that
    is worth a key file or a KMS. Its table ids must stay below the scripted ones.
    """
    found = [
        variable
        for variable, given in (
            (f"SMA_HOST={settings.host}", not is_loopback(settings.host)),
            ("SMA_ACCESS=keys", settings.access is Access.KEYS),
            ("SMA_TRUSTED_PROXIES", bool(settings.trusted_proxies)),
            ("SMA_PUBLIC_URL", settings.public_url is not None),
            ("SMA_TLS_CLIENT_CA", settings.tls_client_ca is not None),
            ("SMA_KEK_FILE", settings.kek_file is not None),
            ("SMA_KEK_COMMAND", settings.kek_command is not None),
            ("SMA_RATE_STORE", settings.rate_store is not None),
            ("SMA_AUDIT_RETENTION_DAYS", settings.audit_retention_days is not None),
            ("SMA_PRIVACY_DAYS", settings.privacy_days is not None),
            (f"SMA_WORKERS={settings.workers}", settings.processes > 1),
        )
        if given
    ]
    if found:
        raise ConfigurationError(
            f"--sandbox does not go together with {', '.join(found)}: these are for an authority in"
            " earnest. A sandbox serves this machine alone. Leave one or the other out"
        )
    if settings.tables > FIRST_SCRIPTED_TABLE:
        raise ConfigurationError(
            f"A sandbox has at most {FIRST_SCRIPTED_TABLE:,} key tables: the ids from there on are"
            " its scripts. Give fewer --tables"
        )


def check_kind(created_as_sandbox: bool, *, sandbox: bool) -> None:  # noqa: FBT001
    """Raise ConfigurationError if an authority would serve as the kind that it was not created as.

    `founded_as_sandbox` is the kind in the database, `sandbox` the kind in the settings.
    """
    if created_as_sandbox and not sandbox:
        raise ConfigurationError(
            "This authority was founded as a sandbox, and never serves as anything else. Say"
            " --sandbox, or name another data directory or database"
        )
    if sandbox and not created_as_sandbox:
        raise ConfigurationError(
            "This authority was not founded as a sandbox, and never serves as one. Leave --sandbox"
            " out, or name another data directory or database"
        )
