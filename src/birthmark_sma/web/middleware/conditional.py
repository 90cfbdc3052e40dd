"""Conditional requests (RFC 9110, section 13)."""

from starlette.requests import Request


def is_known(request: Request, etag: str) -> bool:
    """Say whether the sender has the answer with this entity tag: then 304 is enough."""
    known = request.headers.get("if-none-match", "")
    tags = [tag.strip().removeprefix("W/") for tag in known.split(",")]
    return etag in tags or tags == ["*"]
