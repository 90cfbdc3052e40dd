"""Read the forms of the dashboard's pages, and check that they come from these pages.

The sign-in page and `actions` call it. A form that changes anything has the hidden field `form`
with a token of the session (cross-site request forgery, CSRF): call `read_session_form` for it, and
never `read_form`.
"""

from urllib.parse import parse_qsl

from starlette.datastructures import QueryParams

from birthmark_sma.authority.access.sessions import is_form_token
from birthmark_sma.web.problems import RequestError
from birthmark_sma.web.server_state import ApiRequest

_TYPE = "application/x-www-form-urlencoded"
_BYTES = 4_096
_FIELDS = 16
# 50 serials of 64 characters, each of up to 4 bytes that are percent-encoded, and other fields.
_LARGE_BYTES = 65_536
_LARGE_FIELDS = 96


async def read_form(
    request: ApiRequest, *, most_bytes: int = _BYTES, most_fields: int = _FIELDS
) -> QueryParams:
    """Return the fields of a form. Of too many fields, none is returned.

    Raises RequestError for another media type or a larger body.
    """
    types = request.headers.getlist("content-type")
    if [each.partition(";")[0].strip().lower() for each in types] != [_TYPE]:
        raise RequestError("unsupported-media-type", f"Send the form as {_TYPE}.")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most_bytes:
            raise RequestError("body-too-large", f"A form here has at most {most_bytes} bytes.")
    return parse_fields(bytes(body), most_fields)


async def read_session_form(request: ApiRequest) -> QueryParams:
    """Return the fields of a form of up to 64 KiB that a page has made for this session.

    Raises RequestError if it comes from elsewhere, and as `read_form` does.
    """
    form = await read_form(request, most_bytes=_LARGE_BYTES, most_fields=_LARGE_FIELDS)
    token = request.context.session_token
    if token is None or not is_form_token(form.get("form", ""), token):
        raise RequestError(
            "foreign-form",
            "This form does not come from the dashboard, or from an earlier session. Nothing"
            " changed. Open the page again.",
        )
    return form


def parse_fields(encoded: bytes, most: int = _FIELDS) -> QueryParams:
    """Return the fields of a form or a query; none if there are more than `most`."""
    try:
        text = encoded.decode("utf-8", "replace")
        return QueryParams(parse_qsl(text, keep_blank_values=True, max_num_fields=most))
    except ValueError:  # not a form or link of the dashboard
        return QueryParams()
