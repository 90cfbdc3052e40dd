"""Run a batch: write the result or the refusal of each record, and count them.

`batch/command.py` calls it. This code runs in the parent process only. The worker processes run
`Job.do` of `batch/workers.py`.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from birthmark_sma.authority.provisioning.bulk import BulkProvisioner
from birthmark_sma.cli.actor import find_actor
from birthmark_sma.cli.batch.records import BatchFormat, read_records
from birthmark_sma.cli.batch.results import Results, ResultState
from birthmark_sma.cli.batch.workers import ChunkOutcome, Job, Refusal, Repetition, Workers
from birthmark_sma.cli.output import print_stderr
from birthmark_sma.errors import (
    DatabaseUnavailableError,
    DeviceAlreadyProvisionedError,
    PrivateFileError,
)
from birthmark_sma.web.api.models.provisioning import ProvisionRequest

_COLUMNS = {name: field.is_required() for name, field in ProvisionRequest.model_fields.items()}
"""The fields of a record, and whether each is required. The API's model defines them."""

_AGAIN = "run the same command again to continue"
_CHANGED = (
    "An earlier run provisioned this serial from a different line. Provisioning a device again does"
    " not change it"
)


@dataclass(slots=True)
class Tally:
    """Counts of records by outcome. `provisioned_before` counts those of earlier runs."""

    provisioned: int = 0
    provisioned_before: int = 0
    refused: int = 0


class Batch:
    """Provisions records, writes results and refusals, and counts outcomes in `tally`."""

    def __init__(self, bulk: BulkProvisioner, results: Results, refusals: Path) -> None:
        self._bulk = bulk
        self._results = results
        self._refusals = refusals
        self.tally = Tally()

    def resume(self) -> None:
        """Recover the results of an interrupted run. Call it before `workers`.

        Raises what `Results.recover` raises.
        """
        self._results.recover(self._bulk.registered_after_pending_commits, self._bulk.roots)
        # Forked processes must not share a connection: both would write to the same socket.
        self._bulk.dispose_connections()

    def workers(self, processes: int, *, make_keys: bool) -> Workers:
        """Return the worker processes. Enter the context manager before any thread runs."""
        return Workers(Job(self._bulk, self._results, make_keys, find_actor()), processes)

    def provision(
        self,
        workers: Workers,
        file: BinaryIO,
        file_format: BatchFormat,
        progress: Callable[[int], None],
    ) -> None:
        """Provision all records. `progress` gets the number of bytes of the file that are done.

        Raises DatabaseUnavailableError, BatchInterruptedError or IssuerExpiredError, and
        PrivateFileError if results cannot be written. Afterwards the batch can be resumed.
        """
        with _private_text(self._refusals) as refusals:
            try:
                for outcome in workers.provision(read_records(file, file_format, _COLUMNS)):
                    self._settle(outcome, refusals)
                    progress(outcome.end)
            except DatabaseUnavailableError as error:
                advice = f"{error.advice}; then {_AGAIN}" if error.advice else _AGAIN
                raise DatabaseUnavailableError(str(error), advice) from error
            except KeyboardInterrupt:
                print_stderr(f"Interrupted: {_AGAIN}.")
                raise
            except OSError as error:
                reason = error.strerror or "the system refuses"
                raise PrivateFileError(f"Results cannot be written: {reason}; {_AGAIN}.") from error

    def _settle(self, outcome: ChunkOutcome, refusals: TextIO) -> None:
        self._results.write(outcome.results, outcome.part)
        refused = list(outcome.refusals)
        for repetition in outcome.repetitions:
            refusal = self._judge(repetition)
            if refusal is None:
                self.tally.provisioned_before += 1
            else:
                refused.append(refusal)
        for refusal in sorted(refused, key=lambda each: each.line):
            refusals.write(json.dumps(asdict(refusal), ensure_ascii=False) + "\n")
        refusals.flush()
        self.tally.provisioned += outcome.provisioned
        self.tally.refused += len(refused)

    def _judge(self, repetition: Repetition) -> Refusal | None:
        """Return why a registered serial is refused, or None if this same line registered it."""
        state = self._results.claim(repetition.provisioning_id, repetition.request_digest)
        if state is ResultState.WRITTEN:
            return None
        another = state is ResultState.ANOTHER_REQUEST
        problem = _CHANGED if another else str(DeviceAlreadyProvisionedError())
        return Refusal(repetition.line, repetition.device_serial, problem)


def _private_text(path: Path) -> TextIO:
    """Open an empty file with mode 0600. Raises PrivateFileError if it cannot be written."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise PrivateFileError(f"{path} cannot be written: {error.strerror}.") from None
    os.fchmod(descriptor, 0o600)  # os.open does not change the mode of a file that exists
    return os.fdopen(descriptor, "w", encoding="utf-8")
