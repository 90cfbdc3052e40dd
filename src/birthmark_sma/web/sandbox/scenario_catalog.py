"""The catalog of sandbox scenarios, and the parser of their names. Pure: no I/O.

`fault_injection` plays the scenarios. A request names a scenario in one of three ways:
- by the header HEADER, in any request. It has priority over the others;
- by the table id of a camera token. The key index is then the scenario's number;
- by the serial of the device in a provisioning request.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from birthmark_sma.authority.background.sandbox_expiry import LIFETIME
from birthmark_sma.authority.sandbox.verdicts import (
    ALREADY_SUBMITTED,
    FIRST_SCRIPTED_TABLE,
    VERDICTS,
)
from birthmark_sma.protocol.verdict import Reason

HEADER = "Birthmark-Sandbox-Scenario"
"""Request header that names a scenario. The response repeats the name of the played scenario."""
MARK = "Birthmark-Sandbox"
MARKED = f"not-production; data-kept={int(LIFETIME.total_seconds())}"
"""Value of the header MARK, which every response of a sandbox has."""

SERIAL_PREFIX = "SANDBOX-"
_FORM = re.compile(r"([a-z-]{1,40})(?:; *([a-z]{1,10})=(-?[0-9]{1,6}))?")


class Endpoint(StrEnum):
    """The requests that a scenario applies to."""

    ANYWHERE = "every request"
    VALIDATION = "validation"
    PROVISIONING = "provisioning"
    TIMED = "provisioning, validation and the revocation list"


@dataclass(frozen=True, slots=True)
class Number:
    """The numeric parameter of a scenario: name, default, and bounds (both included)."""

    name: str
    default: int
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fault or verdict that a request can name."""

    name: str
    what: str
    place: Endpoint = Endpoint.ANYWHERE
    number: Number | None = None
    table_id: int | None = None
    """The table id that names the scenario, or None."""
    serials: bool = False
    """True if a device serial can name the scenario."""

    @property
    def serial(self) -> str | None:
        """The device serial that names the scenario, or None.

        It also works as a prefix, followed by "-" and any text.
        """
        return SERIAL_PREFIX + self.name.upper() if self.serials else None

    def as_json(self) -> dict[str, Any]:
        """Return the description of the scenario for GET /sandbox."""
        number = self.number
        header = self.name if number is None else f"{self.name}; {number.name}={number.default}"
        told: dict[str, Any] = {
            "name": self.name,
            "what": self.what,
            "for": self.place.value,
            "header": f"{HEADER}: {header}",
        }
        if self.table_id is not None:
            told["table_id"] = self.table_id
        if self.serial is not None:
            told["device_serial"] = f"{self.serial} or {self.serial}-..."
        if number is not None:
            told["number"] = {
                "name": number.name,
                "default": number.default,
                "least": number.least,
                "most": number.most,
            }
        return told


@dataclass(frozen=True, slots=True)
class Asked:
    """A scenario that a request names, with its number (0 if it takes none)."""

    scenario: Scenario
    number: int = 0


class UnknownScenarioError(Exception):
    """The header names no scenario, or one for other requests. The message is for the client."""


def _verdict(reason: Reason, name: str, what: str) -> Scenario:
    [table_id] = [number for number, given in VERDICTS.items() if given is reason]
    return Scenario(name, what, Endpoint.VALIDATION, table_id=table_id)


_FAIL = "200 FAIL, as for any other reason; the audit trail has "
_RETRY_AFTER = Number("seconds", 1, 1, 3_600)

