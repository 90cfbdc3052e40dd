"""Verify the checkpoints: their key, their signatures, and that none is missing. PURE.

`trail` compares the chains with their sum. `kept` checkpoints are those that an operator kept where
nobody who has the database can write.
"""

from collections.abc import Collection, Generator, Iterable
from dataclasses import replace
from hashlib import sha256

from birthmark_sma.authority.audit_chain.checkpoint import (
    Checkpoint,
    KeptNote,
    Signed,
    parse,
    text_of,
)
from birthmark_sma.authority.audit_chain.signed_note import THE_KEY, open_note
from birthmark_sma.authority.audit_chain.verification.findings import (
    AuditReader,
    Finding,
    StoredNote,
    Verified,
    name_numbers,
)


def find_key(reader: AuditReader, verifier: str | None) -> Generator[Finding, None, str | None]:
    """Yield what is wrong with the key in the database, and return the one to verify with.

    Without a key, there is nothing to verify signatures with.
    """
    stored: str | None = None
    for number, key in reader.verifiers():
        if number != THE_KEY:
            yield Finding("inserted", f"key {number} of checkpoints", "there is one key")
            continue
        stored = key
        if verifier is not None and verifier.strip() != key:
            yield Finding("changed", "the key of checkpoints", "it is not the one that was given")
    if stored is None and any(True for _ in reader.notes()):
        yield Finding("deleted", "the key of checkpoints")
    return verifier or stored


def compare_notes(
    kept: Collection[KeptNote], stored: Iterable[StoredNote], verifier: str | None
) -> Generator[Finding, None, Signed]:
    """Yield the kept checkpoints that are not stored, and return the sum of the kept ones."""
    notes = sorted(set(kept))  # two copies that overlap have some twice
    if not notes:
        return Signed()
    digests: dict[int, set[bytes]] = {}
    for number, note in notes:
        digests.setdefault(number, set()).add(sha256(note.encode()).digest())
    for each in stored:
        if digests.pop(each.number, set()) - {sha256(each.note.encode()).digest()}:
            yield Finding("changed", f"checkpoint {each.number}", "another one was kept elsewhere")
    for number in digests:
        yield Finding("deleted", f"checkpoint {number}", "it was kept elsewhere")
    findings = add_up(notes, verifier, Verified(), Signed(number=notes[0].number - 1))
    while True:  # what is wrong with the kept ones is not wrong with the trail
        try:
            finding = next(findings)
        except StopIteration as end:
            signed: Signed = end.value
            return signed
        if finding.fault == "changed":
            yield finding._replace(what=f"{finding.what} of those kept elsewhere")


def add_up(
    notes: Iterable[StoredNote | KeptNote],
    verifier: str | None,
    done: Verified,
    signed: Signed | None = None,
) -> Generator[Finding, None, Signed]:
    """Yield what is wrong with checkpoints, and return the sum of those that this key signed."""
    signed = signed or Signed()
    is_whole = signed == Signed()
    for each in notes:
        number, what = each.number, f"checkpoint {each.number}"
        done.checkpoints += 1
        missing = range(signed.number + 1, number)
        if missing:
            yield Finding("deleted", name_numbers("checkpoint", missing))
            is_whole = False
        if number <= signed.number:
            yield Finding("doubled", what)
            continue
        try:
            checkpoint = _open(each, verifier)
        except ValueError as error:
            yield Finding("changed", what, str(error))
            signed, is_whole = replace(signed, number=number), False
            continue
        if isinstance(each, StoredNote) and not _has_right_columns(each, checkpoint):
            yield Finding("changed", what, "its columns are not those of its note")
        done.signed_until = checkpoint.made_at
        try:
            if is_whole:
                signed = signed.add(checkpoint, each.note)
                continue
        except ValueError as error:
            yield Finding("changed", what, str(error))
        # Without those before, only a checkpoint that lists all chains tells about all.
        signed, is_whole = signed.skip_to(checkpoint, each.note), checkpoint.lists_all
    return signed


def _open(each: StoredNote | KeptNote, verifier: str | None) -> Checkpoint:
    """Return a checkpoint whose signature is right, or any if there is no key."""
    note = each.note
    checkpoint = parse(text_of(note) if verifier is None else open_note(note, verifier))
    if checkpoint.number != each.number:
        raise ValueError(f"it is number {checkpoint.number}")
    return checkpoint


def _has_right_columns(stored: StoredNote, checkpoint: Checkpoint) -> bool:
    """Return whether the columns that servers read say the same as the signed note."""
    permitted = (stored.pruned_before, stored.coarse_before)
    pruned, coarse = (each and each.replace(microsecond=0) for each in permitted)
    return (stored.made_at.replace(microsecond=0), stored.lists_all, pruned, coarse) == (
        checkpoint.made_at,
        checkpoint.lists_all,
        checkpoint.pruned,
        checkpoint.coarse,
    )
