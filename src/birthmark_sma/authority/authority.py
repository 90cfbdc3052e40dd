"""Wire the parts together, here and nowhere else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cryptography import x509

from birthmark_sma.authority.access.cache import AccessKeyCache
from birthmark_sma.authority.background.abuse_detection import AbuseWatch
from birthmark_sma.authority.background.audit_upkeep import HistoryUpkeep
from birthmark_sma.authority.background.clock_check import ClockWatch
from birthmark_sma.authority.background.key_reload import KeyReloader
from birthmark_sma.authority.background.sandbox_expiry import ShortLife
from birthmark_sma.authority.ca import ceremony
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.crl_cache import ServedCrls
from birthmark_sma.authority.ca.crl_publication import CrlPublication
from birthmark_sma.authority.ca.intermediate_key import open_ca_key
from birthmark_sma.authority.ca.store import StoredCa
from birthmark_sma.authority.devices.abuse_policy import AbusePolicy
from birthmark_sma.authority.kek import store as kek_store
from birthmark_sma.authority.kek.passphrase_file import find_given_passphrase, find_passphrase
from birthmark_sma.authority.kek.passphrase_policy import check_new_passphrase
from birthmark_sma.authority.kek.sources import KekSecret
from birthmark_sma.authority.kek.wrapping import OpenedSecrets, open_secrets
from birthmark_sma.authority.key_tables import cache as key_table_cache
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.key_tables.cache import KeyTableCache
from birthmark_sma.authority.key_tables.usage import TableCounting
from birthmark_sma.authority.provisioning.bulk import BulkProvisioner
from birthmark_sma.authority.provisioning.idempotency import StoredResponses
from birthmark_sma.authority.provisioning.issuance import CandidateMaker, Issuer
from birthmark_sma.authority.provisioning.service import Provisioner
from birthmark_sma.authority.rate_limits.limiter import RateLimits, make_rate_limits
from birthmark_sma.authority.sandbox.certificates import SandboxCandidateMaker
from birthmark_sma.authority.sandbox.guards import check_kind, check_settings
from birthmark_sma.authority.sandbox.validation import SandboxValidator
from birthmark_sma.authority.server_metrics import Figures
from birthmark_sma.authority.validation.service import Validator
from birthmark_sma.config import Settings
from birthmark_sma.errors import (
    AlreadyInitialisedError,
    ConfigurationError,
    NotInitialisedError,
)
from birthmark_sma.pki.certificates import Publication
from birthmark_sma.pki.keys.ca_keys import Signer
from birthmark_sma.protocol.key_table import TableSizes
from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.runtime.secret_files import make_private_directory
from birthmark_sma.runtime.shared_memory_metrics import SharedCounters
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.migration import check_schema, migrate

CRL_PATH = "/pki/intermediate.crl"
ROOT_CRL_PATH = "/pki/root.crl"
INTERMEDIATE_PATH = "/pki/intermediate.crt"
ROOT_PATH = "/pki/root.crt"


@dataclass(frozen=True, slots=True)
class Authority:
    """An open authority."""

    settings: Settings
    database: Database
    root: x509.Certificate
    issuer: Issuer = field(repr=False)
    secrets: OpenedSecrets = field(repr=False)
    table_cache: KeyTableCache = field(repr=False)
    validator: Validator = field(repr=False)
    provisioner: Provisioner = field(repr=False)
    key_cache: AccessKeyCache = field(repr=False)
    chores: tuple[BackgroundTask, ...] = field(repr=False)
    """Not begun yet: see `start`."""
    rate_limits: RateLimits = field(repr=False)
    """For whoever serves, who begins and closes them too: they belong to an event loop."""
    figures: Figures = field(repr=False)
    served_crls: ServedCrls = field(repr=False)
    sandbox: bool = False
    """What it was founded as."""

    def start(self) -> None:
        """Begin what a server does beside answering; a single command should not wait for it."""
        for chore in self.chores:
            chore.start()

    def copy_figures(self) -> None:
        """Copy what is counted in plain numbers to where all processes see it; the server's loop
        does so every second.
        """
        self.validator.copy_figures()
        self.provisioner.copy_figures()
        self.figures.copy_rate_limits(self.rate_limits.figures)

    @property
    def table_sizes(self) -> TableSizes:
        """How many tables and keys this authority has."""
        return self.table_cache.sizes

    def close(self) -> None:
        """Finish and answer everything that is under way, then let go of the database."""
        for chore in self.chores:
            chore.stop()
        for chore in self.chores:
            chore.close()
        self.provisioner.close()
        self.validator.close()
        self.database.close()


@contextmanager
def opened_database(settings: Settings) -> Iterator[Database]:
    """The database of these settings, at the right schema; closed at the end."""
    database = open_database(settings.resolved_database_url)
    try:
        check_schema(database)
        yield database
    finally:
        database.close()


def open_authority(settings: Settings, sheets: SharedCounters | None = None) -> Authority:
    """Open an initialised authority: its secrets proven, its tables unwrapped, its writers running.

    It counts on `sheets` that processes share, or else for itself.

    Raises SchemaMismatchError, NotInitialisedError, KeyTablesError, WrongSecretError,
    ConfigurationError or DatabaseUnavailableError, each with what to do; nothing is left open.
    """
    database = open_database(settings.resolved_database_url)
    try:
        parts = _open_parts(database, settings)
        database.clock.look()
        with database.read() as connection:
            key_cache = AccessKeyCache(connection, database.clock.now)
    except BaseException:
        database.close()
        raise
    database.warn_when_slow(settings.slow_query_ms / 1000)
    figures = Figures(sheets)
    served_crls = ServedCrls(database)
    rate_limits = make_rate_limits(settings)
    validator_class = SandboxValidator if parts.sandbox else Validator
    return Authority(
        settings=settings,
        database=database,
        root=parts.root,
        issuer=parts.issuer,
        secrets=parts.secrets,
        table_cache=parts.table_cache,
        validator=validator_class(
            database,
            parts.table_cache,
            parts.secrets.nuc_hash_index,
            pool_limit=settings.pool_limit,
            batch_limit=settings.batch_limit,
            figures=figures,
            rate_limits=rate_limits,
            replay=settings.replay,
        ),
        provisioner=Provisioner(database, parts.maker, parts.first_answers, figures),
        figures=figures,
        served_crls=served_crls,
        key_cache=key_cache,
        chores=(
            HistoryUpkeep(database, settings.audit_retention_days),
            AbuseWatch(database, make_abuse_policy(settings), settings.abuse),
            ClockWatch(database),
            KeyReloader(database, parts.secrets.keks, key_cache),
            TableCounting(database),
            CrlPublication(database, parts.issuer.certificate, parts.issuer.signer, served_crls),
            *((ShortLife(database),) if parts.sandbox else ()),
        ),
        rate_limits=rate_limits,
        sandbox=parts.sandbox,
    )


@contextmanager
def opened_in_bulk(settings: Settings) -> Iterator[BulkProvisioner]:
    """An initialised authority for provisioning in bulk alone: no thread runs, so it may fork.

    Raises as `open_authority` does.
    """
    database = open_database(settings.resolved_database_url)
    try:
        parts = _open_parts(database, settings)
        yield BulkProvisioner(
            database, parts.maker, parts.first_answers, root=parts.issuer.chain[-1]
        )
    finally:
        database.close()


@dataclass(frozen=True, slots=True)
class _Parts:
    """What is open once secrets are proven and tables unwrapped."""

    root: x509.Certificate
    issuer: Issuer
    secrets: OpenedSecrets = field(repr=False)
    table_cache: KeyTableCache = field(repr=False)
    sandbox: bool

    @property
    def maker(self) -> CandidateMaker:
        maker_class = SandboxCandidateMaker if self.sandbox else CandidateMaker
        return maker_class(self.table_cache, self.secrets.nuc_hash_index, self.issuer)

    @property
    def first_answers(self) -> StoredResponses:
        return StoredResponses(self.secrets.keks)


def _open_parts(database: Database, settings: Settings) -> _Parts:
    check_schema(database)
    root, intermediate = load_certificates(database)
    check_sizes(database, settings)
    with database.read() as connection:
        sandbox = bool(key_table_store.was_founded_as_sandbox(connection))
    opened = open_stored_secrets(database, settings)
    issuer = Issuer(
        certificate=x509.load_pem_x509_certificate(intermediate.certificate.encode()),
        signer=open_signer(database, settings, opened),
        chain=(intermediate.certificate, root.certificate),
        publication=_publication(settings),
    )
    return _Parts(
        root=x509.load_pem_x509_certificate(root.certificate.encode()),
        issuer=issuer,
        secrets=opened,
        table_cache=key_table_cache.open_key_table_cache(database, opened.keks),
        sandbox=sandbox,
    )


def is_initialised(settings: Settings) -> bool:
    """Say whether a complete authority is in this database. A wrong schema raises as always."""
    if _is_nothing_there(settings):
        return False
    database = open_database(settings.resolved_database_url)
    try:
        check_schema(database)
        with database.read() as connection:
            sizes = key_table_store.find_sizes(connection)
            return sizes is not None and key_table_store.count_tables(connection) == sizes.tables
    finally:
        database.close()


def check_may_be_sandbox(settings: Settings) -> None:
    """Raise ConfigurationError where settings, or an authority that is there, are in earnest."""
    check_settings(settings)
    if _is_nothing_there(settings):
        return
    database = open_database(settings.resolved_database_url)
    try:
        _check_kind(database, sandbox=True)
    finally:
        database.close()


def check_may_be_created(settings: Settings) -> None:
    """Raise PrivateFileError or ConfigurationError where SQLite's file is not to be made.

    A root's key without it is of an authority on PostgreSQL, whose DATABASE_URL was forgotten. The
    file would hide that key from it: see `ceremony.root_key_file`.
    """
    key_file = ceremony.root_key_file(settings)
    has_key = key_file.exists()  # asked first: another ceremony makes the file before its key
    if _is_nothing_there(settings):
        if has_key:
            raise ceremony.foreign_root_key(key_file)
        _check_passphrase(settings)


def initialise(
    settings: Settings, progress: Callable[[int, int], None], *, sandbox: bool = False
) -> ceremony.Ceremony | None:
    """Do what is missing of: schema, ceremony, key tables. None where the ceremony was held before.

    Every step is durable or undone by itself, so a run that was cut off is simply run again.
    """
    if sandbox:
        check_settings(settings)
    check_may_be_created(settings)
    if settings.uses_sqlite:
        make_private_directory(settings.data_dir)
    else:
        find_passphrase(settings)  # before anything is written: there is nowhere to keep one
    database = open_database(settings.resolved_database_url)
    try:
        # Before anything is changed that is not to be:
        if _check_kind(database, sandbox=sandbox) is None:
            _check_passphrase(settings)
        migrate(database)
        ceremony.finish_ceremony(database, settings)
        try:
            held = ceremony.hold_ceremony(database, settings, sandbox=sandbox)
        except AlreadyInitialisedError:  # before, or by another program at this very moment
            held = None
            _check_kind(database, sandbox=sandbox)
        populate_tables(database, settings, progress)
        return held
    finally:
        database.close()


def _is_nothing_there(settings: Settings) -> bool:
    """Say whether not even a file is there; to open a database would make one."""
    return settings.database_url is None and not (settings.data_dir / "sma.db").exists()


def _check_passphrase(settings: Settings) -> None:
    """Raise ConfigurationError where a new authority's passphrase is easy to guess."""
    passphrase = find_given_passphrase(settings)
    if passphrase is not None:
        check_new_passphrase(passphrase)


