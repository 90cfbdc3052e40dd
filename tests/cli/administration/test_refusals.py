"""What a command says and how it ends for each refusal of a server."""

import json

import httpx2
import pytest

from birthmark_sma import errors
from birthmark_sma.cli.administration.refusals import explain_refusal
from birthmark_sma.cli.exit_codes import exit_code
from birthmark_sma.device.bounded_http import Answer

URL = "https://sma.example.org"


def problem(status: int, slug: str, detail: str = "So it is.", **headers: str) -> Answer:
    """Return a problem document as a server sends it."""
    document = {"type": f"urn:birthmark:problem:{slug}", "detail": detail, "status": status}
    return Answer(status, httpx2.Headers(headers), json.dumps(document).encode())


@pytest.mark.parametrize(
    ("status", "slug", "code"),
    [
        (401, "unauthenticated", 6),
        (403, "insufficient-scope", 6),
        (404, "not-found", 3),
        (405, "method-not-allowed", 3),
        (404, "unknown-device", 5),
        (404, "unknown-access-key", 5),
        (404, "unknown-flag", 5),
        (404, "unknown-act", 5),
        (404, "unknown-validation", 5),
        (409, "device-status", 5),
        (409, "access-key-name", 5),
        (409, "of-a-later-version", 5),
        (412, "precondition-failed", 5),
        (422, "access-key-refused", 6),
        (422, "invalid-request", 6),
        (422, "idempotency-key-reused", 6),
        (429, "rate-limited", 6),
        (500, "internal-error", 6),
        (503, "database-unavailable", 4),
        (503, "pool-full", 4),
        (503, "of-a-later-version", 4),
    ],
)
def test_a_problem_has_the_exit_code_of_the_same_error_on_a_database(
    status: int, slug: str, code: int
) -> None:
    error = explain_refusal(URL, "/api/v1/devices", problem(status, slug))
    assert exit_code(error) == code
    if code != 3:
        assert str(error).startswith("So it is.")


def test_a_missing_endpoint_is_another_version() -> None:
    error = explain_refusal(URL, "/api/v1/acts", problem(404, "not-found"))
    assert "/api/v1/acts" in str(error)
    assert "version" in str(error)


def test_a_wrong_key_tells_where_keys_come_from() -> None:
    error = explain_refusal(URL, "/", problem(401, "unauthenticated"))
    assert "SMA_SERVER_KEY" in str(error)


def test_a_wait_is_told() -> None:
    answer = problem(429, "rate-limited", **{"Retry-After": "3600"})
    assert "3600 seconds" in str(explain_refusal(URL, "/", answer))


def test_a_text_of_the_server_cannot_control_the_terminal() -> None:
    """Threat: a server that is not the operator's own writes escape sequences."""
    answer = problem(409, "device-status", "\x1b]0;owned\x07\nsma: all is well" + "x" * 100_000)
    told = str(explain_refusal(URL, "/", answer))
    assert told.isprintable()
    assert len(told) < 3_000


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, b"<html>Not here</html>", errors.ConfigurationError),
        (301, b"", errors.ConfigurationError),
        (401, b'{"error": "login"}', errors.ConfigurationError),
        (500, b"[" * 100_000, errors.ConfigurationError),
        (400, b'{"type": "urn:birthmark:problem:x", "detail": 5}', errors.ConfigurationError),
        (502, b"<html>Bad gateway</html>", errors.AuthorityAwayError),
        (503, b"", errors.AuthorityAwayError),
    ],
)
def test_another_program_is_told_from_an_authority(
    status: int, body: bytes, kind: type[errors.BirthmarkError]
) -> None:
    error = explain_refusal(URL, "/", Answer(status, httpx2.Headers(), body))
    assert type(error) is kind
    assert URL in str(error)
