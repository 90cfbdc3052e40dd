"""The options that the commands of `sma simulate` share, each declared once.

A command names a group of options, such as `TargetOptions`, as the type of a parameter. Files and
directories are checked before a simulation starts, so that a run is never wasted.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from birthmark_sma.counts import counted
from birthmark_sma.errors import ConfigurationError

if TYPE_CHECKING:
    from birthmark_sma.simulation.target import Site

ENROLMENT_KEY = "BIRTHMARK_ENROLMENT_KEY"
VALIDATE_KEYS = "BIRTHMARK_VALIDATE_KEYS"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions:
    """The authority, and the credentials of aggregation servers."""

    url: Annotated[str, Argument(help="The authority, such as http://127.0.0.1:8000.")]
    validate_key_file: Annotated[
        list[Path] | None,
        Option(
            help="A file with an access key of scope validate. Give it once for all aggregation"
            " servers, or once for each. [BIRTHMARK_VALIDATE_KEYS: the keys, separated by spaces]"
        ),
    ] = None
    ca_file: Annotated[
        Path | None,
        Option(help="The CA of the authority's TLS certificate. Default: the system's CAs."),
    ] = None
    root_fingerprint: Annotated[
        str | None,
        Option(help="The SHA-256 fingerprint of the authority's root certificate, to pin it."),
    ] = None

    def site(self, aggregators: int, **others: Any) -> "Site":
        """Return the site that the options name, with keys from files, else from the environment.

        Raises ConfigurationError for keys that cannot be used.
        """
        from birthmark_sma.simulation.target import Site

        return Site(
            self.url,
            validate_keys=self._validate_keys(aggregators),
            ca_file=self.ca_file,
            root_fingerprint=self.root_fingerprint,
            **others,
        )

    def _validate_keys(self, aggregators: int) -> tuple[str, ...]:
        """Return one access key for each aggregation server, or an empty tuple if none is given.

        A single key serves all of them. Raises ConfigurationError for any other number of keys.
        """
        from_environment = os.environ.get(VALIDATE_KEYS, "").split()
        keys = list(map(_read_key, self.validate_key_file or ())) or from_environment
        if len(keys) == 1:
            keys *= aggregators
        if keys and len(keys) != aggregators:
            raise ConfigurationError(
                f"There are {len(keys)} keys for {counted(aggregators, 'aggregation server')}."
                " Give one for each, or one for all."
            )
        return tuple(keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(TargetOptions):
    """The options of the commands that simulate cameras."""

    settle: Annotated[
        float,
        Option(
            min=0,
            max=3600,
            help="The seconds for which pictures may be late. The last verdicts may take as long"
            " again.",
        ),
    ] = 30.0
    enrolment_key_file: Annotated[
        Path | None,
        Option(
            help="A file with an access key of scope provision. [BIRTHMARK_ENROLMENT_KEY: the key]"
        ),
    ] = None
    keys_per_table: Annotated[
        int | None,
        Option(min=1, help="The number of keys in each table, if it is neither 1,000 nor 100."),
    ] = None
    directory: Annotated[
        Path | None,
        Option(
            help="An empty directory for the state of the cameras. Default: a directory in memory,"
            " where syncing costs nothing; it is deleted at the end."
        ),
    ] = None
    report: Annotated[Path | None, Option(help="Write the report to this file, as JSON.")] = None
    picture: Annotated[Path | None, Option(help="Write a chart to this file, as SVG.")] = None

    def site(self, aggregators: int, **others: Any) -> "Site":
        """Return the site, after a check that the run can write its files.

        Raises ConfigurationError for keys, files or a directory that cannot be used.
        """
        enrolment_key: str | None = os.environ.get(ENROLMENT_KEY) or None
        if self.enrolment_key_file is not None:
            enrolment_key = _read_key(self.enrolment_key_file)
        site = TargetOptions.site(
            self,
            aggregators,
            enrolment_key=enrolment_key,
            keys_per_table=self.keys_per_table,
            **others,
        )
        for each in (self.report, self.picture):
            if each is not None and (each.is_dir() or not os.access(each.parent, os.W_OK)):
                raise ConfigurationError(f"{each} cannot be written. Choose another file.")
        if self.directory is not None and self.directory.exists() and any(self.directory.iterdir()):
            raise ConfigurationError(
                f"{self.directory} is not empty. Choose a new directory for each run."
            )
        return site


def _read_key(path: Path) -> str:
    from birthmark_sma.runtime.secret_files import read_private_file

    key = read_private_file(path).decode("utf-8", "replace").strip()
    # Visible ASCII only, because the key goes into an HTTP header.
    if not key or not all("!" <= letter <= "~" for letter in key):
        raise ConfigurationError(f"{path} holds no access key.")
    return key
