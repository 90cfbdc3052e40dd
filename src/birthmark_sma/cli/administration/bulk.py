"""One act on many devices over the API: requests of a bounded size, and one result of all.

`remote` calls it. An act by criteria is one request. A long list of serials is several, each an act
of its own, so all are previewed before the first is done.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

from birthmark_sma.authority.devices.revocation import ActResult, DeviceCriteria
from birthmark_sma.authority.devices.states import StatusChange
from birthmark_sma.authority.representations.devices import act_as_json
from birthmark_sma.cli.output import print_stderr
from birthmark_sma.counts import counted
from birthmark_sma.errors import (
    BirthmarkError,
    DeviceStatusError,
    RefusedByServerError,
    UnknownDeviceError,
)
from birthmark_sma.web.api.administration.requests import MOST_SERIALS, is_serial
from birthmark_sma.web.api.administration.responses import CountOfDevices, DeviceActResponse

_Send: TypeAlias = Callable[[Mapping[str, Any]], DeviceActResponse]
_PREVENTED = (UnknownDeviceError, DeviceStatusError)


def act_in_pieces(
    send: _Send, wanted: Sequence[str] | DeviceCriteria, change: StatusChange, *, dry_run: bool
) -> DeviceActResponse:
    """Do an act, or preview it, and return the result of all requests together.

    If named devices prevent it, nothing is done, and the result is that of the preview.
    """
    if not isinstance(wanted, DeviceCriteria):
        possible = [each for each in wanted if is_serial(each)]
        if len(possible) < len(wanted):
            return _tell_impossible(send, wanted, possible, change)
    bodies = [_describe(change) | each for each in _pieces(wanted)]
    if dry_run:
        return _join([send(each | {"preview": True}) for each in bodies])
    if len(bodies) > 1:
        preview = _join([send(each | {"preview": True}) for each in bodies])
        if preview.unknown or preview.refused:
            return preview
        print_stderr(
            f"{len(wanted):,} serials are {counted(len(bodies), 'act')}"  # type: ignore[arg-type]
            f" of up to {MOST_SERIALS:,} serials each."
        )
    done: list[DeviceActResponse] = []
    for body in bodies:
        try:
            done.append(send(body))
        except BirthmarkError as error:
            if done:
                print_stderr(f"{counted(len(done), 'act')} of {len(bodies)} were done before that:")
            elif _is_prevented(error) and "device_serials" in body:
                preview = send(body | {"preview": True})
                if preview.unknown or preview.refused:
                    return preview
            raise
    return _join(done)


def _tell_impossible(
    send: _Send, wanted: Sequence[str], possible: Sequence[str], change: StatusChange
) -> DeviceActResponse:
    """Return the result of an act that names prevent which no device can have.

    The API refuses them by their place in the list, and the operator needs the names.
    """
    known = set(possible)
    strange = [each for each in dict.fromkeys(wanted) if each not in known]
    if not possible:
        nothing = act_as_json(ActResult(unknown=strange), change, done=False)
        return DeviceActResponse.model_validate(nothing)
    found = act_in_pieces(send, possible, change, dry_run=True)
    missing = {*strange, *found.unknown}
    unknown = [each for each in dict.fromkeys(wanted) if each in missing]
    return found.model_copy(update={"unknown": unknown})


def _describe(change: StatusChange) -> dict[str, Any]:
    since = change.invalid_since
    described = {
        "act": change.act.value,
        "reason": change.reason,
        "compromised_since": None if since is None else since.isoformat(),
    }
    return {name: each for name, each in described.items() if each is not None}


def _pieces(wanted: Sequence[str] | DeviceCriteria) -> list[dict[str, Any]]:
    if isinstance(wanted, DeviceCriteria):
        given = asdict(wanted)
        given |= {"device_family": given.pop("family"), "table": given.pop("table_id")}
        texts = {
            name: each.isoformat() if name.startswith("provisioned") else each
            for name, each in given.items()
            if each is not None
        }
        return [{"criteria": texts}]
    names = list(dict.fromkeys(wanted))
    return [
        {"device_serials": names[begins : begins + MOST_SERIALS]}
        for begins in range(0, len(names), MOST_SERIALS)
    ]


def _is_prevented(error: BirthmarkError) -> bool:
    return isinstance(error, RefusedByServerError) and error.same_as in _PREVENTED


def _join(results: Sequence[DeviceActResponse]) -> DeviceActResponse:
    """Return the result of several requests that are parts of one act."""
    [first, *others] = results
    if not others:
        return first
    joined: dict[str, Any] = {
        name: sorted(each for result in results for each in getattr(result, name))
        for name in ("changed", "unchanged")
    }
    joined["unknown"] = [each for result in results for each in result.unknown]
    refused = sorted(
        pair
        for result in results
        for pair in zip(result.refused, result.refused_statuses, strict=True)
    )
    joined["refused"] = [serial for serial, _ in refused]
    joined["refused_statuses"] = [status for _, status in refused]
    counts = Counter(
        {(each.device_family, each.status): 0 for result in results for each in result.counts}
    )
    for result in results:
        counts.update({(each.device_family, each.status): each.devices for each in result.counts})
    joined["counts"] = [
        CountOfDevices(device_family=family, status=status, devices=number)
        for (family, status), number in sorted(counts.items())
    ]
    for name in ("changed_devices", "unchanged_devices", "refused_devices"):
        joined[name] = sum(getattr(each, name) for each in results)
    return first.model_copy(update=joined)
