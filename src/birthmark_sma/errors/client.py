"""Errors of the client of aggregation servers, raised to the calling program."""

from birthmark_sma.errors.base import BirthmarkError


class ClientMisuseError(BirthmarkError):
    """A client was used after it was closed or from another event loop, or got a time without zone.

    This is a bug of the calling program, and not a result for a bundle or a camera token.
    """


class TooManyPendingError(BirthmarkError):
    """The maximum number of bundles without a verdict is stored. This one was not added."""

    def __init__(self) -> None:
        super().__init__(
            "Too many bundles wait for a verdict: ask about those that are due, or allow more"
        )