def _check_kind(database: Database, *, sandbox: bool) -> bool | None:
    """Raise ConfigurationError where an authority is there that was founded as the other kind.

    Return whether it is a sandbox; None where there is none yet.
    """
    with database.read() as connection:
        founded_as_sandbox = key_table_store.was_founded_as_sandbox(connection)
    if founded_as_sandbox is not None:
        check_kind(founded_as_sandbox, sandbox=sandbox)
    return founded_as_sandbox


def populate_tables(
    database: Database, settings: Settings, progress: Callable[[int, int], None]
) -> int:
    """Create the key tables that are missing; return how many. See `key_stock.populate`."""
    check_sizes(database, settings)
    opened = open_stored_secrets(database, settings)
    return key_table_cache.populate(database, opened.keks, progress)


def check_sizes(database: Database, settings: Settings) -> None:
    """Raise ConfigurationError where sizes were asked for that are not this authority's own."""
    with database.read() as connection:
        sizes = key_table_store.find_sizes(connection)
    given = settings.model_fields_set & {"tables", "keys_per_table"}
    if sizes is not None and any(getattr(settings, one) != getattr(sizes, one) for one in given):
        raise ConfigurationError(
            f"This authority has {sizes.tables} tables of {sizes.keys_per_table} keys, fixed when"
            " it was initialised; other sizes were asked for. Leave the sizes out, or give another"
            " data directory or database."
        )


