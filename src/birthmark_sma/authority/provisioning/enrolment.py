"""Enforce the limits of an access key that devices enrol with: its family and number of devices.

Called by `provisioning.service` before a signature and by `provisioning.registration` in the
transaction that registers devices. Uses must be counted in that transaction, so that a key for one
device never provisions two, even if several processes get it at the same time.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from birthmark_sma.authority.access import store as access_key_store
from birthmark_sma.authority.provisioning.issuance import IssuedDevice, ProvisioningRequest
from birthmark_sma.errors import EnrolmentRefusedError

_USED_UP = "This access key has provisioned as many devices as it is good for; ask for another"


def find_refusal(
    connection: Connection, request: ProvisioningRequest
) -> EnrolmentRefusedError | None:
    """Return an error if the request's access key certainly does not allow it, else None.

    None is no promise: the last use may be taken before the device is registered.
    """
    key = request.enrolled_with
    if key is None:
        return None
    if key.device_family not in {None, request.device_family}:
        return EnrolmentRefusedError(
            f"This access key is good for devices of the family {key.device_family}."
        )
    if access_key_store.uses_left(connection, key.key_id) == 0:
        return EnrolmentRefusedError(_USED_UP)
    return None


def reserve(
    transaction: Connection, candidates: Sequence[IssuedDevice]
) -> dict[str, EnrolmentRefusedError]:
    """Count a use of its access key for each candidate, as far as the keys allow.

    Return the errors of the other candidates, by provisioning id.
    """
    refused: dict[str, EnrolmentRefusedError] = {}
    # Lock order: `use` locks the row of a key. Sorted key ids prevent a deadlock.
    for key_id, enrolled in sorted(_by_key(candidates).items()):
        # The first candidates of a batch get the uses that are left.
        granted = access_key_store.use(transaction, key_id, len(enrolled))
        for candidate in enrolled[granted:]:
            refused[candidate.provisioning_id] = EnrolmentRefusedError(_USED_UP)
    return refused


def give_back(transaction: Connection, candidates: Sequence[IssuedDevice]) -> None:
    """Undo `reserve` for candidates that could not be registered, in the same transaction."""
    for key_id, enrolled in sorted(_by_key(candidates).items()):
        access_key_store.give_back(transaction, key_id, len(enrolled))


def _by_key(candidates: Sequence[IssuedDevice]) -> Mapping[str, list[IssuedDevice]]:
    found: dict[str, list[IssuedDevice]] = defaultdict(list)
    for candidate in candidates:
        if candidate.request.enrolled_with is not None:
            found[candidate.request.enrolled_with.key_id].append(candidate)
    return found
