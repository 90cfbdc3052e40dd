"""POST /api/v1/devices/{serial}/suspend and the other acts, and /api/v1/devices/bulk.

`authority.devices.revocation` does the acts, as it does for `sma devices`.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeAlias

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import Connection
from starlette.responses import Response

from birthmark_sma.authority.acts.actor import Actor
from birthmark_sma.authority.devices import re_enrolments, states
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.revocation import (
    ActResult,
    DeviceCriteria,
    act_on_devices,
    find_named,
)
from birthmark_sma.authority.devices.states import Act, StatusChange
from birthmark_sma.authority.representations.devices import act_as_json, permission_as_json
from birthmark_sma.authority.representations.pages import read_device
from birthmark_sma.errors import DeviceStatusError
from birthmark_sma.web.api.administration import examples
from birthmark_sma.web.api.administration.calls import (
    MOST_ITEMS,
    actor_of,
    answer,
    check_precondition,
    check_query,
    entity_tag,
    path_parameter,
    perform,
    read_body,
)
from birthmark_sma.web.api.administration.devices import OF_PATH
from birthmark_sma.web.api.administration.documentation import IF_MATCH, described
from birthmark_sma.web.api.administration.requests import (
    MOST_SERIALS,
    BulkRequest,
    DeviceCriteriaRequest,
    ReEnrolRequest,
    ReinstateRequest,
    RetireRequest,
    RevokeRequest,
    SuspendRequest,
)
from birthmark_sma.web.api.administration.responses import DeviceActResponse, PermissionResponse
from birthmark_sma.web.problems import FieldError, InvalidRequestError
from birthmark_sma.web.routes import (
    DEVICES_BULK,
    RE_ENROL,
    REINSTATE,
    RETIRE,
    REVOKE,
    SUSPEND,
    Route,
)
from birthmark_sma.web.server_state import ApiRequest

_ChangeOf: TypeAlias = Callable[[Actor], StatusChange]

_BULK_BYTES = 4_000_000  # 10,000 serials of 64 characters, each of up to 4 bytes or an escape of 6
_MORE_VALUES = 100  # than serials

router = APIRouter(tags=["administer"])


async def suspend(request: ApiRequest) -> Response:
    """Suspend a device: its tokens FAIL until it is reinstated."""
    return await _act(request, await read_body(request, SuspendRequest), states.suspend)


async def reinstate(request: ApiRequest) -> Response:
    """End the suspension of a device."""
    return await _act(request, await read_body(request, ReinstateRequest), states.reinstate)


async def revoke(request: ApiRequest) -> Response:
    """Revoke a device for ever."""
    asked = await read_body(request, RevokeRequest)
    return await _act(
        request, asked, lambda actor: states.revoke(actor, asked.reason, asked.compromised_since)
    )


async def retire(request: ApiRequest) -> Response:
    """Retire a device that is out of use."""
    return await _act(request, await read_body(request, RetireRequest), states.retire)


async def re_enrol(request: ApiRequest) -> Response:
    """Allow a device to be provisioned once more, or withdraw that."""
    check_query(request)
    asked, name = await read_body(request, ReEnrolRequest), path_parameter(request)

    def work(transaction: Connection, actor: Actor) -> dict[str, Any]:
        _check_unchanged(request, transaction, name)
        if asked.cancel:
            serial, _ = re_enrolments.withdraw(transaction, name, actor)
            return {"device_serial": serial, "allowed_until": None}
        period = timedelta(seconds=asked.seconds)
        return permission_as_json(re_enrolments.permit(transaction, name, period, actor))

    return await perform(request, asked, work)


async def act_in_bulk(request: ApiRequest) -> Response:
    """Do one act on many devices, or preview it."""
    check_query(request)
    asked = await read_body(
        request, BulkRequest, most_bytes=_BULK_BYTES, most_values=MOST_SERIALS + _MORE_VALUES
    )
    wanted: list[str] | DeviceCriteria = asked.device_serials or []
    if asked.criteria is not None:
        wanted = _criteria_of(asked.criteria)
    make = _change_of(asked)
    change = make(actor_of(request))
    _check_change(request, change)
    if asked.preview:
        return await answer(
            request,
            lambda connection: _shown(
                act_on_devices(connection, wanted, change, dry_run=True),
                change,
                wanted,
                done=False,
            ),
        )
    return await perform(request, asked, lambda transaction, _: _do(transaction, wanted, change))


async def _act(request: ApiRequest, asked: BaseModel, change_of: _ChangeOf) -> Response:
    check_query(request)
    name = path_parameter(request)
    change = change_of(actor_of(request))
    _check_change(request, change)

    def work(transaction: Connection, _: Actor) -> dict[str, Any]:
        _check_unchanged(request, transaction, name)
        return _do(transaction, [name], change)

    return await perform(request, asked, work)


def _do(
    transaction: Connection, wanted: list[str] | DeviceCriteria, change: StatusChange
) -> dict[str, Any]:
    result = act_on_devices(transaction, wanted, change)
    result.check(change)
    return _shown(result, change, wanted, done=True)


def _shown(
    result: ActResult, change: StatusChange, wanted: list[str] | DeviceCriteria, *, done: bool
) -> dict[str, Any]:
    # The response to named devices is not larger than the request.
    most = MOST_ITEMS if isinstance(wanted, DeviceCriteria) else None
    return act_as_json(result, change, done=done, most=most)


def _check_unchanged(request: ApiRequest, transaction: Connection, name: str) -> None:
    """Lock a device, and raise PreconditionFailedError if it is not as If-Match says."""
    if "if-match" not in request.headers:
        return
    serial = find_named(transaction, name).device_serial
    device_store.lock_device(transaction, serial)
    check_precondition(request, lambda: entity_tag(read_device(transaction, serial)))


def _check_change(request: ApiRequest, change: StatusChange) -> None:
    """Raise InvalidRequestError if the reason and the time of a change do not fit."""
    try:
        change.check(request.server.authority.database.clock.now())
    except DeviceStatusError as error:
        fault = FieldError(field="compromised_since", detail=str(error))
        raise InvalidRequestError([fault]) from None


def _change_of(asked: BulkRequest) -> _ChangeOf:
    act = Act(asked.act)
    if act is Act.REVOKE:
        reason = asked.reason or "unspecified"
        return lambda actor: states.revoke(actor, reason, asked.compromised_since)
    if asked.compromised_since is not None:
        detail = "only a key that is revoked can be compromised"
        raise InvalidRequestError([FieldError(field="compromised_since", detail=detail)])
    others = {
        Act.SUSPEND: states.suspend,
        Act.REINSTATE: states.reinstate,
        Act.RETIRE: states.retire,
    }
    return others[act]


def _criteria_of(asked: DeviceCriteriaRequest) -> DeviceCriteria:
    return DeviceCriteria(
        family=asked.device_family,
        app_version=asked.app_version,
        provisioned_after=asked.provisioned_after,
        provisioned_before=asked.provisioned_before,
        table_id=asked.table,
    )


_AGAIN = " An act that changes nothing is 200, and is not recorded."
_ERRORS = ("unknown-device", "device-status")


def _add(
    route: Route, endpoint: Callable[..., Any], body: type[BaseModel], summary: str, told: str
) -> None:
    router.add_api_route(
        endpoint=endpoint,
        **described(
            route,
            summary,
            DeviceActResponse,
            examples.SUSPENDED,
            description=told + _AGAIN,
            of_path=OF_PATH,
            parameters=(IF_MATCH,),
            body=body,
            errors=(*_ERRORS, 412),
        ),
    )


_add(
    *(SUSPEND, suspend, SuspendRequest, "Suspend a device"),
    "Its tokens FAIL, and its certificate is on hold, until it is reinstated.",
)
_add(
    *(REINSTATE, reinstate, ReinstateRequest, "Reinstate a device"),
    "Ends the suspension of a device, and marks its flags as reviewed.",
)
_add(
    *(REVOKE, revoke, RevokeRequest, "Revoke a device"),
    "Its tokens FAIL for ever, and its certificates go on the revocation list.",
)
_add(
    *(RETIRE, retire, RetireRequest, "Retire a device"),
    "For a device that is out of use. It cannot be reinstated.",
)
router.add_api_route(
    endpoint=re_enrol,
    **described(
        RE_ENROL,
        "Allow a device to be re-enrolled",
        PermissionResponse,
        examples.PERMISSION,
        description="The next provisioning request with this serial gets a new certificate, once.",
        of_path=OF_PATH,
        parameters=(IF_MATCH,),
        body=ReEnrolRequest,
        errors=(*_ERRORS, 412),
    ),
)
router.add_api_route(
    endpoint=act_in_bulk,
    **described(
        DEVICES_BULK,
        "Do one act on many devices",
        DeviceActResponse,
        examples.SUSPENDED,
        description="By serials (all of them or none) or by criteria (those whose status allows"
        " it). Send `preview` first: it tells which devices would change, and how many by family"
        f" and status.{_AGAIN}",
        body=BulkRequest,
        errors=_ERRORS,
    ),
)