def load_certificates(database: Database) -> tuple[StoredCa, StoredCa]:
    """Return root and intermediate. Raises NotInitialisedError where there are none."""
    with database.read() as connection:
        root = ca_store.find_ca(connection, "root")
        intermediate = ca_store.find_ca(connection, "intermediate")
    if root is None or intermediate is None:
        raise NotInitialisedError
    return root, intermediate


def open_stored_secrets(database: Database, settings: Settings) -> OpenedSecrets:
    """Open and prove the secrets of an authority. Raises as `open_authority` does."""
    with database.read() as connection:
        records = kek_store.list_keks(connection)
    if not records:
        raise NotInitialisedError
    return open_secrets(records, KekSecret.of(settings))


def open_signer(database: Database, settings: Settings, opened: OpenedSecrets) -> Signer:
    """Open the intermediate's private key. Raises as `open_authority` does."""
    with database.read() as connection:
        intermediate = ca_store.find_ca(connection, "intermediate")
        if intermediate is None:
            raise NotInitialisedError
        return open_ca_key(connection, intermediate, opened.keks, lambda: find_passphrase(settings))


def make_abuse_policy(settings: Settings) -> AbusePolicy:
    """Return what counts as abuse under these settings."""
    return AbusePolicy(settings.abuse_factor, settings.abuse_least)


def _publication(settings: Settings) -> Publication | None:
    if settings.public_url is None:
        return None
    return Publication(settings.public_url + CRL_PATH, settings.public_url + INTERMEDIATE_PATH)
