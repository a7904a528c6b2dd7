"""The record of a drill that passed: checks, figures, durations and versions, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pgstash.format import authenticated_json
from pgstash.format.authenticated_json import Authenticate

FORMAT = 1
"""Raised for whatever an older reader must not ignore. It ignores keys that it does not know."""

READER = "0.1.0"
"""The oldest pgstash that reads proofs of this format: raised together with it, and stored."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a drill; ``found`` is the finding in words, with its figure."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True, slots=True)
class Proof:
    """A backup was restored and checked. Times are UTC in ISO 8601, durations in seconds.

    ``reader`` is the oldest pgstash that reads this proof, ``sha256`` the digest of the archive as
    it was read, and ``restore_seconds`` the measured recovery time. ``scratch`` is the place of the
    restore, ``server`` the version of its server and ``client`` that of pg_dump.
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


def dump(proof: Proof, authenticate: Authenticate | None) -> bytes:
    """Return the proof as JSON, with an HMAC if there is a key."""
    return authenticated_json.dump(asdict(proof), authenticate)
