"""The devices of an action: chosen in a list, all that match a filter, or those of an earlier act.

`device_acts` asks for the selection twice, before and after the operator has confirmed. This module
must never select all devices because nothing was chosen.
"""

from dataclasses import asdict, dataclass

from sqlalchemy import Connection

from birthmark_sma.authority.acts import search as act_search
from birthmark_sma.authority.acts.trail import Facts
from birthmark_sma.authority.devices import search as device_search
from birthmark_sma.authority.devices.search import DeviceFilter
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.web.query_params import (
    Source,
    parse_choice,
    parse_name,
    parse_names,
    parse_number,
    parse_text,
    refused,
)

MOST = 10_000
"""Devices of one action. The command line has no limit."""
_DEVICE = "device"
_TOO_MANY = (
    f"The dashboard changes up to {MOST:,} devices in one act, and there are more. Narrow the"
    " filter, or use the command sma devices on the server."
)


@dataclass(frozen=True, slots=True)
class Selection:
    """The devices of an action: by serial, by filter, or as the subjects of an act."""

    serials: tuple[str, ...] = ()
    wanted: DeviceFilter | None = None
    act_id: int | None = None

    @property
    def fields(self) -> list[tuple[str, str]]:
        """Return the hidden fields of a form that select the same devices."""
        if self.wanted is not None:
            query = filter_query(self.wanted).items()
            return [("which", "all"), *((name, str(each)) for name, each in query if each)]
        if self.act_id is not None:
            return [("of", str(self.act_id))]
        return [("serial", each) for each in self.serials]

    @property
    def facts(self) -> Facts | None:
        """Return how the devices were selected, for the trail of acts; None if one by one."""
        if self.wanted is not None:
            return {name: each for name, each in asdict(self.wanted).items() if each}
        return None if self.act_id is None else {"subjects_of_act": self.act_id}

    def list_serials(self, connection: Connection) -> list[str]:
        """Return the serials of the devices, up to `MOST`. Raises RequestError if there are more.

        Raises UnknownActError.
        """
        if self.wanted is not None:
            listed = device_search.search(connection, self.wanted, limit=MOST + 1)
            found = [each.device_serial for each in listed]
        elif self.act_id is not None:
            found = _list_subjects(connection, self.act_id)
        else:
            found = list(self.serials)
        if len(found) > MOST:
            raise refused(_TOO_MANY)
        return found


def parse_selection(source: Source) -> Selection:
    """Return the selection of a form or link. Raises RequestError if nothing is selected."""
    if parse_text(source, "which") == "all":
        wanted = parse_filter(source)
        if wanted == DeviceFilter():
            raise refused("Search for the devices first: an act on all devices is not offered.")
        return Selection(wanted=wanted)
    act_id = parse_number(source, "of")
    if act_id is not None:
        return Selection(act_id=act_id)
    serials = tuple(dict.fromkeys(parse_names(source, "serial")))
    if not serials:
        raise refused("Choose at least one device.")
    return Selection(serials)


def parse_filter(source: Source) -> DeviceFilter:
    """Return the filter of the list of devices. Raises RequestError."""
    return DeviceFilter(
        begins=parse_text(source, "q"),
        family=parse_name(source, "family"),
        status=parse_choice(source, "status", DeviceStatus),
        flagged=parse_text(source, "flagged") is not None,
    )


def filter_query(wanted: DeviceFilter) -> dict[str, str | None]:
    """Return the query parameters of a filter, which `parse_filter` reads."""
    return {
        "q": wanted.begins,
        "family": wanted.family,
        "status": wanted.status,
        "flagged": "yes" if wanted.flagged else None,
    }


def _list_subjects(connection: Connection, act_id: int) -> list[str]:
    act = act_search.find(connection, act_id)
    if act.subject_kind != _DEVICE:
        raise refused(f"Act {act_id} has no devices.")
    if act.subject is not None:
        return [act.subject]
    subjects = act_search.list_subjects(connection, act_id, limit=MOST + 1)
    return [each.name for each in subjects if each.name is not None]
