"""The record of a backup or a drill that failed: what its metadata hold, and what its JSON does.

The metadata are readable without a key, like those of a backup. The message may quote names or
values of the database, so it is in the JSON alone, which is encrypted if backups are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from pgstash.errors import CorruptedError
from pgstash.format import authenticated_json, metadata, typed_json
from pgstash.format.authenticated_json import Authenticate
from pgstash.format.identity import Identity

FORMAT = 1
"""Raised for whatever an older reader must not ignore. It ignores keys that it does not know."""

LARGEST = 64 * 1024
"""Bytes that a stored record has at most; one that is larger is not read."""

LONGEST_TEXT = 2000
"""Characters of the message, and of the hint."""

_LONGEST_NAME = 100
_LONGEST_NUMBER = 12

Operation = Literal["backup", "drill"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that failed, as its record describes it.

    ``started`` is UTC in ISO 8601, ``seconds`` how long the run took, ``phase`` what it was doing.
    ``error`` is the class of the error, ``exit_code`` the exit status. ``backup`` is the backup of
    a drill; empty if none was found. ``machine`` is the host that pgstash ran on. Texts have no
    secrets.
    """

    format: int
    tool: str
    operation: Operation
    id: str
    started: str
    seconds: float
    phase: str
    error: str
    exit_code: int
    message: str
    hint: str
    backup: str
    machine: str


def dump(failure: Failure, authenticate: Authenticate | None) -> bytes:
    """Return the record as JSON, with an HMAC if there is a key."""
    return authenticated_json.dump(asdict(failure), authenticate)


def facts(failure: Failure, source: Identity) -> dict[str, str]:
    """Return the metadata of a record, encoded."""
    values = {
        "id": failure.id,
        "operation": failure.operation,
        "error": failure.error,
        "exit-code": str(failure.exit_code),
        "phase": failure.phase,
        "seconds": f"{failure.seconds:.1f}",
        "tool": failure.tool,
        **({"backup": failure.backup} if failure.backup else {}),
        **source.metadata(),
    }
    return metadata.encoded(values)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the metadata of a record hold; None and empty texts are unknown."""

    operation: Operation
    error: str
    exit_code: int | None
    phase: str
    seconds: float | None
    backup: str


def read_facts(known: Mapping[str, str]) -> Facts:
    """Read decoded metadata, whoever wrote them."""
    code, seconds = known.get("exit-code", ""), known.get("seconds", "")
    is_code = code.isascii() and code.isdecimal() and len(code) <= _LONGEST_NUMBER
    return Facts(
        operation="drill" if known.get("operation") == "drill" else "backup",
        error=known.get("error", "")[:_LONGEST_NAME],
        exit_code=int(code) if is_code else None,
        phase=known.get("phase", "")[:_LONGEST_NAME],
        seconds=seconds_of(seconds),
        backup=known.get("backup", "")[:_LONGEST_NAME],
    )


def seconds_of(text: str, longest: int = _LONGEST_NUMBER) -> float | None:
    """Return a duration that was written as ``12.3``; None for any other text, or a longer one."""
    whole, _, part = text.partition(".")
    digits = whole + part
    if not (whole and digits.isascii() and digits.isdecimal() and len(text) <= longest):
        return None
    return float(text)


def load(what: str, text: bytes, authenticate: Authenticate | None) -> Failure:
    """Return the record that :func:`dump` wrote. Raises CorruptedError."""
    authenticated_json.check(what, text, authenticate)
    try:
        return typed_json.read(Failure, json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptedError(f"{what} is not the record of a failure: {error}") from error
