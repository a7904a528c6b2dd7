"""The record of a drill that passed: what was checked, figures, durations and versions, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

FORMAT = 1
"""Raised by what an older reader must not ignore. It ignores keys that it does not know."""

READER = "0.1.0"
"""The oldest pgstash that reads this format: raised together with it, and stored beside it."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a drill looked at; ``found`` is a sentence with the figure in it."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True, slots=True)
class Proof:
    """A backup was restored and looked at. Times are UTC in ISO 8601, durations in seconds.

    ``reader`` is the oldest pgstash that reads this format, ``sha256`` the digest of the archive
    as it was read, ``restore_seconds`` the measured recovery time, ``scratch`` where it was tried,
    ``server`` the version that it was restored into and ``client`` that of pg_dump.
    """

    format: int
    reader: str
    tool: str
    archive: str
    id: str
    sha256: str
    at: str
    scratch: str
    server: str
    client: str
    seconds: float
    restore_seconds: float
    raw_bytes: int
    stored_bytes: int
    tables: int
    rows: int
    checks: Sequence[Check]
    warnings: Sequence[str]


def dump(proof: Proof, authenticate: Callable[[bytes], str] | None) -> bytes:
    """Return the proof as JSON, with an ``hmac`` over all that precedes it if there is a key."""
    value = asdict(proof)
    lines = (f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
    body = ("{\n" + ",\n".join(lines)).encode("ascii")
    if authenticate is None:
        return body + b"\n}\n"
    return body + f',\n"hmac": "{authenticate(body)}"\n}}\n'.encode("ascii")
