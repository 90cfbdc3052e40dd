"""Encode and parse PostgreSQL's binary format of arrays, the parameters of hot statements.

Stores send rows as one array for each column (`ColumnArrays`), so a statement is the same for any
number of rows. `storage.postgresql_driver` sends these bytes as they are.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Integer, LargeBinary, SmallInteger, String, Table, Text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import TypeEngine

from birthmark_sma.storage.portable_sql import UtcDateTime

# --- PostgreSQL's binary format of an array with one dimension, all numbers big-endian: number of
# dimensions, flag for NULLs, OID of the element type, number of elements, index of the first
# element; then for each element its length in bytes (-1 for NULL) and its value.

TRUE = b"\x01"
"""The boolean true in binary format."""

_HEAD = struct.Struct("!iiIii")
_LENGTH = struct.Struct("!i")
_NULL = _LENGTH.pack(-1)
_INTEGER = struct.Struct("!ii")  # length and value, as in the following
_LONG_INTEGER = struct.Struct("!iq")
_EIGHT = _LENGTH.pack(8)
# OIDs from PostgreSQL's pg_type.dat; they are the same on every server.
_BYTEA_OID, _TEXT_OID, _INT4_OID, _INT8_OID, _TIMESTAMPTZ_OID = 17, 25, 23, 20, 1184
# A timestamptz is a number of microseconds since 2000-01-01 UTC.
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def array_of_bytes(values: Sequence[bytes | None]) -> bytes:
    """Return the binary format of a `bytea[]`; None is NULL."""
    elements = (_NULL if each is None else _LENGTH.pack(len(each)) + each for each in values)
    return _array(_BYTEA_OID, len(values), elements)


def array_of_integers(values: Sequence[int | None]) -> bytes:
    """Return the binary format of an `int4[]`; None is NULL."""
    elements = (_NULL if each is None else _INTEGER.pack(4, each) for each in values)
    return _array(_INT4_OID, len(values), elements)


def array_of_text(values: Sequence[str | None]) -> bytes:
    """Return the binary format of a `text[]`; None is NULL."""
    known = {each: _text(each) for each in set(values)}  # most columns repeat a few values
    return _array(_TEXT_OID, len(values), (known[each] for each in values))


def array_of_times(values: Sequence[datetime | None]) -> bytes:
    """Return the binary format of a `timestamptz[]`; None is NULL. All times have a time zone."""
    known = {each: _time(each) for each in set(values)}
    return _array(_TIMESTAMPTZ_OID, len(values), (known[each] for each in values))


def _array_of_arrays(values: Sequence[Sequence[int]]) -> bytes:
    """Return a `text[]` of array literals: unnest() would flatten an array of arrays."""
    return array_of_text([f"{{{','.join(map(str, each))}}}" for each in values])


def encode_integer(value: int) -> bytes:
    """Return the binary format of an `int4`."""
    return value.to_bytes(4, "big", signed=True)


def encode_long(value: int) -> bytes:
    """Return the binary format of an `int8`."""
    return value.to_bytes(8, "big", signed=True)


def encode_time(value: datetime) -> bytes:
    """Return the binary format of a `timestamptz`. The time has a time zone."""
    return encode_long((value - _EPOCH) // _MICROSECOND)


# By the type of a column: the type of the array that is sent, and its encoder. BigInteger is not
# here, although it is an Integer: its values may not fit `int4`. Other databases than PostgreSQL
# may take `integer` for eight bytes.
_ARRAYS: dict[type[TypeEngine[Any]], tuple[str, Callable[[Sequence[Any]], bytes]]] = {
    LargeBinary: ("bytea[]", array_of_bytes),
    Integer: ("int4[]", array_of_integers),
    SmallInteger: ("int4[]", array_of_integers),
    String: ("text[]", array_of_text),
    Text: ("text[]", array_of_text),
    UtcDateTime: ("timestamptz[]", array_of_times),
    ARRAY: ("text[]", _array_of_arrays),
}


class ColumnArrays:
    """Columns of a table that are sent as one array each, as parameters of their names.

    So a statement is the same for any number of rows. Raises TypeError for a type without an array.
    """

    def __init__(self, table: Table, names: Sequence[str]) -> None:
        columns = [table.c[name] for name in names]
        missing = [each.name for each in columns if type(each.type) not in _ARRAYS]
        if missing:
            raise TypeError(f"add an array for the types of {missing} in {table.name}")
        kinds = [_ARRAYS[type(each.type)] for each in columns]
        self._encoders = [(name, kind[1]) for name, kind in zip(names, kinds, strict=True)]
        self.names = ", ".join(names)
        """The columns as in an INSERT."""
        self.arrays = ", ".join(
            f":{name}::{kind[0]}" for name, kind in zip(names, kinds, strict=True)
        )
        """The arguments of `unnest`."""
        self.values = ", ".join(
            f"CAST({each.name} AS int4[])" if isinstance(each.type, ARRAY) else each.name
            for each in columns
        )
        """The columns of the result of `unnest`, as the values of an INSERT."""

    def encode(self, rows: Iterable[Sequence[Any]]) -> dict[str, bytes]:
        """Return the parameters for one or more rows, whose values are in the order of `names`."""
        return {
            name: encode(values)
            for (name, encode), values in zip(self._encoders, zip(*rows, strict=True), strict=True)
        }


def parse_integer_array(array: bytes) -> tuple[int, ...]:
    """Return the values of an array of integers in binary format. It must not contain NULLs.

    The elements may have four bytes or eight, as the array says. Raises ValueError for other types.
    """
    if len(array) < _HEAD.size:  # an empty array has a shorter header
        return ()
    _, _, element_oid, _, _ = _HEAD.unpack_from(array)
    if element_oid == _INT4_OID:
        element = _INTEGER
    elif element_oid == _INT8_OID:
        element = _LONG_INTEGER
    else:
        raise ValueError(f"an array of integers has elements of the type with OID {element_oid}")
    return tuple([value for _, value in element.iter_unpack(array[_HEAD.size :])])


def _array(element_oid: int, count: int, elements: Iterable[bytes]) -> bytes:
    return _HEAD.pack(1, 1, element_oid, count, 1) + b"".join(elements)


def _text(value: str | None) -> bytes:
    if value is None:
        return _NULL
    encoded = value.encode()
    return _LENGTH.pack(len(encoded)) + encoded


def _time(value: datetime | None) -> bytes:
    return _NULL if value is None else _EIGHT + encode_time(value)
