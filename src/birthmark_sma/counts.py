"""A number with its noun, in singular or plural.

Messages, command output and the dashboard use it. A message must never join a number and a plural
itself, because it then reads "1 devices".
"""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with thousands separators and its noun, such as "1 key" and "2 keys".

    `plural` is the plural of the noun, where that is not the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
