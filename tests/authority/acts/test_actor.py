"""The kinds of acts fit the columns that store them."""

import pytest

from birthmark_sma.authority.acts.actor import ActKind, Source
from birthmark_sma.authority.devices.states import Act
from birthmark_sma.storage.schema.acts import administrative_acts


def length_of(column: str) -> int:
    """Return the most characters of a column."""
    length: int = getattr(administrative_acts.c[column].type, "length", 0)
    return length


@pytest.mark.parametrize("kind", ActKind)
def test_a_kind_fits_its_columns(kind: ActKind) -> None:
    """PostgreSQL refuses longer values, and with them the act."""
    assert len(kind.value) <= length_of("act")
    assert 0 < len(kind.subject_kind) <= length_of("subject_kind")


def test_a_source_fits_its_column() -> None:
    assert max(len(each.value) for each in Source) <= length_of("source")


@pytest.mark.parametrize("act", Act)
def test_every_act_on_devices_has_a_kind(act: Act) -> None:
    assert act.kind.subject_kind == "device"
