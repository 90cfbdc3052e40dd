"""Conditional requests (RFC 9110, section 13)."""

from starlette.requests import Request


def is_known(request: Request, etag: str) -> bool:
    """Return True if If-None-Match names `etag`, so that a 304 is enough.

    Tags are compared weakly, and `*` matches any (RFC 9110, section 13.1.2).
    """
    known = request.headers.get("if-none-match", "")
    tags = [tag.strip().removeprefix("W/") for tag in known.split(",")]
    return etag in tags or tags == ["*"]
