"""Read the records of many devices from CSV or JSON Lines, one at a time.

The contract of this module: every line that is not empty belongs to exactly one record. A fault in
one record never affects another. At most one record is held, however long the file is.
`batch/command.py` calls `read_records`.
"""

import csv
import difflib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import BinaryIO

from birthmark_sma.counts import counted
from birthmark_sma.errors import BatchFileError

MAX_RECORD_BYTES = 65_536
"""The default of the API's max_body_bytes, so that a batch accepts what the API accepts."""

_BOM = b"\xef\xbb\xbf"
_TOO_LONG = f"it has more than {MAX_RECORD_BYTES} bytes"
_NOT_UTF8 = "it is not UTF-8 text"


class BatchFormat(StrEnum):
    """Format of the file of devices."""

    CSV = "csv"
    JSONL = "jsonl"


@dataclass(frozen=True, slots=True)
class Record:
    """The fields of one device: JSON text or CSV columns. `fault` says why it cannot be read.

    `line` counts from 1 and is the record's first line. `end` is the file offset behind the record,
    in bytes.
    """

    line: int
    end: int
    content: bytes | dict[str, str] = field(default=b"", repr=False)
    fault: str | None = None


def read_records(
    file: BinaryIO, file_format: BatchFormat, columns: Mapping[str, bool]
) -> Iterator[Record]:
    """Return an iterator over the records of a file.

    `columns` maps each permitted CSV column to whether it is required. Reading the first record
    raises BatchFileError if the CSV header does not match `columns`.
    """
    lines = _Lines(file)
    if file_format is BatchFormat.JSONL:
        return _json_records(lines)
    return _csv_records(lines, columns)


@dataclass(frozen=True, slots=True)
class _Line:
    """A line without its line break. `text` is None if it exceeds MAX_RECORD_BYTES."""

    number: int
    end: int
    text: bytes | None


class _Lines:
    """The lines of a file, with push-back. A line that is too long is skipped, not held."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._put_back: deque[_Line] = deque()
        self._number = 0
        self._end = 0

    def take(self) -> _Line | None:
        """Return the next line, or None at the end."""
        if self._put_back:
            return self._put_back.popleft()
        # Read a long line in pieces, because a file may be one line of any length.
        piece = self._file.readline(MAX_RECORD_BYTES)
        if not piece:
            return None
        text = piece
        self._end += len(piece)
        while piece and not piece.endswith(b"\n"):
            piece = self._file.readline(MAX_RECORD_BYTES)
            self._end += len(piece)
            if piece and len(text) <= MAX_RECORD_BYTES:
                text += piece
        if self._number == 0:
            text = text.removeprefix(_BOM)  # spreadsheets write a byte order mark
        self._number += 1
        too_long = len(text) > MAX_RECORD_BYTES
        return _Line(self._number, self._end, None if too_long else text.rstrip(b"\r\n"))

    def put_back(self, lines: Sequence[_Line]) -> None:
        """Make `take` return these lines next, in this order."""
        self._put_back.extendleft(reversed(lines))


def _json_records(lines: _Lines) -> Iterator[Record]:
    while (line := lines.take()) is not None:
        if line.text is None:
            yield _faulty(line, _TOO_LONG)
        elif _decode(line.text) is None:
            yield _faulty(line, _NOT_UTF8)
        elif line.text.strip():
            yield Record(line.number, line.end, line.text)


def _csv_records(lines: _Lines, columns: Mapping[str, bool]) -> Iterator[Record]:
    header = _read_header(lines, columns)
    while (line := lines.take()) is not None:
        if line.text is None:
            yield _faulty(line, _TOO_LONG)
        if not (line.text or b"").strip():
            continue
        gathered = _gather(line, lines)
        content, fault = _csv_content(gathered, header)
        if content is not None:
            yield Record(line.number, gathered[-1].end, content)
            continue
        # A quote that never closes would consume the devices behind it. So only the first line is
        # refused, and reading continues at the line after it.
        lines.put_back(gathered[1:])
        yield _faulty(line, fault)


def _gather(first: _Line, lines: _Lines) -> list[_Line]:
    """Return the lines of one record. A line break within quotes belongs to the value.

    An even number of quotation marks ends the record, because CSV doubles a quote within quotes
    (RFC 4180, section 2).
    """
    gathered = [first]
    size, quotes = len(first.text or b""), (first.text or b"").count(b'"')
    while quotes % 2 and size <= MAX_RECORD_BYTES:
        line = lines.take()
        if line is None:
            break
        gathered.append(line)
        if line.text is None:
            break
        size += len(line.text) + 1
        quotes += line.text.count(b'"')
    return gathered


def _csv_content(
    gathered: Sequence[_Line], header: Sequence[str]
) -> tuple[dict[str, str], str] | tuple[None, str]:
    """Return the columns of a record that are not empty, or None and the fault."""
    texts = [line.text for line in gathered if line.text is not None]
    if len(texts) < len(gathered) or sum(map(len, texts)) > MAX_RECORD_BYTES:
        return None, "a quotation mark is opened and not closed"
    text = _decode(b"\n".join(texts))
    if text is None:
        return None, _NOT_UTF8
    try:
        (values,) = csv.reader([text], strict=True)
    except (csv.Error, ValueError):
        return None, "it is not CSV: a quotation mark is out of place, or not closed"
    if len(values) != len(header):
        return None, f"it has {counted(len(values), 'column')}, and the header {len(header)}"
    # Spreadsheets and people write a PEM in one cell, with "\n" in place of its line breaks.
    return {
        name: value.replace(r"\n", "\n") if "-----BEGIN" in value else value
        for name, value in zip(header, values, strict=True)
        if value
    }, ""


def _read_header(lines: _Lines, columns: Mapping[str, bool]) -> list[str]:
    line = lines.take()
    while line is not None and line.text is not None and not line.text.strip():
        line = lines.take()
    if line is None:
        raise BatchFileError("The CSV is empty: its first line names the columns.")
    if line.text is None:
        raise BatchFileError("The first line is too long to name the columns.")
    try:
        (header,) = csv.reader([line.text.decode()], strict=True)
    except (UnicodeDecodeError, csv.Error, ValueError):
        raise BatchFileError("The first line is not CSV in UTF-8 that names the columns.") from None
    header = [name.strip() for name in header]
    if len(header) == 1 and any(separator in header[0] for separator in ";\t|"):
        raise BatchFileError("The CSV has one column: commas separate columns, and nothing else.")
    for name in header:
        if not name:
            raise BatchFileError("The CSV has a column without a name: remove it.")
        if name not in columns:
            nearest = difflib.get_close_matches(name.lower(), columns, n=1)
            hint = f" Did you mean {nearest[0]}?" if nearest else f" Known: {', '.join(columns)}."
            # Control characters in a name could change the terminal.
            shown = name if name.isprintable() and len(name) <= 64 else "One of its names"
            raise BatchFileError(f"The CSV has an unknown column: {shown}.{hint}")
        if header.count(name) > 1:
            raise BatchFileError(f"The CSV has two columns {name}.")
    for name, required in columns.items():
        if required and name not in header:
            raise BatchFileError(f"The CSV has no column {name}.")
    return header


def _decode(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def _faulty(line: _Line, fault: str) -> Record:
    return Record(line.number, line.end, fault=fault)
