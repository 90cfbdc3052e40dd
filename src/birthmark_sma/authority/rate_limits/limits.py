"""The kinds of units that are limited, their names in messages, and the default limits.

Routes name the kind that a request consumes, and `limiter` counts it. This module must not import
anything that counts.
"""

from collections.abc import Mapping
from enum import StrEnum

from birthmark_sma.authority.access.store import ROLES, KeyScope


class Kind(StrEnum):
    """The kind of units that a limit counts. ADMIN counts the requests of all roles.

    The caller of a `renew` is the device itself (`RenewingDevice`).
    """

    PROVISION = "provision"
    VALIDATE = "validate"
    ADMIN = "admin"
    FAILURES = "failures"
    GUESSES = "guesses"
    OCSP = "ocsp"
    RENEW = "renew"


DEFAULTS: Mapping[Kind, str] = {
    Kind.PROVISION: "600/minute",
    Kind.VALIDATE: "300000/minute",
    Kind.ADMIN: "600/minute",
    Kind.FAILURES: "6000/minute",
    Kind.GUESSES: "60/minute",
    Kind.OCSP: "6000/minute",
    Kind.RENEW: "10/hour; 20/day",
}
"""The limits if access is by keys, or if other machines can reach the server.

`validate` is 5,000 tokens a second on average, about as much as one process can validate.
`failures` is one in fifty of these: an aggregation server does not forge the tokens that it passes
on. `ocsp` is 100 signatures a second, of about 0.1 ms each. `renew` is for one device, which renews
once in months, and a few times more if an operator orders that. The other limits are far above what
people and probes need."""

KINDS_OF_SCOPES: Mapping[KeyScope, Kind] = {
    KeyScope.PROVISION: Kind.PROVISION,
    KeyScope.VALIDATE: Kind.VALIDATE,
    **dict.fromkeys(ROLES, Kind.ADMIN),
}
"""The kind that the own rate of an access key replaces, by the scope of the key."""

UNITS = {
    Kind.PROVISION: "devices",
    Kind.VALIDATE: "camera tokens",
    Kind.ADMIN: "requests",
    Kind.FAILURES: "camera tokens that FAIL",
    Kind.GUESSES: "wrong credentials",
    Kind.OCSP: "OCSP requests that need a signature of their own",
    Kind.RENEW: "renewals of this device",
}
"""The words for units of a kind in messages."""
