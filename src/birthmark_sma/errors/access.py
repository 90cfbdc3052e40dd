"""Errors of callers: authentication, scopes and access keys."""

from birthmark_sma.errors.authority import AuthorityError, ConflictError


class AccessError(AuthorityError):
    """The caller is not authorised. Nothing was done."""


class UnauthenticatedError(AccessError):
    """The request has no credential, or one that is not valid (any more)."""


class InsufficientScopeError(AccessError):
    """The access key is valid, but its scope does not include this request."""


class EnrolmentRefusedError(AccessError):
    """The access key does not allow this device to be provisioned, or no more devices."""


class RenewalRefusedError(AccessError):
    """A certificate cannot be renewed, or the request does not prove to have its key."""


class RenewalTimeRefusedError(AccessError):
    """The time in a request to renew a certificate is too far from the authority's."""


class DeviceNotActiveError(AccessError):
    """The device is suspended, revoked or retired, so its certificate cannot be renewed."""


class AccessKeyRefusedError(AuthorityError):
    """An access key cannot be created with these terms."""


class AccessKeyNameError(ConflictError):
    """Another valid access key has this name or this certificate."""


class UnknownAccessKeyError(AuthorityError):
    """No valid access key has this name or id."""
