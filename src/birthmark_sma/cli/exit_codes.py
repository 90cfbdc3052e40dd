"""Exit codes of `sma`, so that scripts can distinguish causes of failure.

`main.run` and the commands use them. The codes are public: a code never changes its meaning.
`sma doctor` has its own codes, because monitors expect those.
"""

from birthmark_sma import errors

OK = 0
FAILED = 1
"""The command ran, and the result is negative: FAIL for a token, or an unexpected demo response."""
USAGE = 2
CONFIGURATION = 3
"""A setting, secret or file is missing or wrong."""
DATABASE = 4
"""The database is unreachable, empty or at another schema, or the server does not answer."""
CONFLICT = 5
"""The request contradicts what is registered, for example a serial that is already in use."""
REFUSED = 6
"""A key, serial, token or batch line was refused."""

# The first row with a matching class gives the code. So a subclass must stand before its base class
# if it has another code.
_CODES: tuple[tuple[int, tuple[type[errors.BirthmarkError], ...]], ...] = (
    (CONFLICT, (errors.AlreadyInitialisedError, errors.ConflictError, errors.RotationError)),
    (CONFLICT, (errors.TableRotationError,)),
    (CONFLICT, (errors.UnknownDeviceError, errors.UnknownAccessKeyError, errors.UnknownFlagError)),
    (CONFLICT, (errors.RenewalOrderError, errors.UnknownCaError, errors.UnknownValidationError)),
    (CONFLICT, (errors.UnknownActError, errors.UnknownKeyTableError)),
    (CONFIGURATION, (errors.ConfigurationError, errors.WrongSecretError, errors.PrivateFileError)),
    (
        CONFIGURATION,
        (errors.KeyEncryptionKeyChangedError, errors.BatchFileError, errors.BackupError),
    ),
    (DATABASE, (errors.NotInitialisedError, errors.KeyTablesError, errors.StorageError)),
    (DATABASE, (errors.BatchInterruptedError, errors.PoolFullError, errors.ShuttingDownError)),
    (DATABASE, (errors.AuthorityAwayError, errors.IssuerChangedError)),
    (DATABASE, (errors.KeyTablesRotatedError,)),
    (CONFIGURATION, (errors.MoveError,)),
)


_CODES_OF_STATUS = {409: CONFLICT, 412: CONFLICT, 503: DATABASE}


def exit_code(error: errors.BirthmarkError) -> int:
    """Return the exit code of an error, or REFUSED if no table lists it.

    A refusal by a server has the code that the same error has on a database.
    """
    kind = type(error)
    if isinstance(error, errors.RefusedByServerError):
        if error.same_as is None:
            return _CODES_OF_STATUS.get(error.status, REFUSED)
        kind = error.same_as
    return next((code for code, types in _CODES if issubclass(kind, types)), REFUSED)
