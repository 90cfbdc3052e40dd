"""List the problem types of the API, and what a caller does about each.

`birthmark_sma.web.problems` and `web.transport.protocol` raise them. A test compares the two lists.
"""

REMEDIES: dict[str, tuple[str, str, str]] = {
    "unknown-table": (
        "400",
        "the token names a table that this authority does not have. This *is* a verdict: FAIL",
        "Reject. Check that the token reached the manufacturer that provisioned the device.",
    ),
    "unknown-key-index": (
        "400",
        "the token names a key that its table does not have. This *is* a verdict: FAIL",
        "Reject. A camera whose tokens all end here has the wrong number of keys in its settings.",
    ),
    "not-http": ("400", "the bytes are not an HTTP/1.1 request", "Correct the client."),
    "not-one-host": (
        "400",
        "the Host field is missing or there are two",
        "Send exactly one. Look at what a proxy adds.",
    ),
    "unauthenticated": (
        "401",
        "no access key, or one that is wrong, revoked or expired",
        "Send `Authorization: Bearer sma_...`. Ask the operator for a key. No verdict.",
    ),
    "insufficient-scope": (
        "403",
        "the access key is for other routes",
        "Use a key of the scope that `detail` names. No verdict.",
    ),
    "enrolment-refused": (
        "403",
        "the enrolment key is used up, or is for another device family",
        "Ask the operator for a key. The serial is still free.",
    ),
    "renewal-refused": (
        "403",
        "the signature is wrong, or this certificate cannot be renewed (any more)",
        "`detail` has the cause. Sign with the key of `device_certificate`. For a certificate that"
        " expired too long ago or was revoked, ask the operator for a re-enrolment.",
    ),
    "renewal-time-refused": (
        "403",
        "`requested_at` is more than 5 minutes from the authority's time",
        "Set the clock, then sign again with the new time. `detail` has the difference.",
    ),
    "device-not-active": (
        "403",
        "the device is suspended, revoked or retired",
        "Ask the operator. Try again after a day at the earliest.",
    ),
    "foreign-form": (
        "403",
        "a form of the dashboard was sent from another page",
        "Open the dashboard again and repeat the action.",
    ),
    "not-found": ("404", "the path does not exist", "Compare the path with this page."),
    "crl-not-published": (
        "404, 503",
        "the root has signed no list yet (404), or the intermediate has not (503)",
        "503: repeat after `Retry-After`. 404: the operator runs `sma ca publish-crl`.",
    ),
    "unknown-certificate": (
        "404",
        "this authority has issued no device certificate with this id",
        "Compare the id: the issuer's key identifier and the serial number (RFC 9773).",
    ),
    "unknown-access-key": (
        "404",
        "no access key that is not revoked has this name or id",
        "Take the id from the list of callers.",
    ),
    "unknown-act": ("404", "no act has this id", "Take the id from the list of acts."),
    "unknown-device": ("404", "no device has this serial", "Compare the serial."),
    "unknown-flag": (
        "404",
        "the device has no flag that waits for review",
        "Somebody else may have reviewed it: look at the acts.",
    ),
    "unknown-key-table": (
        "404",
        "the authority has no key table with this id",
        "Table ids begin at 0. `detail` says how many there are.",
    ),
    "unknown-validation": (
        "404",
        "the audit log has no such validation, or no longer",
        "Search for it again.",
    ),
    "method-not-allowed": ("405", "the path has other methods", "`Allow` lists them."),
    "request-timeout": (
        "408",
        "the request did not arrive completely in time",
        "Repeat. Send the body without pauses.",
    ),
    "device-already-provisioned": (
        "409",
        "the serial is registered, perhaps in another spelling",
        "If your answer was lost, repeat with the same `Idempotency-Key` within 24 hours."
        " If the device lost its key, the operator allows another certificate: `sma devices"
        " re-enrol`. Otherwise choose another serial.",
    ),
    "re-enrolment-refused": (
        "409",
        "the device may be re-enrolled, but not as it is now: it is suspended or revoked, or the"
        " serial is spelled in another way",
        "`detail` says which. Send the spelling that it names, or ask the operator.",
    ),
    "public-key-in-use": (
        "409",
        "another device has this public key",
        "Make a new key pair. Look for two devices with one image of a disk.",
    ),
    "nuc-hash-in-use": (
        "409",
        "another device has this NUC hash",
        "Measure again. Look for two devices with one image of a disk.",
    ),
    "token-already-submitted": (
        "409",
        "you submitted this token before, and the operator allows one answer for each caller",
        "Use the verdict that you got then. If it was lost, ask the operator. No verdict.",
    ),
    "device-status": (
        "409",
        "the status of the device does not allow the act",
        "Read the device. A revocation is final.",
    ),
    "access-key-name": (
        "409",
        "an access key in force has this name or certificate",
        "Revoke that key, or choose another name.",
    ),
    "precondition-failed": (
        "412",
        "somebody changed the object since you read it",
        "Read it again, and decide again.",
    ),
    "withdrawn": (
        "410",
        "this authority takes no certificate bundles",
        "Send the camera token to `/validate` or `/validate-legacy`.",
    ),
    "body-too-large": (
        "413",
        "the body is larger than the operator allows",
        "Send smaller batches. `detail` has the limit.",
    ),
    "target-too-long": ("414", "the request line has more than 8,192 bytes", "Shorten it."),
    "unsupported-media-type": (
        "415",
        "the body is not declared as JSON, or is compressed",
        "Send `Content-Type: application/json` once, and no `Content-Encoding`.",
    ),
    "misdirected-request": (
        "421",
        "the server is open on loopback, and Host is another name",
        "Use `localhost`, `127.0.0.1`, or the name in `SMA_PUBLIC_URL`.",
    ),
    "invalid-request": (
        "422",
        "fields are missing, unknown or malformed",
        "Correct the fields in `errors`. Do not repeat the request unchanged.",
    ),
    "key-refused": (
        "422",
        "the public key is of a kind that is not accepted, or it is weak or known",
        "`detail` has the cause. Make a new key pair.",
    ),
    "certificate-refused": (
        "422",
        "`device_certificate` is not one certificate in PEM",
        "Send the certificate as the authority issued it.",
    ),
    "csr-refused": (
        "422",
        "the CSR is malformed, is not signed by its key, or names another device",
        "`detail` has the cause.",
    ),
    "serial-refused": (
        "422",
        "the serial is empty, too long, or the name of a CA",
        "Choose another serial.",
    ),
    "description-refused": (
        "422",
        "the device family or app version cannot be used",
        "Use 1 to 50 printable characters.",
    ),
    "idempotency-key-reused": (
        "422",
        "the `Idempotency-Key` belongs to another request",
        "Draw a new key for each new request; repeat a request byte for byte.",
    ),
    "unusable-filter": (
        "422",
        "a parameter of the query is unknown, or has a value that it cannot have",
        "Correct the field that `detail` names.",
    ),
    "access-key-refused": (
        "422",
        "an access key cannot have these properties together",
        "Correct what `detail` names.",
    ),
    "rate-limited": (
        "429",
        "you reached a rate limit",
        "Send nothing until `Retry-After` is over, then repeat. No verdict.",
    ),
    "head-too-large": (
        "431",
        "the head has more than 16,384 bytes or 100 fields",
        "Send fewer or shorter fields.",
    ),
    "internal-error": (
        "500",
        "a fault inside the authority",
        "Repeat later. Send the operator the `request_id`. No verdict.",
    ),
    "transfer-coding": (
        "501",
        "a transfer coding other than `chunked`",
        "Send `Content-Length`, or `Transfer-Encoding: chunked` alone.",
    ),
    "database-unavailable": (
        "503",
        "the database does not answer",
        "Repeat after `Retry-After`. No verdict.",
    ),
    "renewal-outdated": (
        "503",
        "another renewal of the same device came between",
        "Repeat after `Retry-After`, with a new time and signature.",
    ),
    "pool-full": (
        "503",
        "too many requests wait",
        "Repeat after `Retry-After`, with fewer requests in parallel. No verdict.",
    ),
    "shutting-down": (
        "503",
        "this process stops",
        "Repeat: another process answers. No verdict.",
    ),
    "keys-changed": (
        "503",
        "the key-encryption key or the intermediate was just replaced",
        "Repeat after `Retry-After`. If it stays, restart the server with the new secret.",
    ),
    "tables-rotated": (
        "503",
        "key tables were rotated again and again while the device was made. Nothing was registered",
        "Repeat after `Retry-After`, with the same `Idempotency-Key`.",
    ),
    "issuer-expired": (
        "503",
        "the intermediate CA has expired",
        "No device can be provisioned. The operator has to act.",
    ),
    "http-version": ("505", "not HTTP/1.1 or HTTP/1.0", "Speak HTTP/1.1."),
}
"""Problem type to its statuses, its cause, and what the caller does."""
