"""Serve the scripts and styles of the dashboard, all of which are part of the package.

A page names each file with a digest of its content (`?v=...`). So a browser may cache a file
forever and still gets a changed file at once. This module never serves a path outside `static/`,
because it looks each name up among the files that it has read.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from birthmark_sma.web.api.pki.files import is_known
from birthmark_sma.web.routes import DASHBOARD_FILES

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOR_GOOD = "public, max-age=31536000, immutable"
_ASK_AGAIN = "public, no-cache"
_DIGEST_CHARACTERS = 16


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file and the digest of its content."""

    content: bytes
    media_type: str
    digest: str


@cache
def static_files() -> Mapping[str, StaticFile]:
    """Return all files by relative path, such as `vendor/htmx/htmx.min.js`. Reads them once."""
    found = {}
    for name, place in _all_below(files(__package__) / "static"):
        media_type = _MEDIA_TYPES.get("." + name.rpartition(".")[2])
        if media_type is not None:
            content = place.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:_DIGEST_CHARACTERS]
            found[name] = StaticFile(content, media_type, digest)
    return found


def static_url(name: str) -> str:
    """Return the URL of a file with its digest. Raises KeyError if there is no such file."""
    return f"{DASHBOARD_FILES.path}/{name}?v={static_files()[name].digest}"


async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond with a file, or 304 if the browser has it.

    Raises HTTPException (404) if there is no such file. The lookup in a dict prevents path
    traversal.
    """
    request = Request(scope)
    found = static_files().get(scope["path"].removeprefix(DASHBOARD_FILES.path + "/"))
    if found is None:
        raise HTTPException(404)
    is_named = scope["query_string"] == b"v=" + found.digest.encode()
    headers = {
        "Cache-Control": _FOR_GOOD if is_named else _ASK_AGAIN,
        "ETag": f'"{found.digest}"',
    }
    if is_known(request, headers["ETag"]):
        await Response(status_code=304, headers=headers)(scope, receive, send)
        return
    await Response(found.content, headers=headers, media_type=found.media_type)(
        scope, receive, send
    )


def _all_below(folder: Traversable, before: str = "") -> Iterator[tuple[str, Traversable]]:
    for each in folder.iterdir():
        if each.is_dir():
            yield from _all_below(each, f"{before}{each.name}/")
        else:
            yield before + each.name, each
