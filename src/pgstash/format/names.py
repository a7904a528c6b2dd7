"""The names of stored objects, composed and parsed.

An archive is ``<prefix>/backup_20260131_020000.sql.gz``, and its manifest is
``<prefix>/backup_20260131_020000.<id>.manifest.json.gz``. Both end in ``.enc`` if they are
encrypted. The id is random, and the archive's metadata repeats it, so a manifest that a failed
backup left is never mistaken for that of a later backup of the same name. ``….<id>.globals.gz``
holds the roles, ``….<id>.privileges.sql.gz`` what gives the objects their owners and privileges,
``….<id>.schema.gz`` all objects in pg_dump's custom format, ``….<id>.statistics.sql.gz`` the
statistics for the planner, and
``….<id>.proof_YYYYMMDD_HHMMSS.json.gz`` the record of a drill that the backup passed at that time.
``….<id>.key.age`` and ``….<id>.key.kms``, which have none of these endings, are the passphrase of
an encrypted backup, wrapped for the public keys and the keys of AWS KMS among its recipients.

``….<id>.failure.json.gz`` is the record of a backup or a drill that failed, which began at the time
in its name. It belongs to no archive. ``….<id>.failure.key.age`` and ``….<id>.failure.key.kms`` are
its wrapped passphrase.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

# Only ASCII digits: a name with the digits of another script is not one of pgstash.
ARCHIVE_NAME = re.compile(r"(backup_\d{8}_\d{6})\.sql\.gz(\.enc)?", re.ASCII)
_COMPANION_NAME = re.compile(
    r"(backup_\d{8}_\d{6})\.([0-9a-f]{16})\."
    r"(?:(manifest\.json|globals|privileges\.sql|schema|statistics\.sql|proof_(\d{8}_\d{6})\.json)"
    r"\.gz(\.enc)?|key\.(age|kms))",
    re.ASCII,
)

_FAILURE_NAME = re.compile(
    r"(backup_\d{8}_\d{6})\.([0-9a-f]{16})\.failure\.(?:json\.gz(?:\.enc)?|key\.(age|kms))",
    re.ASCII,
)

AGE_ENDING, KMS_ENDING = ".key.age", ".key.kms"

_TIME_FORMAT = "%Y%m%d_%H%M%S"
_BASE_FORMAT = f"backup_{_TIME_FORMAT}"

Kind = Literal["manifest", "globals", "privileges", "schema", "statistics", "proof", "key", "kms"]
"""The kinds of companions of an archive: its manifest, the roles of the server, the owners and
privileges of its objects, its objects in pg_dump's custom format, the statistics for the planner,
the record of a drill that passed, and the passphrase, wrapped for public keys or by KMS."""

_KINDS: Mapping[str, Kind] = {
    "manifest.json": "manifest",
    "globals": "globals",
    "privileges.sql": "privileges",
    "schema": "schema",
    "statistics.sql": "statistics",
}


def base_name(started: datetime) -> str:
    """Return the name of a backup without endings: ``backup_YYYYMMDD_HHMMSS`` in UTC."""
    return started.astimezone(UTC).strftime(_BASE_FORMAT)


def started_of(base: str) -> datetime | None:
    """Return the time in a base name; None if that day or hour does not exist."""
    try:
        return datetime.strptime(base, _BASE_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return None


def archive_name(base: str, *, encrypted: bool) -> str:
    """Return the name of a backup's archive."""
    return f"{base}.sql.gz" + (".enc" if encrypted else "")


def manifest_name(base: str, backup_id: str, *, encrypted: bool) -> str:
    """Return the name of a backup's manifest."""
    return f"{base}.{backup_id}.manifest.json.gz" + (".enc" if encrypted else "")


def globals_name(base: str, backup_id: str, *, encrypted: bool) -> str:
    """Return the name of the stored roles of a backup."""
    return f"{base}.{backup_id}.globals.gz" + (".enc" if encrypted else "")


def privileges_name(base: str, backup_id: str, *, encrypted: bool) -> str:
    """Return the name of the stored owners and privileges of a backup.

    Among the names of one backup, sorted, that of the archive stays the last one in ``.sql.gz``. A
    pattern for archives alone is ``backup_????????_??????.sql.gz``.
    """
    return f"{base}.{backup_id}.privileges.sql.gz" + (".enc" if encrypted else "")


def schema_name(base: str, backup_id: str, *, encrypted: bool) -> str:
    """Return the name of the stored objects of a backup in pg_dump's custom format."""
    return f"{base}.{backup_id}.schema.gz" + (".enc" if encrypted else "")


def statistics_name(base: str, backup_id: str, *, encrypted: bool) -> str:
    """Return the name of the stored statistics for the planner."""
    return f"{base}.{backup_id}.statistics.sql.gz" + (".enc" if encrypted else "")


def proof_name(base: str, backup_id: str, proven: datetime, *, encrypted: bool) -> str:
    """Return the name of the record of a drill that passed at ``proven``."""
    moment = proven.astimezone(UTC).strftime(_TIME_FORMAT)
    return f"{base}.{backup_id}.proof_{moment}.json.gz" + (".enc" if encrypted else "")


def key_name(base: str, backup_id: str) -> str:
    """Return the name of the passphrase of a backup, wrapped for public keys."""
    return f"{base}.{backup_id}{AGE_ENDING}"


def kms_name(base: str, backup_id: str) -> str:
    """Return the name of the passphrase of a backup, wrapped by keys of KMS."""
    return f"{base}.{backup_id}{KMS_ENDING}"


def failure_name(base: str, failure_id: str, *, encrypted: bool) -> str:
    """Return the name of the record of a failed run."""
    return f"{base}.{failure_id}.failure.json.gz" + (".enc" if encrypted else "")


def failure_key_name(base: str, failure_id: str, ending: str) -> str:
    """Return the name of the wrapped passphrase of such a record; it has one of the endings."""
    return f"{base}.{failure_id}.failure{ending}"


@dataclass(frozen=True, slots=True)
class FailureName:
    """The parts of a name of a failed run: its start, its id, and which object of it this is."""

    started: datetime
    id: str
    kind: Literal["record", "key", "kms"]


def failure_of(name: str) -> FailureName | None:
    """Parse the name of an object of a failed run; None if it is not one of pgstash."""
    found = _FAILURE_NAME.fullmatch(name)
    started = started_of(found[1]) if found else None
    if found is None or started is None:
        return None
    kinds: Mapping[str | None, Literal["record", "key", "kms"]] = {"age": "key", "kms": "kms"}
    return FailureName(started, found[2], kinds.get(found[3], "record"))


@dataclass(frozen=True, slots=True)
class CompanionName:
    """The parts of a companion's name.

    ``archive`` is the name of its archive, and ``proven`` the time of the drill that a proof
    records.
    """

    archive: str
    id: str
    kind: Kind
    proven: datetime | None


def companion_of(name: str) -> CompanionName | None:
    """Parse the name of a companion; None if it is not one of pgstash."""
    found = _COMPANION_NAME.fullmatch(name)
    if not found or not started_of(found[1]):
        return None
    if found[3] is None:
        wrapped: Kind = "key" if found[6] == "age" else "kms"
        return CompanionName(archive_name(found[1], encrypted=True), found[2], wrapped, None)
    kind = _KINDS.get(found[3], "proof")
    proven = None
    if found[4]:
        proven = started_of(f"backup_{found[4]}")
        if proven is None:
            return None
    archive = archive_name(found[1], encrypted=found[5] is not None)
    return CompanionName(archive, found[2], kind, proven)
