"""Turn the refusals of a server into the errors of the same refusals on a database. PURE.

`transport` calls it for each response that has another status than 200. A text of the server is
printed on a terminal, so no control character of it may remain.
"""

import json
from typing import Any

from birthmark_sma.device.bounded_http import Answer, retry_after
from birthmark_sma.errors import (
    AuthorityAwayError,
    BirthmarkError,
    ConfigurationError,
    RefusedByServerError,
)

_MOST_CHARACTERS = 2_000  # of a text of the server
_TYPE = "urn:birthmark:problem:"
_PASSING = frozenset({429, 502, 503, 504})
_NOT_HERE = frozenset({"not-found", "method-not-allowed"})


def is_passing(status: int) -> bool:
    """Return True for a status that the same request may not get later: too many, unavailable."""
    return status in _PASSING


def explain_refusal(url: str, path: str, answer: Answer) -> BirthmarkError:
    """Return the error of a response whose status is not 200.

    `url` is that of the server and `path` that of the request.
    """
    problem = _problem(answer)
    if problem is None:
        return _explain_stranger(url, answer)
    slug = str(problem["type"]).removeprefix(_TYPE)
    if slug in _NOT_HERE:
        return ConfigurationError(
            f"{url} has nothing at {path}. Check that the URL ends with the server's name or port."
            " If it does, the server runs another version: use its version of sma"
        )
    detail = _printable(str(problem["detail"]))
    if answer.status == 401:
        detail += " Set SMA_SERVER_KEY, or give --server-key-file."
    if answer.status in _PASSING and (seconds := retry_after(answer)) is not None:
        detail += f" The server asks to wait {seconds:.0f} seconds."
    return RefusedByServerError(detail, status=answer.status, same_as=_find_class(slug))


def _explain_stranger(url: str, answer: Answer) -> BirthmarkError:
    """Return the error of a response of a proxy or of another program: no problem document."""
    if answer.status in _PASSING:
        return AuthorityAwayError(f"{url} answers with the status {answer.status}.")
    if 300 <= answer.status < 400:
        return ConfigurationError(
            f"{url} redirects to another address. Give that address as the server's"
        )
    return ConfigurationError(
        f"{url} answers with the status {answer.status}, and not as a Simulated Manufacturer"
        " Authority does. Check the URL"
    )


def _problem(answer: Answer) -> dict[str, Any] | None:
    """Return the problem document (RFC 9457) of a response, or None."""
    try:
        found = json.loads(answer.content)
    except (ValueError, RecursionError):
        return None
    is_problem = isinstance(found, dict) and str(found.get("type", "")).startswith(_TYPE)
    return found if is_problem and isinstance(found.get("detail"), str) else None


def _find_class(slug: str) -> type[BirthmarkError] | None:
    """Return the class of errors that has this problem, or None: it may be of another version."""
    from birthmark_sma.web.problems import TABLE

    found = next((each.error for each in TABLE if each.slug == slug), None)
    return found if found is not None and issubclass(found, BirthmarkError) else None


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text[:_MOST_CHARACTERS])
