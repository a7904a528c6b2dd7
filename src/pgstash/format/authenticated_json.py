"""JSON objects that end in an HMAC over all bytes before it: the form of manifests and proofs."""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Callable, Mapping

from pgstash.errors import CorruptedError

Authenticate = Callable[[bytes], str]
"""Returns the HMAC of a text, in hex."""

_HMAC = re.compile(rb',\n"hmac": "([0-9a-f]{64})"\n}\n\Z')


def dump(value: Mapping[str, object], authenticate: Authenticate | None) -> bytes:
    """Return ``value`` as JSON in ASCII, one line per key, with an ``hmac`` if there is a key.

    The HMAC covers the exact bytes before its own line, so checking it needs no re-encoding.
    """
    lines = (f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
    body = ("{\n" + ",\n".join(lines)).encode("ascii")
    if authenticate is None:
        return body + b"\n}\n"
    return body + f',\n"hmac": "{authenticate(body)}"\n}}\n'.encode("ascii")


def check(what: str, text: bytes, authenticate: Authenticate | None) -> None:
    """Raise CorruptedError unless the HMAC of a text that :func:`dump` returned is right.

    With a key the HMAC must be present. Without one it must be absent, because it could not be
    checked. ``what`` is the subject of the message.
    """
    match = _HMAC.search(text)
    if authenticate is None:
        if match:
            raise CorruptedError(f"{what} has an HMAC, and there is no key to check it with")
    elif not match or not hmac.compare_digest(
        authenticate(text[: match.start()]).encode(), match[1]
    ):
        raise CorruptedError(f"the HMAC of {what} does not match: it was changed")
