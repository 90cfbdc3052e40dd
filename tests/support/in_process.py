"""An HTTP client of an authority in the test's process, without a socket, with chosen faults.

It serves only POST /api/v1/devices/provision. The authority is real.
"""

from collections.abc import Callable
from typing import Any

import httpx2

from birthmark_sma.authority.authority import Authority
from birthmark_sma.errors import BirthmarkError, ConflictError, IdempotencyKeyReusedError
from birthmark_sma.web.api.models.provisioning import ProvisionRequest, ProvisionResponse

Fault = Callable[[httpx2.Request, Callable[[], httpx2.Response]], httpx2.Response]
"""Replaces a response. The second argument makes the real response, and may be called or not."""


class InProcess(httpx2.Client):
    """A client of an authority. Each request takes one of `faults`. `requests` lists them all."""

    def __init__(self, authority: Authority, *faults: Fault) -> None:
        self.faults = list(faults)
        self.requests: list[httpx2.Request] = []
        self._authority = authority
        super().__init__(transport=httpx2.MockTransport(self._handle))

    def _handle(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.requests.append(request)
        if self.faults:
            return self.faults.pop(0)(request, lambda: self._answer(request))
        return self._answer(request)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        asked = ProvisionRequest.model_validate_json(request.content)
        try:
            provisioned = self._authority.provisioner.provision_device(
                asked.provisioning_request(request.headers["Idempotency-Key"], None)
            )
        except ConflictError as error:
            return problem(409, "device-already-provisioned", str(error))
        except IdempotencyKeyReusedError as error:
            return problem(422, "idempotency-key-reused", str(error))
        except BirthmarkError as error:
            return problem(422, "refused", str(error))
        answer = ProvisionResponse.of(provisioned)
        return httpx2.Response(200, json=answer.model_dump(exclude_none=True))


def problem(status: int, kind: str, detail: str, **headers: Any) -> httpx2.Response:
    """Return a problem document like those of the authority."""
    body = {"type": f"urn:birthmark:problem:{kind}", "status": status, "detail": detail}
    return httpx2.Response(status, json=body, headers=headers)


def refused_connection(request: httpx2.Request, _: Callable[[], httpx2.Response]) -> Any:
    """Raise the error of a server that does not listen."""
    raise httpx2.ConnectError("Connection refused", request=request)


def lost_answer(request: httpx2.Request, answer: Callable[[], httpx2.Response]) -> Any:
    """Let the authority process the request, then break the connection before the response."""
    assert answer().status_code == 200
    raise httpx2.ReadError("Connection reset by peer", request=request)


def answering(status: int, kind: str = "refused", **headers: str) -> Fault:
    """Return a fault: a problem document, and the authority does not get the request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _, __: problem(status, kind, "It is so.", **named)


def answering_with(content: bytes) -> Fault:
    """Return a fault: a response with status 200 and this content."""
    return lambda _, __: httpx2.Response(200, content=content)