ALL = (
    _verdict(Reason.GENUINE, "pass", "200 PASS, which names no device"),
    _verdict(Reason.NOT_OPENED, "fail-not-opened", f"{_FAIL}not_opened"),
    _verdict(Reason.UNKNOWN_DEVICE, "fail-unknown-device", f"{_FAIL}unknown_device"),
    _verdict(Reason.TABLE_NOT_ASSIGNED, "fail-table-not-assigned", f"{_FAIL}table_not_assigned"),
    _verdict(Reason.DEVICE_SUSPENDED, "fail-device-suspended", f"{_FAIL}device_suspended"),
    _verdict(Reason.DEVICE_REVOKED, "fail-device-revoked", f"{_FAIL}device_revoked"),
    _verdict(Reason.DEVICE_RETIRED, "fail-device-retired", f"{_FAIL}device_retired"),
    _verdict(Reason.OTHER_DERIVATION, "fail-other-derivation", f"{_FAIL}other_derivation"),
    _verdict(Reason.OPENED_TWICE, "fail-opened-twice", f"{_FAIL}opened_twice"),
    _verdict(Reason.OTHER_EPOCH, "fail-other-epoch", f"{_FAIL}other_epoch"),
    _verdict(Reason.EARLIER_EPOCH, "fail-earlier-epoch", f"{_FAIL}earlier_epoch"),
    _verdict(Reason.UNKNOWN_TABLE, "unknown-table", "400 Unknown table ID, with FAIL"),
    _verdict(Reason.UNKNOWN_KEY_INDEX, "unknown-key-index", "400 Unknown key index, with FAIL"),
    Scenario("unauthenticated", "401: the access key is not known", table_id=9_401, serials=True),
    Scenario("forbidden", "403: the key is good for something else", table_id=9_403, serials=True),
    Scenario(
        "already-submitted",
        "409: this caller had the camera token validated before; no verdict. In a batch, an element"
        " with an error and no verdict",
        Endpoint.VALIDATION,
        table_id=ALREADY_SUBMITTED,
    ),
    Scenario(
        "conflict", "409: the serial is registered already", Endpoint.PROVISIONING, serials=True
    ),
    Scenario(
        "rate-limited",
        "429 with Retry-After",
        number=_RETRY_AFTER,
        table_id=9_429,
        serials=True,
    ),
    Scenario("internal-error", "500", table_id=9_500, serials=True),
    Scenario(
        "unavailable", "503 with Retry-After", number=_RETRY_AFTER, table_id=9_503, serials=True
    ),
    Scenario(
        "slow",
        "the true answer, after so many seconds",
        number=Number("seconds", 5, 1, 60),
        table_id=9_900,
        serials=True,
    ),
    Scenario("cut", "the connection is closed without an answer", table_id=9_901, serials=True),
    Scenario("reset", "the connection is reset (RST)", table_id=9_902, serials=True),
    Scenario(
        "truncated",
        "done, and the connection is closed in the middle of the answer",
        table_id=9_903,
        serials=True,
    ),
    Scenario(
        "garbage",
        "200 with the login page of somebody's Wi-Fi",
        table_id=9_904,
        serials=True,
    ),
    Scenario("redirected", "302 to somewhere else", table_id=9_905, serials=True),
    Scenario(
        "recovers",
        "503 the first so many times that this very request comes, and then the true answer; after"
        " which it begins anew",
        number=Number("times", 1, 1, 10),
        table_id=9_906,
        serials=True,
    ),
    Scenario(
        "lost",
        "done, and the connection is closed without an answer, the first so many times that this"
        " very request comes, and then the true answer (of provisioning, with its Idempotency-Key);"
        " after which it begins anew",
        number=Number("times", 1, 1, 10),
        table_id=9_907,
        serials=True,
    ),
    Scenario(
        "clock",
        "done as if so many days had passed, or fewer than none: what is certified then begins"
        " then, the answer to a validation is dated then, the revocation list is that old",
        Endpoint.TIMED,
        number=Number("days", -740, -990, 800),
    ),
    Scenario(
        "expired",
        "provisioned, with a certificate that has ended",
        Endpoint.PROVISIONING,
        serials=True,
    ),
    Scenario(
        "not-yet-valid",
        "provisioned, with a certificate that begins in a week",
        Endpoint.PROVISIONING,
        serials=True,
    ),
    Scenario(
        "revoked",
        "provisioned, and revoked at once: its certificate is on the revocation list, its camera"
        " tokens FAIL",
        Endpoint.PROVISIONING,
        serials=True,
    ),
    Scenario(
        "suspended",
        "provisioned, and suspended at once: its certificate is on the revocation list until it is"
        " reinstated, its camera tokens FAIL",
        Endpoint.PROVISIONING,
        serials=True,
    ),
    Scenario(
        "retired",
        "provisioned, and retired at once: its certificate is on the revocation list, its camera"
        " tokens FAIL",
        Endpoint.PROVISIONING,
        serials=True,
    ),
)
BY_NAME: Mapping[str, Scenario] = {each.name: each for each in ALL}
BY_TABLE: Mapping[int, Scenario] = {
    each.table_id: each for each in ALL if each.table_id is not None
}
# Longest first: a name has priority over a shorter name that it begins with.
_BY_SERIAL = sorted(
    ((each.serial, each) for each in ALL if each.serial is not None),
    key=lambda entry: len(entry[0]),
    reverse=True,
)


def by_header(text: str) -> Asked:
    """Return the scenario that a header value names. Raises UnknownScenarioError."""
    form = _FORM.fullmatch(text.strip())
    scenario = None if form is None else BY_NAME.get(form[1])
    if form is None or scenario is None:
        raise UnknownScenarioError(
            f"{HEADER} names no scenario, as `rate-limited` or `rate-limited; seconds=3` do."
            " GET /sandbox lists all."
        )
    if form[2] is None:
        return _asked(scenario)
    number = scenario.number
    if number is None or form[2] != number.name:
        takes = "no number" if number is None else number.name
        raise UnknownScenarioError(f"The scenario {scenario.name} takes {takes}, not {form[2]}.")
    if not number.least <= int(form[3]) <= number.most:
        raise UnknownScenarioError(
            f"{number.name} of {scenario.name} goes from {number.least} to {number.most}."
        )
    return Asked(scenario, int(form[3]))


def by_token(token: object) -> Asked | None:
    """Return the scenario that a camera token (parsed JSON) names by its table id, or None.

    The key index is the scenario's number, limited to its bounds; 0 means the default.
    """
    if not isinstance(token, dict):
        return None
    table_id, index = token.get("table_id"), token.get("key_index")
    # Not isinstance(): JSON's true is a bool, and bool is a subclass of int.
    if type(table_id) is not int or type(index) is not int or table_id < FIRST_SCRIPTED_TABLE:
        return None
    scenario = BY_TABLE.get(table_id)
    if scenario is None or scenario.number is None or index <= 0:
        return None if scenario is None else _asked(scenario)
    return Asked(scenario, min(max(index, scenario.number.least), scenario.number.most))


def by_serial(device_serial: object) -> Asked | None:
    """Return the scenario that the device serial of a provisioning request names, or None."""
    if not isinstance(device_serial, str) or not device_serial.startswith(SERIAL_PREFIX):
        return None
    for serial, scenario in _BY_SERIAL:
        if device_serial == serial or device_serial.startswith(f"{serial}-"):
            return _asked(scenario)
    return None


def _asked(scenario: Scenario) -> Asked:
    return Asked(scenario, 0 if scenario.number is None else scenario.number.default)
