"""ApiRequest sets what Starlette's constructor sets, without running it."""

from typing import Any, cast

from starlette.requests import Request, empty_receive

from birthmark_sma.web.server_state import ApiRequest
from tests.support.http.contexts import make_context


def test_the_attributes_of_starlettes_constructor() -> None:
    """`_send` is for HTTP/2 server push, which no endpoint uses."""
    server = cast("Any", None)
    ours: Request = ApiRequest({"type": "http"}, empty_receive, make_context(), server)
    theirs = vars(Request({"type": "http"}, empty_receive))
    del theirs["_send"]
    assert {name: getattr(ours, name) for name in theirs} == theirs
