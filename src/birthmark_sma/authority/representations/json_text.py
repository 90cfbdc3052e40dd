"""Write JSON as the command line and the administration API do.

Times are in UTC (RFC 3339), days in ISO 8601. A type that JSON does not have is an error, so that
nothing is shown by accident.
"""

import json
from datetime import date
from typing import Any


def as_json_text(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON; on one line without `indent`."""
    return json.dumps(value, indent=indent, ensure_ascii=False, default=_iso)


def _iso(value: date) -> str:
    return value.isoformat().replace("+00:00", "Z")
