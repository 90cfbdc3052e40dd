"""The text of a checkpoint: the heads of the chains at one time. PURE.

`checkpoints` makes one each minute and `verification` reads them back. The text is normative
(docs/operate/tamper-evidence.md). A checkpoint names the one before by the digest of its signed
note, so none can be missing or changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import NamedTuple

from birthmark_sma.authority.audit_chain.batches import START, End

ORIGIN = "birthmark-sma audit checkpoint v1"
FIRST_PREVIOUS = "0" * 64
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_ALL, _GROWN = "all", "grown"
_SIGNATURE = "\n\n\u2014"


class KeptNote(NamedTuple):
    """A checkpoint by its number, as operators keep it elsewhere: the signed note."""

    number: int
    note: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint.

    `chains` has the ends of all chains if `lists_all`, else those that grew since the checkpoint
    before. `total` and `heads` are about all. With `pruned`, retention deletes what is older than
    this time; `gone` are the ends of the parts of chains that it deletes. With `coarse`, rows that
    are older than this time lose their exact time and address.
    """

    number: int
    made_at: datetime
    previous: str
    lists_all: bool
    total: int
    heads: str
    chains: Mapping[str, End]
    pruned: datetime | None = None
    gone: Mapping[str, End] = field(default_factory=dict)
    coarse: datetime | None = None

    def as_text(self) -> str:
        """Return the text that is signed."""
        lines = [
            ORIGIN,
            f"number {self.number}",
            f"time {self.made_at.astimezone(UTC).strftime(_TIME)}",
            f"previous {self.previous}",
            f"chains {self.total} {_ALL if self.lists_all else _GROWN}",
            f"heads {self.heads}",
        ]
        if self.pruned is not None:
            lines.append(f"pruned {self.pruned.astimezone(UTC).strftime(_TIME)}")
        if self.coarse is not None:
            lines.append(f"coarse {self.coarse.astimezone(UTC).strftime(_TIME)}")
        lines += [f"gone {line}" for line in _lines(self.gone)]
        lines += [f"chain {line}" for line in _lines(self.chains)]
        return "\n".join(lines) + "\n"


def parse(text: str) -> Checkpoint:
    """Return the checkpoint of a text. Raises ValueError unless a checkpoint has this very text."""
    origin, *lines = text.removesuffix("\n").split("\n")
    if origin != ORIGIN:
        raise ValueError("it is no checkpoint of this version")
    single: dict[str, str] = {}
    ends: dict[str, dict[str, End]] = {"chain": {}, "gone": {}}
    for line in lines:
        name, _, value = line.partition(" ")
        if name in ends:
            writer, sequence, head = value.split(" ")
            ends[name][writer] = End(int(sequence), bytes.fromhex(head))
        else:
            single[name] = value
    try:
        total, scope = single["chains"].split(" ")
        checkpoint = Checkpoint(
            number=int(single["number"]),
            made_at=_parse_time(single["time"]),
            previous=single["previous"],
            lists_all=scope == _ALL,
            total=int(total),
            heads=single["heads"],
            chains=ends["chain"],
            pruned=_parse_time(single["pruned"]) if "pruned" in single else None,
            gone=ends["gone"],
            coarse=_parse_time(single["coarse"]) if "coarse" in single else None,
        )
    except KeyError as missing:
        raise ValueError(f"it has no line {missing}") from None
    if checkpoint.as_text() != text:  # such as a line twice, or digits of another script
        raise ValueError("it is not written as checkpoints are")
    return checkpoint


def text_of(note: str) -> str:
    """Return the text of a note whose signature is not verified."""
    text, _, _ = note.rpartition(_SIGNATURE)
    return text + "\n"


@dataclass(frozen=True, slots=True)
class Signed:
    """The sum of the checkpoints up to one: the ends of all chains, and what retention deleted.

    `gone` are the ends up to which chains were deleted, `pruned` the latest time before which rows
    may be missing, and `coarse` the latest before which they may have lost time and address.
    """

    number: int = 0
    digest: str = FIRST_PREVIOUS
    chains: Mapping[str, End] = field(default_factory=dict)
    gone: Mapping[str, End] = field(default_factory=dict)
    pruned: datetime | None = None
    coarse: datetime | None = None

    def follow(
        self,
        ends: Mapping[str, End],
        made_at: datetime,
        *,
        lists_all: bool,
        pruned: datetime | None = None,
        gone: Mapping[str, End] | None = None,
        coarse: datetime | None = None,
    ) -> Checkpoint:
        """Return the next checkpoint. `ends` are those of all chains."""
        grown = {writer: end for writer, end in ends.items() if self.chains.get(writer) != end}
        return Checkpoint(
            self.number + 1,
            made_at,
            self.digest,
            lists_all,
            len(ends),
            digest_of(ends),
            ends if lists_all else grown,
            pruned,
            gone or {},
            coarse,
        )

    def add(self, checkpoint: Checkpoint, note: str) -> "Signed":
        """Return the sum with the next checkpoint. Raises ValueError if it does not fit."""
        if checkpoint.number != self.number + 1:
            raise ValueError(f"it follows number {self.number}: those between are missing")
        if checkpoint.previous != self.digest:
            raise ValueError(f"it follows another number {self.number}")
        following = self.skip_to(checkpoint, note)
        for writer, end in self.chains.items():
            if following.chains.get(writer, START).sequence < end.sequence:
                raise ValueError(f"the chain {writer} is shorter in it than before")
        heads = digest_of(following.chains)
        if (len(following.chains), heads) != (checkpoint.total, checkpoint.heads):
            raise ValueError("its list of chains does not fit to its digest of all heads")
        return following

    def skip_to(self, checkpoint: Checkpoint, note: str) -> "Signed":
        """Return the sum with a checkpoint that does not follow this one.

        It is complete if the checkpoint lists all chains.
        """
        grown = checkpoint.chains
        return replace(
            self,
            number=checkpoint.number,
            digest=sha256(note.encode()).hexdigest(),
            chains=grown if checkpoint.lists_all else {**self.chains, **grown},
            gone={**self.gone, **checkpoint.gone},
            pruned=max(filter(None, (self.pruned, checkpoint.pruned)), default=None),
            coarse=max(filter(None, (self.coarse, checkpoint.coarse)), default=None),
        )


def digest_of(ends: Mapping[str, End]) -> str:
    """Return the SHA-256, in hex, of the lines of all chains in the order of their names."""
    return sha256("".join(f"{line}\n" for line in _lines(ends)).encode()).hexdigest()


def _lines(ends: Mapping[str, End]) -> list[str]:
    return [f"{writer} {end.sequence} {end.head.hex()}" for writer, end in sorted(ends.items())]


def _parse_time(text: str) -> datetime:
    return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
