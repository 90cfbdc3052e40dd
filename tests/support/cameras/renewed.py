"""Provision and renew devices in the process of a test, as the endpoints do."""

import asyncio
from typing import Any

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.renewal.registration import Renewed
from birthmark_sma.web.api.renewal.models import RenewRequest
from tests.support.authorities import request_for
from tests.support.cameras.camera import csr_pem, new_key
from tests.support.cameras.renewal import RenewingDevice


def new_device(authority: Authority, serial: str) -> RenewingDevice:
    """Provision a device."""
    key = new_key()
    answer = authority.provisioner.provision_device(request_for(serial, csr=csr_pem(key, serial)))
    return RenewingDevice(serial, key, answer.device_certificate)


def renew(authority: Authority, body: dict[str, Any]) -> Renewed:
    """Renew with the body of a request."""
    request = RenewRequest.model_validate(body).renewal_request()

    async def run() -> Renewed:
        verified = await authority.renewer.verify(request, None)
        return await authority.renewer.renew(verified, None)

    return asyncio.run(run())
