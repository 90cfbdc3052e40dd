"""Exit codes, so that scripts can tell what went wrong."""

from birthmark_sma import errors

OK = 0
FAILED = 1
"""The answer is no: a token got FAIL, a demonstration went otherwise than it should."""
USAGE = 2
CONFIGURATION = 3
"""A setting, secret or file is missing or wrong."""
DATABASE = 4
"""The database is away, empty, or at another version."""
CONFLICT = 5
"""What was asked contradicts what is registered."""
REFUSED = 6
"""A key, serial or request was refused."""

# The first row whose class an error belongs to gives the code.
_CODES: tuple[tuple[type[errors.BirthmarkError], int], ...] = (
    (errors.AlreadyInitialisedError, CONFLICT),
    (errors.ConflictError, CONFLICT),
    (errors.ConfigurationError, CONFIGURATION),
    (errors.WrongSecretError, CONFIGURATION),
    (errors.PrivateFileError, CONFIGURATION),
    (errors.KeyEncryptionKeyChangedError, CONFIGURATION),
    (errors.RotationError, CONFLICT),
    (errors.BatchFileError, CONFIGURATION),
    (errors.BackupError, CONFIGURATION),
    (errors.NotInitialisedError, DATABASE),
    (errors.KeyTablesError, DATABASE),
    (errors.StorageError, DATABASE),
    (errors.UnknownDeviceError, CONFLICT),
    (errors.UnknownAccessKeyError, CONFLICT),
    (errors.UnknownFlagError, CONFLICT),
    (errors.BatchInterruptedError, DATABASE),
    (errors.PoolFullError, DATABASE),
    (errors.ShuttingDownError, DATABASE),
)


def exit_code(error: errors.BirthmarkError) -> int:
    """Return the exit code for an error; what is not in the table is a refusal."""
    for error_type, code in _CODES:
        if isinstance(error, error_type):
            return code
    return REFUSED
