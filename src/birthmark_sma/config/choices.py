"""The values of settings that are a choice: `settings.py` names these types.

The values are public: they appear in files, environments and flags.
"""

from enum import StrEnum


class Access(StrEnum):
    """Authentication of callers: none (`open`), or access keys (`keys`)."""

    OPEN = "open"
    KEYS = "keys"


class Disclosure(StrEnum):
    """The information about the device in the response to a PASS."""

    SERIAL = "serial"
    FAMILY = "family"
    NONE = "none"


class AbuseMode(StrEnum):
    """The action for a device far above its usual rate."""

    OFF = "off"
    SHADOW = "shadow"
    FLAG = "flag"
    SUSPEND = "suspend"


class ReplayPolicy(StrEnum):
    """The treatment of a camera token that the same caller submits again."""

    RECORD = "record"
    REFUSE_SAME_CALLER = "refuse-same-caller"


class LogFormat(StrEnum):
    """The format of the log."""

    AUTO = "auto"
    JSON = "json"
    PRETTY = "pretty"


class LogLevel(StrEnum):
    """The lowest severity that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
