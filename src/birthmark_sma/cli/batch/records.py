"""Read what describes many devices, CSV or JSON Lines, a record at a time.

The contract of this room: every line that is not empty belongs to exactly one record, a fault in
one record never touches another, and no more than a record is held, however long the file.
"""

import csv
import difflib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import BinaryIO

from birthmark_sma.errors import BatchFileError

MAX_RECORD_BYTES = 65_536
"""As large as a body that the API takes."""

_BOM = b"\xef\xbb\xbf"
_ENCODED_LINE_BREAK = "\\n"


class BatchFormat(StrEnum):
    """How devices are described."""

    CSV = "csv"
    JSONL = "jsonl"


@dataclass(frozen=True, slots=True)
class Record:
    """One device's description: JSON text, or the columns of CSV; or why it cannot be read.

    `line` counts from 1, and is the first line of a record that has several. `end` is how many
    bytes of the file are read once this record is.
    """

    line: int
    end: int
    content: bytes | dict[str, str] = field(default=b"", repr=False)
    fault: str | None = None


def read_records(
    file: BinaryIO, file_format: BatchFormat, columns: Mapping[str, bool]
) -> Iterator[Record]:
    """Return the records of a file, lazily.

    `columns` are the names that CSV may have, and whether it must. Raises BatchFileError, at the
    first record, for CSV whose header does not agree with them.
    """
    lines = _Lines(file)
    if file_format is BatchFormat.JSONL:
        return _json_records(lines)
    return _csv_records(lines, columns)


@dataclass(frozen=True, slots=True)
class _Line:
    """A line without its end. `text` is None where it is longer than any record."""

    number: int
    end: int
    text: bytes | None


class _Lines:
    """The lines of a file; some can be put back. A line that is too long is read, but not held."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._put_back: deque[_Line] = deque()
        self._number = 0
        self._end = 0

    def take(self) -> _Line | None:
        """Return the next line, or None at the end."""
        if self._put_back:
            return self._put_back.popleft()
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
            text = text.removeprefix(_BOM)
        self._number += 1
        too_long = len(text) > MAX_RECORD_BYTES
        return _Line(self._number, self._end, None if too_long else text.rstrip(b"\r\n"))

    def put_back(self, lines: Sequence[_Line]) -> None:
        """Let these lines be the next ones."""
        self._put_back.extendleft(reversed(lines))


def _json_records(lines: _Lines) -> Iterator[Record]:
    while (line := lines.take()) is not None:
        if line.text is None:
            yield _too_long(line)
        elif not _is_utf8(line.text):
            yield _faulty(line, "it is not UTF-8 text")
        elif line.text.strip():
            yield Record(line.number, line.end, line.text)


def _csv_records(lines: _Lines, columns: Mapping[str, bool]) -> Iterator[Record]:
    header = _read_header(lines, columns)
    while (line := lines.take()) is not None:
        if line.text is None:
            yield _too_long(line)
            continue
        if not line.text.strip():
            continue
        gathered = _gather(line, lines)
        content, fault = _csv_content(gathered, header)
        if content is not None:
            yield Record(line.number, gathered[-1].end, content)
            continue
        # One quote too many would swallow the devices behind it: go on at the very next line.
        lines.put_back(gathered[1:])
        yield _faulty(line, fault)


def _gather(first: _Line, lines: _Lines) -> list[_Line]:
    """Return the lines of one record: within quotes, a line break belongs to the value."""
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
    """Return the columns of a record that are not empty, or None and what is wrong."""
    texts = [line.text for line in gathered if line.text is not None]
    if len(texts) < len(gathered) or sum(map(len, texts)) > MAX_RECORD_BYTES:
        return None, "a quotation mark is opened and not closed"
    try:
        (values,) = csv.reader([b"\n".join(texts).decode()], strict=True)
    except UnicodeDecodeError:
        return None, "it is not UTF-8 text"
    except (csv.Error, ValueError):
        return None, "it is not CSV: a quotation mark is out of place, or not closed"
    if len(values) != len(header):
        return None, f"it has {len(values)} columns, and the header {len(header)}"
    pairs = zip(header, values, strict=True)
    # A PEM without line breaks is the one thing that spreadsheets and people agree on.
    return {
        name: value.replace(_ENCODED_LINE_BREAK, "\n") if "-----BEGIN" in value else value
        for name, value in pairs
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
            shown = name if name.isprintable() and len(name) <= 64 else "One of its names"
            raise BatchFileError(f"The CSV has an unknown column: {shown}.{hint}")
        if header.count(name) > 1:
            raise BatchFileError(f"The CSV has two columns {name}.")
    for name, required in columns.items():
        if required and name not in header:
            raise BatchFileError(f"The CSV has no column {name}.")
    return header


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _too_long(line: _Line) -> Record:
    return _faulty(line, f"it has more than {MAX_RECORD_BYTES} bytes")


def _faulty(line: _Line, fault: str) -> Record:
    return Record(line.number, line.end, fault=fault)
