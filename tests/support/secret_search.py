"""Look for a secret in whatever form it may have been written: raw, hex, base64, base64url."""

import base64


def forms_of(secret: bytes) -> set[bytes]:
    """Every form in which these bytes could stand somewhere, alone or inside something longer."""
    forms = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    forms.add(secret.hex(":").encode())
    forms.add(secret.hex(":").upper().encode())
    # Inside something longer, base64 begins at any of three places of its groups of three bytes.
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + secret)
        inner = text[-(-shift * 8 // 6) : len(text) - 4].rstrip(b"=")
        forms |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return {form for form in forms if len(form) >= 8}


def found_in(haystack: bytes, secrets: dict[str, bytes]) -> list[str]:
    """The names of those secrets that stand in there, whole or by their first half."""
    return [
        name
        for name, secret in secrets.items()
        if any(
            form in haystack
            for part in (secret, secret[: len(secret) // 2])
            for form in forms_of(part)
        )
    ]
