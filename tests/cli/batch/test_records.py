"""Records of a file of devices: one fault touches one record."""

import io
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.cli.batch.records import MAX_RECORD_BYTES, BatchFormat, Record, read_records
from birthmark_sma.errors import BatchFileError

COLUMNS = {"device_serial": True, "device_family": True, "device_public_key": False, "csr": False}
HEADER = b"device_serial,device_family,device_public_key\n"


def csv_records(text: bytes, header: bytes = HEADER) -> list[Record]:
    """Read CSV."""
    return list(read_records(io.BytesIO(header + text), BatchFormat.CSV, COLUMNS))


def json_records(text: bytes) -> list[Record]:
    """Read JSON Lines."""
    return list(read_records(io.BytesIO(text), BatchFormat.JSONL, COLUMNS))


def serials(records: list[Record]) -> list[str | None]:
    """The serial of each record of CSV, None where it is at fault."""
    return [
        r.content.get("device_serial") if isinstance(r.content, dict) else None for r in records
    ]


def test_values_may_have_line_breaks_quotes_and_commas() -> None:
    (record, other) = csv_records(b'a,"the ""big"", one","-----BEGIN\nk\n-----END"\nb,F,K\n')
    assert record.content == {
        "device_serial": "a",
        "device_family": 'the "big", one',
        "device_public_key": "-----BEGIN\nk\n-----END",
    }
    assert (record.line, other.line) == (2, 5)


def test_a_pem_on_one_line() -> None:
    r"""`\n` stands for a line break in a PEM, and for itself elsewhere."""
    (record,) = csv_records(rb"a,x\ny,-----BEGIN\nk\n-----END" + b"\n")
    assert isinstance(record.content, dict)
    assert record.content["device_public_key"] == "-----BEGIN\nk\n-----END"
    assert record.content["device_family"] == r"x\ny"


def test_empty_values_are_absent_and_empty_lines_are_none() -> None:
    (record,) = csv_records(b"\n\r\na,F,\r\n   \n")
    assert record.content == {"device_serial": "a", "device_family": "F"}
    assert record.line == 4


def test_bom_and_crlf() -> None:
    (record,) = csv_records(b"a,F,K\r\n", b"\xef\xbb\xbf" + HEADER.replace(b"\n", b"\r\n"))
    assert record.content == {"device_serial": "a", "device_family": "F", "device_public_key": "K"}
    (json_record,) = json_records(b'\xef\xbb\xbf{"a": 1}\r\n\r\n')
    assert json_record.content == b'{"a": 1}'


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"x,F", "2 columns"),
        (b"x,F,K,more", "4 columns"),
        (b'x,"F,K', "quotation mark"),
        (b'x,"F"G,K', "quotation mark"),
        (b"x,F\xff,K", "UTF-8"),
        (b"x,F," + b"K" * MAX_RECORD_BYTES, "bytes"),
        (b"x,F," + b"K" * 3 * MAX_RECORD_BYTES, "bytes"),
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_a_fault_touches_one_record(line: bytes, fault: str, last: bool) -> None:
    """Those before and behind it are read, one whose values have line breaks among them."""
    behind = b"" if last else b'\nb,F,"-----BEGIN\nk\n-----END"\nc,F,K\n'
    records = csv_records(b"a,F,K\n" + line + behind)
    assert serials(records) == ["a", None, *([] if last else ["b", "c"])]
    assert records[1].line == 3
    assert records[1].fault is not None
    assert fault in records[1].fault


def test_json_faults() -> None:
    """Of the text itself; what it says is not read here."""
    records = json_records(b"{}\n\xff\n" + b"x" * (MAX_RECORD_BYTES + 1) + b"\n{not json\n{}")
    assert [record.line for record in records] == [1, 2, 3, 4, 5]
    assert [record.fault is None for record in records] == [True, False, False, True, True]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"device_serail,device_family\n", "Did you mean device_serial?"),
        (b"device_serial,device_family,colour\n", "Known: "),
        (b"device_serial,device_family,csr,csr\n", "two columns csr"),
        (b"device_serial,csr\n", "no column device_family"),
        (b"", "unknown column"),
        (b"device_serial;device_family;csr\n", "commas separate"),
        (b"device_serial,device_family,csr,\n", "without a name"),
        (b"d" * 70_000 + b"\n", "too long"),
        (b"\xff\xfed\0e\0v\0", "UTF-8"),
        (b'"device_serial,csr\n', "not CSV"),
    ],
)
def test_a_header_that_cannot_be_used(header: bytes, words: str) -> None:
    with pytest.raises(BatchFileError, match=words.replace("?", r"\?")):
        csv_records(b"a,F,K\n", header)


def test_empty_lines_before_the_header() -> None:
    (record,) = csv_records(b"a,F,K\n", b"\n \r\ndevice_serial,device_family,csr\n")
    assert record.line == 4
    with pytest.raises(BatchFileError, match="empty"):
        csv_records(b"\n", b"\n")


def test_a_record_says_how_far_the_file_is_read() -> None:
    text = b'a,F,"1\n2"\nb,F,K\n'
    records = csv_records(text)
    assert [record.end for record in records] == [len(HEADER) + 10, len(HEADER) + len(text)]


def test_a_huge_line_is_not_held() -> None:
    """Gigabytes without a line break cost a reader no memory, and it finds the next record."""

    class Huge(io.RawIOBase):
        left = 2_000

        def readable(self) -> bool:
            return True

        def readline(self, size: int | None = -1, /) -> bytes:
            self.left -= 1
            if self.left > 0:
                return b"x" * (size or 0)
            return b"\n" if self.left == 0 else b"{}\n" if self.left == -1 else b""

    tracemalloc.start()
    try:
        records = list(read_records(Huge(), BatchFormat.JSONL, {}))  # type: ignore[arg-type]
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert [record.fault is None for record in records] == [False, True]


def test_nothing_is_read_ahead() -> None:
    """A file without an end can be read."""

    class Endless(io.RawIOBase):
        def readline(self, size: int | None = -1, /) -> bytes:
            return b"{}\n"

    records: Iterator[Record] = read_records(Endless(), BatchFormat.JSONL, {})  # type: ignore[arg-type]
    assert [next(records).line for _ in range(1_000)][-1] == 1_000


@given(st.lists(st.text(alphabet='a",\n\r\\', max_size=12), max_size=12))
def test_whatever_stands_between_two_records(lines: list[str]) -> None:
    """No text between hides the first record, and every record has a line of its own."""
    records = csv_records(b"first,F,K\n" + "\n".join(lines).encode() + b"\n")
    assert serials(records)[0] == "first"
    numbers = [record.line for record in records]
    assert numbers == sorted(set(numbers))
