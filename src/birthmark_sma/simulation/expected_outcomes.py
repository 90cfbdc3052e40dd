"""The cases of a simulation and the right outcomes of each. Pure.

An aggregation server gets one `Outcome` for each bundle. Only this module decides which outcomes
are right. It must derive them from the promises of the protocol and from the policies in
`Environment`, never from an observed outcome.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """The result that an aggregation server gets for a bundle."""

    PASS = "PASS"  # noqa: S105  a verdict, not a password
    FAIL = "FAIL"
    MALFORMED = "malformed"
    WRONG_TIME = "wrong time"
    WRONG_CERTIFICATE = "wrong certificate"
    WRONG_SIGNATURE = "wrong signature"
    DUPLICATE = "duplicate"
    """The server has received the identical bundle before."""
    REPORTED = "reported stolen"
    """The device is on the aggregation server's own list of stolen devices."""
    ALREADY_SUBMITTED = "already submitted"
    """The authority gave no verdict, because it answers each caller once for each token."""
    UNDECIDED = "undecided"
    """There was no verdict in time. The bundle counts as lost."""


class Case(StrEnum):
    """The treatment of a picture. WHAT describes each case."""

    GENUINE = "genuine"
    TAMPERED_CIPHERTEXT = "tampered ciphertext"
    TAMPERED_TAG = "tampered tag"
    TAMPERED_NONCE = "tampered nonce"
    TAMPERED_TABLE_ID = "tampered table id"
    TAMPERED_KEY_INDEX = "tampered key index"
    UNKNOWN_TABLE = "unknown table"
    UNKNOWN_KEY_INDEX = "unknown key index"
    WRONG_NUC_HASH = "wrong NUC hash"
    FORGED_SIGNATURE = "forged signature"
    ALTERED_BUNDLE = "altered bundle"
    REPLAYED_BUNDLE = "replayed bundle"
    REUSED_CAMERA_TOKEN = "reused camera token"  # noqa: S105  a name
    BORROWED_CAMERA_TOKEN = "borrowed camera token"  # noqa: S105  a name
    CLONE_OTHER_SENSOR = "clone, other sensor"
    CLONE_SAME_SENSOR = "clone, same sensor"
    STOLEN = "stolen, not reported"
    BEING_REPORTED = "stolen, being reported"
    REPORTED = "stolen and reported"
    FAST_CLOCK = "clock far ahead"
    SLOW_CLOCK = "clock far behind"


TAMPERING = (
    Case.TAMPERED_CIPHERTEXT,
    Case.TAMPERED_TAG,
    Case.TAMPERED_NONCE,
    Case.TAMPERED_TABLE_ID,
    Case.TAMPERED_KEY_INDEX,
    Case.UNKNOWN_TABLE,
    Case.UNKNOWN_KEY_INDEX,
    Case.WRONG_NUC_HASH,
    Case.FORGED_SIGNATURE,
    Case.ALTERED_BUNDLE,
)
"""The cases that the rate `tampering` covers, each with the same frequency."""
CLONES = (Case.CLONE_OTHER_SENSOR, Case.CLONE_SAME_SENSOR)
REPLAYS = (Case.REPLAYED_BUNDLE, Case.REUSED_CAMERA_TOKEN, Case.BORROWED_CAMERA_TOKEN)
"""The cases that use the bundle of an earlier picture."""
BY_ONE_CAMERA = (Case.GENUINE, *TAMPERING, Case.REPLAYED_BUNDLE, Case.REUSED_CAMERA_TOKEN, *CLONES)
"""The cases that need only one camera with a right clock."""

WHAT: Mapping[Case, str] = {
    Case.GENUINE: "A camera's own picture, sent as it should be.",
    Case.TAMPERED_CIPHERTEXT: "One bit of the sealed NUC hash altered, then signed.",
    Case.TAMPERED_TAG: "One bit of the tag altered, then signed.",
    Case.TAMPERED_NONCE: "One bit of the nonce altered, then signed.",
    Case.TAMPERED_TABLE_ID: "The table id changed to another one, then signed.",
    Case.TAMPERED_KEY_INDEX: "The key index changed to another one, then signed.",
    Case.UNKNOWN_TABLE: "A table that no authority has, then signed.",
    Case.UNKNOWN_KEY_INDEX: "A key that no table has, then signed.",
    Case.WRONG_NUC_HASH: "Sealed by the device itself, but of a sensor that nobody registered.",
    Case.FORGED_SIGNATURE: "A genuine token and certificate, signed with the attacker's own key.",
    Case.ALTERED_BUNDLE: "Another picture put into a signed bundle.",
    Case.REPLAYED_BUNDLE: "A bundle that was sent before, sent again to the same servers.",
    Case.REUSED_CAMERA_TOKEN: "The device signs another picture with an earlier camera token.",
    Case.BORROWED_CAMERA_TOKEN: "A device signs a bundle with another device's camera token.",
    Case.CLONE_OTHER_SENSOR: "Keys, tables and certificate copied into a body with its own sensor.",
    Case.CLONE_SAME_SENSOR: "A whole copy: keys, tables, certificate, and the sensor's NUC hash.",
    Case.STOLEN: "A thief's picture, before the owner has reported the camera.",
    Case.BEING_REPORTED: "A thief's picture, judged while the report was on its way.",
    Case.REPORTED: "A thief's picture, after the camera was reported.",
    Case.FAST_CLOCK: "A camera whose clock is hours ahead or more.",
    Case.SLOW_CLOCK: "A camera whose clock shows a time before its certificate is valid.",
}


