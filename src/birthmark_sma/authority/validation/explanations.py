"""Explain each reason and each repeat in words, with advice for the operator. PURE.

`sma validations`, the dashboard's page of a validation and docs/operate/why-did-my-token-fail.md
take the texts from here. They are for the operator: no response to a caller may contain them.
"""

from collections.abc import Mapping
from typing import NamedTuple

from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason


class Explanation(NamedTuple):
    """The meaning of a reason or a repeat, its usual cause, and what the operator can do."""

    meaning: str
    advice: str


EXPLANATIONS: Mapping[Reason, Explanation] = {
    Reason.GENUINE: Explanation(
        "The token opened, and a registered, active device with this key table sealed it.",
        "Nothing needs to be done.",
    ),
    Reason.UNKNOWN_TABLE: Explanation(
        "This authority has no key table with this number. The caller got 400 with FAIL.",
        "The token is for another authority, or the client reads the wrong field. Compare the"
        " table with the device's: sma devices show SERIAL.",
    ),
    Reason.UNKNOWN_KEY_INDEX: Explanation(
        "The key index is outside the key table. The caller got 400 with FAIL.",
        "The client draws its key index from the wrong range. Compare it with the keys a table"
        " that sma tables show prints.",
    ),
    Reason.NOT_OPENED: Explanation(
        "The token does not open under the key that it names: the key is wrong, or the token was"
        " altered.",
        "Check the client with the test vectors (docs/vectors.md): key derivation, byte order of"
        " the key index, tag at the end of the ciphertext. Check that the endpoint fits the key"
        " derivation: published clients use /validate. If the device worked before, its state"
        " was lost, or its key table was rotated long ago: re-enrol it (sma devices re-enrol).",
    ),
    Reason.OPENED_TWICE: Explanation(
        "The token opened under two keys. Chance does not do that: somebody who knows both keys"
        " forged it.",
        "Treat it as an attack by the owner of a device with these keys. Look at the caller's"
        " other tokens.",
    ),
    Reason.UNKNOWN_DEVICE: Explanation(
        "The token opened, but no registered device has the NUC hash inside it.",
        "The device was provisioned at another authority or in a database that was restored"
        " to an earlier state, or it was re-enrolled and still uses its old NUC hash. Compare its"
        " serial with sma devices list, and re-enrol it.",
    ),
    Reason.TABLE_NOT_ASSIGNED: Explanation(
        "The token opened to a device that does not have this key table.",
        "Somebody knows the device's NUC hash and the keys of another device. Suspend the device"
        " (sma devices suspend SERIAL), then look at the devices that share the table.",
    ),
    Reason.DEVICE_SUSPENDED: Explanation(
        "The device is suspended.",
        "sma devices show SERIAL tells since when, by whom and why. To end the suspension:"
        " sma devices reinstate SERIAL.",
    ),
    Reason.DEVICE_REVOKED: Explanation(
        "The device is revoked, which is final.",
        "sma devices show SERIAL tells since when, by whom and why. The device needs a new"
        " enrolment under another serial.",
    ),
    Reason.DEVICE_RETIRED: Explanation(
        "The device is retired, which is final.",
        "sma devices show SERIAL tells since when and by whom. A camera that is still in use was"
        " retired by mistake: enrol it under another serial.",
    ),
    Reason.OTHER_EPOCH: Explanation(
        "The token opened under a key of its table that the device was never given.",
        "Somebody knows the device's NUC hash and the new keys of another device. Suspend the"
        " device (sma devices suspend SERIAL) and look into it.",
    ),
    Reason.EARLIER_EPOCH: Explanation(
        "The token opened under the key before the last rotation of its table, and the overlap has"
        " ended.",
        "The device has not fetched its new keys. Let it renew, or re-enrol it:"
        " sma devices re-enrol SERIAL.",
    ),
    Reason.OTHER_DERIVATION: Explanation(
        "The same token passed before under the other key derivation.",
        "Somebody made one ciphertext for two devices. The device that passed is in an earlier row"
        " with the same encrypted_nuc_hash: docs/database.md has the query. Suspend it (sma devices"
        " suspend SERIAL) and look into it.",
    ),
}

REPEATS: Mapping[Repeat, Explanation] = {
    Repeat.DUAL_SUBMISSION: Explanation(
        "Another caller submitted this token before, and this caller does for the first time.",
        "This is normal: a picture may go to two aggregation servers.",
    ),
    Repeat.REPLAYED: Explanation(
        "This caller submitted this token before.",
        "The caller asked again for a lost answer, or somebody replays captured tokens. Look at"
        " the caller's other repeats: sma validations list --repeat replayed --caller CALLER.",
    ),
}
