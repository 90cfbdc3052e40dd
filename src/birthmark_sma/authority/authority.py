"""Open an authority: the only module that wires the parts together.

`sma serve` and the other commands call `open_authority` and the functions that open a part. Every
function closes the database that it opened if it raises. No other module may construct the services
of a server. `initialisation.py` creates what is opened here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

from cryptography import x509

from birthmark_sma.authority.access.cache import AccessKeyCache
from birthmark_sma.authority.background.abuse_detection import AbuseDetection
from birthmark_sma.authority.background.audit_checkpoints import AuditCheckpoints
from birthmark_sma.authority.background.audit_upkeep import AuditUpkeep
from birthmark_sma.authority.background.clock_check import ClockCheck
from birthmark_sma.authority.background.key_reload import KeyReloader
from birthmark_sma.authority.background.overlap_expiry import OverlapExpiry
from birthmark_sma.authority.background.sandbox_expiry import SandboxExpiry
from birthmark_sma.authority.background.wal_checkpoint import WalCheckpoint
from birthmark_sma.authority.background.write_check import (
    CheckedWriter,
    WriteCheck,
    write_device,
    write_fail,
)
from birthmark_sma.authority.ca.crl_publication import CrlPublication
from birthmark_sma.authority.ca.crl_store import ServedCrls
from birthmark_sma.authority.ca.intermediate_key import open_issuers
from birthmark_sma.authority.ca.issuers import (
    OCSP_PATH,
    Issuer,
    OpenIssuers,
    certificate_path,
    crl_path,
)
from birthmark_sma.authority.ca.store import load_certificates
from birthmark_sma.authority.data_directory import check_not_forgotten
from birthmark_sma.authority.devices.abuse_policy import AbusePolicy
from birthmark_sma.authority.kek.wrapping import OpenedSecrets, open_stored_secrets
from birthmark_sma.authority.key_tables import cache as key_table_cache
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.key_tables.cache import KeyTableCache
from birthmark_sma.authority.key_tables.usage import KeyTableUsage
from birthmark_sma.authority.ocsp.delegation import Delegation
from birthmark_sma.authority.provisioning.bulk import BulkProvisioner
from birthmark_sma.authority.provisioning.idempotency import StoredResponses
from birthmark_sma.authority.provisioning.issuance import DeviceIssuer
from birthmark_sma.authority.provisioning.service import Provisioner
from birthmark_sma.authority.rate_limits.limiter import RateLimits, make_rate_limits
from birthmark_sma.authority.rate_limits.shared_windows import SharedWindows
from birthmark_sma.authority.renewal.registration import IssuedRenewal, register_renewals
from birthmark_sma.authority.renewal.service import Renewer
from birthmark_sma.authority.sandbox.certificates import SandboxDeviceIssuer
from birthmark_sma.authority.sandbox.validation import SandboxValidator
from birthmark_sma.authority.server_metrics import ServerMetrics
from birthmark_sma.authority.validation.service import Validator
from birthmark_sma.authority.validation.store import make_store as make_validation_store
from birthmark_sma.config import Settings
from birthmark_sma.pki.certificates import Publication
from birthmark_sma.protocol.key_table import TableSizes
from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.runtime.shared_memory_metrics import SharedCounters
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.group_commit import GroupCommit
from birthmark_sma.storage.migration import check_schema


@dataclass(frozen=True, slots=True)
class Authority:
    """An open authority: its settings, secrets and services. Call `close` at the end."""

    settings: Settings
    database: Database
    issuers: OpenIssuers = field(repr=False)
    secrets: OpenedSecrets = field(repr=False)
    table_cache: KeyTableCache = field(repr=False)
    validator: Validator = field(repr=False)
    provisioner: Provisioner = field(repr=False)
    renewer: Renewer = field(repr=False)
    writers: tuple[GroupCommit[Any, Any], ...] = field(repr=False)
    """Those of the validator and of the provisioner."""
    key_cache: AccessKeyCache = field(repr=False)
    background_tasks: tuple[BackgroundTask, ...] = field(repr=False)
    """The background tasks. They do not run before `start`."""
    rate_limits: RateLimits = field(repr=False)
    """The rate limits of the server. The server starts and closes them, in its event loop."""
    figures: ServerMetrics = field(repr=False)
    served_crls: ServedCrls = field(repr=False)
    ocsp_delegation: Delegation = field(repr=False)
    sandbox: bool = False
    """True if the authority was created as a sandbox."""

    def start(self) -> None:
        """Start the background tasks. Only a server does; a single command does not need them."""
        for chore in self.background_tasks:
            chore.start()

    def copy_figures(self) -> None:
        """Copy this process's plain counters to shared memory, for all processes.

        The server calls this every second, and before it returns metrics.
        """
        self.validator.copy_figures()
        self.provisioner.copy_figures()
        self.figures.copy_rate_limits(self.rate_limits.figures)
        self.figures.copy_ocsp_expiry(self.ocsp_delegation.earliest_end())

    @property
    def issuer(self) -> Issuer:
        """Return the intermediate that signs new device certificates."""
        return self.issuers.active

    @property
    def root(self) -> x509.Certificate:
        """Return the root above that intermediate."""
        return self.issuers.root

    @property
    def table_sizes(self) -> TableSizes:
        """Return the number of key tables, and of keys in each."""
        return self.table_cache.sizes

    def close(self) -> None:
        """Finish and answer all requests under way, then close the database.

        This waits up to a second for each background task.
        """
        # Stop all before waiting for any, so that they end at the same time.
        for chore in self.background_tasks:
            chore.stop()
        for chore in self.background_tasks:
            chore.close()
        # The database last: both writers still commit what they accepted.
        self.provisioner.close()
        self.validator.close()
        self.database.close()


@contextmanager
def opened_database(settings: Settings) -> Iterator[Database]:
    """Yield the database of these settings, and close it at the end.

    Raises ConfigurationError if DATABASE_URL was forgotten (`data_directory`), SchemaMismatchError,
    AuthorityMovedError or DatabaseUnavailableError.
    """
    check_not_forgotten(settings)
    database = open_database(settings.resolved_database_url)
    try:
        check_schema(database)
        yield database
    finally:
        database.close()


def open_authority(
    settings: Settings,
    shared_counters: SharedCounters | None = None,
    shared_windows: SharedWindows | None = None,
) -> Authority:
    """Open an initialised authority: prove its secrets, unwrap its tables, start its writers.

    `shared_counters` is the shared memory for metrics; None means counters of this process only.
    In the same way, `shared_windows` is the memory of rate limits.
    This starts threads, so the process must not fork afterwards: `opened_in_bulk` starts none.

    Raises SchemaMismatchError, AuthorityMovedError, NotInitialisedError, KeyTablesError,
    WrongSecretError, ConfigurationError or DatabaseUnavailableError. Each says what to do, and
    closes the database.
    """
    check_not_forgotten(settings)
    database = open_database(settings.resolved_database_url)
    try:
        check_schema(database)
        parts = _open_parts(database, settings)
        # The first query for the time runs here, so that `clock.now()` queries no database later.
        database.clock.look()
        with database.read() as connection:
            key_cache = AccessKeyCache(connection, database.clock.now)
    except BaseException:  # also KeyboardInterrupt: no connection must stay open
        database.close()
        raise
    database.warn_when_slow(settings.slow_query_ms / 1000)
    figures = ServerMetrics(shared_counters)
    served_crls = ServedCrls(database)
    ocsp_delegation = Delegation(parts.issuers.signing, database.clock.now)
    rate_limits = make_rate_limits(settings, shared_windows)
    validator_class = SandboxValidator if parts.sandbox else Validator
    validator = validator_class(
        database,
        make_validation_store(database),
        parts.table_cache,
        parts.secrets.nuc_hash_index,
        pool_limit=settings.pool_limit,
        batch_limit=settings.batch_limit,
        figures=figures,
        rate_limits=rate_limits,
        replay=settings.replay,
    )
    grace = timedelta(days=settings.renewal_grace_days)
    provisioner = Provisioner(
        database,
        parts.maker,
        parts.first_answers,
        figures,
        more_items={IssuedRenewal: partial(register_renewals, grace=grace)},
    )
    return Authority(
        settings=settings,
        database=database,
        issuers=parts.issuers,
        secrets=parts.secrets,
        table_cache=parts.table_cache,
        validator=validator,
        provisioner=provisioner,
        renewer=Renewer(database, parts.maker, provisioner, grace, figures),
        writers=(validator.writer, provisioner.writer),
        figures=figures,
        served_crls=served_crls,
        ocsp_delegation=ocsp_delegation,
        key_cache=key_cache,
        background_tasks=(
            validator.activity,
            AuditUpkeep(
                database, settings.audit_retention_days, parts.secrets.keks, settings.privacy_days
            ),
            AuditCheckpoints(database, parts.secrets.keks),
            AbuseDetection(database, make_abuse_policy(settings), settings.abuse),
            ClockCheck(database),
            WriteCheck(
                database,
                CheckedWriter(
                    validator.writer, partial(write_fail, make_validation_store(database))
                ),
                CheckedWriter(provisioner.writer, write_device),
            ),
            KeyReloader(database, parts.secrets.keks, key_cache, parts.issuers, parts.table_cache),
            OverlapExpiry(database),
            KeyTableUsage(database),
            CrlPublication(database, parts.issuers, served_crls),
            ocsp_delegation,
            *((WalCheckpoint(database),) if settings.uses_sqlite else ()),
            *((SandboxExpiry(database, parts.secrets.keks),) if parts.sandbox else ()),
        ),
        rate_limits=rate_limits,
        sandbox=parts.sandbox,
    )


@contextmanager
def opened_in_bulk(settings: Settings) -> Iterator[BulkProvisioner]:
    """Yield an initialised authority for bulk provisioning only. No thread runs, so it may fork.

    Raises the errors of `open_authority`.
    """
    with opened_database(settings) as database:
        parts = _open_parts(database, settings)
        yield BulkProvisioner(database, parts.maker, parts.first_answers)


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of an authority that need no thread: certificates, secrets, key tables."""

    issuers: OpenIssuers = field(repr=False)
    secrets: OpenedSecrets = field(repr=False)
    table_cache: KeyTableCache = field(repr=False)
    sandbox: bool

    @property
    def maker(self) -> DeviceIssuer:
        maker_class = SandboxDeviceIssuer if self.sandbox else DeviceIssuer
        return maker_class(self.table_cache, self.secrets.nuc_hash_index, self.issuers)

    @property
    def first_answers(self) -> StoredResponses:
        return StoredResponses(self.secrets.keks)


def _open_parts(database: Database, settings: Settings) -> _Parts:
    # The checks that need no secret come first.
    load_certificates(database)
    key_table_cache.check_sizes(database, settings)
    with database.read() as connection:
        sandbox = bool(key_table_store.was_created_as_sandbox(connection))
    opened = open_stored_secrets(database, settings)
    return _Parts(
        issuers=open_issuers(database, settings, opened, partial(_publication, settings)),
        secrets=opened,
        table_cache=key_table_cache.open_key_table_cache(database, opened.keks),
        sandbox=sandbox,
    )


def make_abuse_policy(settings: Settings) -> AbusePolicy:
    """Return the abuse policy of these settings."""
    return AbusePolicy(settings.abuse_factor, settings.abuse_least)


def _publication(settings: Settings, issuer: str) -> Publication | None:
    if settings.public_url is None:
        return None
    return Publication(
        crl_url=settings.public_url + crl_path(issuer),
        issuer_url=settings.public_url + certificate_path(issuer),
        ocsp_url=settings.public_url + OCSP_PATH,
    )
