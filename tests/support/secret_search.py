"""Search for secrets in data, in every usual encoding: raw, hex, base64, base64url."""

import base64


def forms_of(secret: bytes) -> set[bytes]:
    """Return every encoding of these bytes, alone or inside a longer value.

    Forms shorter than 8 bytes are left out, because they match by chance.
    """
    forms = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    forms.add(secret.hex(":").encode())
    forms.add(secret.hex(":").upper().encode())
    # Base64 encodes groups of three bytes, so a secret inside a longer value has three encodings.
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + secret)
        inner = text[-(-shift * 8 // 6) : len(text) - 4].rstrip(b"=")
        forms |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return {form for form in forms if len(form) >= 8}


def found_in(haystack: bytes, secrets: dict[str, bytes]) -> list[str]:
    """Return the names of the secrets that `haystack` contains, whole or their first half."""
    return [
        name
        for name, secret in secrets.items()
        if any(
            form in haystack
            for part in (secret, secret[: len(secret) // 2])
            for form in forms_of(part)
        )
    ]
