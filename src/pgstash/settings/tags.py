"""The tags of stored objects, as one variable holds them: ``team=data,cost=42``.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html
"""

from __future__ import annotations

import re

_MOST = 10
_LONGEST_KEY = 128
_LONGEST_VALUE = 256
_ALLOWED = re.compile(r"[\w +\-=.:/@]*")


def parse(text: str) -> list[tuple[str, str]]:
    """Return the pairs of key and value. Raises ValueError with the reason."""
    pairs: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (each.strip() for each in part.partition("="))
        if not equals or not key:
            raise ValueError("must be pairs of a key, '=' and a value")
        if not (_ALLOWED.fullmatch(key) and _ALLOWED.fullmatch(value)):
            raise ValueError("may only contain letters, digits, blanks and + - = . _ : / @")
        if len(key) > _LONGEST_KEY or len(value) > _LONGEST_VALUE:
            raise ValueError("has a key of more than 128 characters, or a value of more than 256")
        if key.lower().startswith("aws:"):
            raise ValueError("has a key that begins with aws:, which only AWS may set")
        if key in pairs:
            raise ValueError(f"has the key {key} more than once")
        pairs[key] = value
    if len(pairs) > _MOST:
        raise ValueError("has more than 10 tags")
    return list(pairs.items())
