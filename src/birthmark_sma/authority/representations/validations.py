"""JSON objects of validations, for the operator: a caller must never get the reasons."""

from collections.abc import Mapping, Sequence
from typing import Any

from birthmark_sma.authority.validation.audit_search import AuditEntry, AuditPage
from birthmark_sma.authority.validation.validation_details import ValidationDetails


def entry_as_json(entry: AuditEntry) -> dict[str, Any]:
    """Return a row of the audit log."""
    digest = entry.token_digest
    return entry._asdict() | {"token_digest": None if digest is None else digest.hex()}


def page_as_json(page: AuditPage) -> dict[str, Any]:
    """Return a page of the audit log. `looked_back_to` is set if its time limit ended it."""
    return {
        "validations": [entry_as_json(each) for each in page.rows],
        "next_cursor": None if page.older is None else str(page.older),
        "looked_back_to": page.looked_back_to,
    }


def request_as_json(
    request_id: str, found: Sequence[ValidationDetails], names: Mapping[str, str]
) -> dict[str, Any]:
    """Return the validations of a request. `names` has those of the callers, by identity."""
    return {
        "request_id": request_id,
        "validations": [_details_as_json(each) for each in found],
        "callers": dict(names),
    }


def _details_as_json(found: ValidationDetails) -> dict[str, Any]:
    """Return a row with its reason in words and the other submissions of its token."""
    story = found.story
    return entry_as_json(found.entry) | {
        "meaning": found.reason.meaning,
        "advice": found.reason.advice,
        "repeat_meaning": found.repeat and found.repeat.meaning,
        "repeat_advice": found.repeat and found.repeat.advice,
        "first_seen_at": None if story is None else story.first_seen_at,
        "first_caller": None if story is None else story.first_caller,
        "seen_again": [] if story is None else [each._asdict() for each in story.resubmissions],
    }
