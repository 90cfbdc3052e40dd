"""The settings of the authority: one table, from which everything else about settings is made.

`settings.py` is the table. `loading.py` merges flags, environment and file into it. `setting.py`
describes one setting, and `values.py` checks values. The command line builds its flags and help
from the table, and `make reference-pages` builds the table of docs/settings.md.
"""

from birthmark_sma.config.choices import (
    AbuseMode,
    Access,
    Disclosure,
    LogFormat,
    LogLevel,
    ReplayPolicy,
)
from birthmark_sma.config.loading import (
    CONFIG_FILE_VARIABLE,
    DEFAULT_CONFIG_FILE,
    load_new_secret,
    load_settings,
)
from birthmark_sma.config.setting import (
    Setting,
    describe_default,
    environment_variable,
    find_setting,
)
from birthmark_sma.config.settings import (
    PROTOTYPE,
    SANDBOX,
    SECRET_FIELDS,
    NewSecret,
    Settings,
)

__all__ = [
    "CONFIG_FILE_VARIABLE",
    "DEFAULT_CONFIG_FILE",
    "PROTOTYPE",
    "SANDBOX",
    "SECRET_FIELDS",
    "AbuseMode",
    "Access",
    "Disclosure",
    "LogFormat",
    "LogLevel",
    "NewSecret",
    "ReplayPolicy",
    "Setting",
    "Settings",
    "describe_default",
    "environment_variable",
    "find_setting",
    "load_new_secret",
    "load_settings",
]
