"""The root of the tree of exceptions, and the errors of settings."""


class BirthmarkError(Exception):
    """The base class of all errors that this package raises deliberately."""


class ConfigurationError(BirthmarkError):
    """A setting is missing, unknown or invalid."""


class RateRefusedError(ConfigurationError, ValueError):
    """A text is not a valid rate limit."""
