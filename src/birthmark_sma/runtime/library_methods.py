"""Check at the start that a library still has the methods that this package builds on.

`web.transport.uvicorn_config` and `storage.postgresql_driver` override or call methods that their
libraries may rename in any minor version. An overridden method that is no longer called would be
passed over in silence: a limit would be gone, or a commit would be less than durable.
"""

from collections.abc import Iterable
from importlib.metadata import version

from birthmark_sma import HOW_TO_INSTALL
from birthmark_sma.errors import ConfigurationError


def require_methods(library: str, owner: type, names: Iterable[str]) -> None:
    """Raise ConfigurationError if a class of a library lacks one of these methods."""
    missing = [name for name in names if not callable(getattr(owner, name, None))]
    if missing:
        raise ConfigurationError(
            f"{library} {version(library)} has no {owner.__name__}.{missing[0]}, which this program"
            f" needs. Install the version that it is made for. {HOW_TO_INSTALL}"
        )