@dataclass(frozen=True, slots=True)
class Environment:
    """The policies on which right outcomes depend.

    `discloses_serials`: the authority tells all aggregation servers the device of a camera token.
    `answers_repeats`: a caller that submits a camera token again gets the verdict again.
    `reports_to_authority`: the authority suspends or revokes a stolen camera. Otherwise only the
    aggregation servers know about the theft.
    """

    discloses_serials: bool
    answers_repeats: bool
    reports_to_authority: bool


ASSUMED = Environment(discloses_serials=True, answers_repeats=True, reports_to_authority=False)
"""The policies to assume if no authority was probed."""

_ALWAYS: Mapping[Case, frozenset[Outcome]] = {
    Case.GENUINE: frozenset({Outcome.PASS}),
    **dict.fromkeys(TAMPERING, frozenset({Outcome.FAIL})),
    # After TAMPERING, which contains them: the aggregation server rejects these two by itself.
    Case.FORGED_SIGNATURE: frozenset({Outcome.WRONG_SIGNATURE}),
    Case.ALTERED_BUNDLE: frozenset({Outcome.WRONG_SIGNATURE}),
    Case.REPLAYED_BUNDLE: frozenset({Outcome.DUPLICATE}),
    Case.CLONE_OTHER_SENSOR: frozenset({Outcome.FAIL}),
    Case.CLONE_SAME_SENSOR: frozenset({Outcome.PASS}),
    Case.STOLEN: frozenset({Outcome.PASS}),
    Case.FAST_CLOCK: frozenset({Outcome.WRONG_TIME}),
    Case.SLOW_CLOCK: frozenset({Outcome.WRONG_CERTIFICATE}),
}


def right_endings(case: Case, there: Environment) -> frozenset[Outcome]:
    """Return the outcomes that the protocol promises for a case under these policies."""
    match case:
        case Case.REUSED_CAMERA_TOKEN:
            return frozenset({Outcome.PASS if there.answers_repeats else Outcome.ALREADY_SUBMITTED})
        case Case.BORROWED_CAMERA_TOKEN:
            if not there.answers_repeats:
                return frozenset({Outcome.ALREADY_SUBMITTED})
            return frozenset({Outcome.FAIL if there.discloses_serials else Outcome.PASS})
        case Case.REPORTED:
            return frozenset({Outcome.FAIL if there.reports_to_authority else Outcome.REPORTED})
        case Case.BEING_REPORTED:
            return right_endings(Case.STOLEN, there) | right_endings(Case.REPORTED, there)
        case _:
            return _ALWAYS[case]


_UNSEEN: Mapping[Case, str] = {
    Case.CLONE_SAME_SENSOR: (
        "The protocol cannot distinguish a whole copy of a device from the original: both"
        " have the same keys and NUC hash. The copy's pictures count towards the device's"
        " rate, which the authority watches."
    ),
    Case.STOLEN: (
        "A thief takes genuine pictures with a stolen camera. They pass until the theft is"
        " reported and the operator suspends or revokes the device."
    ),
    Case.REUSED_CAMERA_TOKEN: (
        "A camera token is not bound to a picture, so a device can sign another picture with"
        " the same token. The authority records it as a replay. The aggregation server gets"
        " PASS; it could remember the camera tokens that it has seen. An authority with"
        " SMA_REPLAY=refuse-same-caller gives no second verdict."
    ),
    Case.BORROWED_CAMERA_TOKEN: (
        "If the authority does not disclose serials, an aggregation server cannot see that a"
        " camera token comes from another device than the one that signed the bundle."
    ),
}


def undetectable_reason(case: Case, there: Environment) -> str | None:
    """Return a sentence about an attack that the protocol cannot detect, or None if it can."""
    if Outcome.PASS in right_endings(case, there):
        return _UNSEEN.get(case)
    return None
