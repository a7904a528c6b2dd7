"""The manifest, a JSON value that says what is in an archive and where; and the names of objects.

Beside ``<prefix>/backup_20260131_020000.sql.gz`` lies
``<prefix>/backup_20260131_020000.<id>.manifest.json.gz``; both end in ``.enc`` when
encrypted. The id is random, and the archive's metadata repeats it: a manifest that was
left by a backup that failed is never taken for the one of a later backup of the same name.
``….<id>.globals.gz`` holds roles, ``….<id>.schema.gz`` all objects in pg_dump's custom format, and
``….<id>.proof_YYYYMMDD_HHMMSS.json.gz`` the record of a drill that the backup passed at that time.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal

from pgstash import typed
from pgstash.errors import CorruptedError, NewerFormatError

FORMAT = 1
"""Raised by what an older reader must not ignore. It ignores keys that it does not know."""

READER = "0.1.0"
"""The oldest pgstash that reads this format: raised together with it, and stored beside it."""

LARGEST = 128 * 1024 * 1024
"""Bytes of what is read, and so may be stored, beside an archive: a million members fit."""

# A digit is one of ASCII: other scripts have digits too, and names like these are not ours.
ARCHIVE_NAME = re.compile(r"(backup_\d{8}_\d{6})\.sql\.gz(\.enc)?", re.ASCII)
_COMPANION_NAME = re.compile(
    r"(backup_\d{8}_\d{6})\.([0-9a-f]{16})\."
    r"(manifest\.json|globals|schema|proof_(\d{8}_\d{6})\.json)\.gz(\.enc)?",
    re.ASCII,
)

_TIME_FORMAT = "%Y%m%d_%H%M%S"
_BASE_FORMAT = f"backup_{_TIME_FORMAT}"

_VERSION = re.compile(r"\d{1,9}(\.\w{1,20}){0,5}", re.ASCII)

_HMAC = re.compile(rb',\n"hmac": "([0-9a-f]{64})"\n}\n\Z')

# Three that pg_dump has no name for, and its own three.
Section = Literal["header", "drops", "pre-data", "data", "sequences", "post-data"]

Kind = Literal["manifest", "globals", "schema", "proof"]
"""What lies beside an archive: what says what is in it, the roles that it names, the objects that
it makes (in pg_dump's custom format), and the record of a drill that passed."""


_KINDS: Mapping[str, Kind] = {
    "manifest.json": "manifest",
    "globals": "globals",
    "schema": "schema",
}


def base_name(started: datetime) -> str:
    """Return a backup's name without endings: ``backup_YYYYMMDD_HHMMSS`` in UTC."""
    return started.astimezone(UTC).strftime(_BASE_FORMAT)


def started_of(base: str) -> datetime | None:
    """Return the time that a base name says; None where there is no such day or hour."""
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
    """Return the name of the roles that go with a backup.

    Not ``.sql.gz``: whoever looks for ``backup_*.sql.gz`` wants the archives.
    """
    return f"{base}.{backup_id}.globals.gz" + (".enc" if encrypted else "")


def schema_name(base: str, backup_id: str, *, encrypted: bool) -> str:
    """Return the name of the table of contents that goes with a backup."""
    return f"{base}.{backup_id}.schema.gz" + (".enc" if encrypted else "")


def proof_name(base: str, backup_id: str, proven: datetime, *, encrypted: bool) -> str:
    """Return the name of the record of a drill that passed at ``proven``."""
    moment = proven.astimezone(UTC).strftime(_TIME_FORMAT)
    return f"{base}.{backup_id}.proof_{moment}.json.gz" + (".enc" if encrypted else "")


@dataclass(frozen=True, slots=True)
class CompanionName:
    """What the name of an object beside an archive says.

    ``archive`` is the name of that archive, ``proven`` the time of the drill that a proof records.
    """

    archive: str
    id: str
    kind: Kind
    proven: datetime | None


def companion_of(name: str) -> CompanionName | None:
    """Read the name of what lies beside an archive; None where it is not one of ours."""
    found = _COMPANION_NAME.fullmatch(name)
    if not found or not started_of(found[1]):
        return None
    kind = _KINDS.get(found[3], "proof")
    proven = None
    if found[4]:
        proven = started_of(f"backup_{found[4]}")
        if proven is None:
            return None
    archive = archive_name(found[1], encrypted=found[5] is not None)
    return CompanionName(archive, found[2], kind, proven)


@dataclass(frozen=True, slots=True)
class Member:
    """One piece of an archive that decompresses by itself.

    ``offset`` counts from the start of the compressed stream, ``stored`` is its compressed
    and ``raw`` its plain length, in bytes; in an encrypted archive the compressed stream is
    what decryption yields. ``sha256`` is the digest of the compressed bytes; for the plain ones
    gzip's own CRC-32 is in them. ``section``, ``table`` (an index into the manifest's tables) and
    ``rows`` are None where a member is cut by size and holds a bit of everything. ``header``
    is what sets the session up, ``drops`` what --clean adds and an empty database has no use for,
    ``sequences`` what sets them. A member with a ``table`` is a COPY block of it, whole, so that
    such members can be loaded in any order; one without ``rows`` goes on in the next, in the middle
    of a row.
    """

    offset: int
    stored: int
    raw: int
    sha256: str
    section: Section | None = None
    table: int | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose rows are in the archive, and how many."""

    schema: str
    name: str
    rows: int


@dataclass(frozen=True, slots=True)
class Extension:
    """An extension of the database, in its version, and the schema that it was made in.

    ``database_setting`` is the setting of the server that allows it in this database alone.
    """

    name: str
    version: str
    schema: str | None = None
    database_setting: str | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A table of an extension whose rows are in no dump; ``rows`` is an estimate, or None."""

    schema: str
    name: str
    extension: str
    rows: int | None


@dataclass(frozen=True, slots=True)
class Database:
    """The source database as it was; ``settings`` are those of ALTER DATABASE … SET.

    ``system`` is the system identifier of its server, None if the server does not tell it.
    """

    name: str
    host: str
    port: int
    encoding: str
    collate: str
    ctype: str
    locale_provider: str
    locale: str | None
    lc_monetary: str
    settings: Sequence[str]
    bytes: int
    icu_rules: str | None = None
    system: str | None = None


@dataclass(frozen=True, slots=True)
class Encryption:
    """How the archive was encrypted: what openssl must be told, and nothing secret."""

    cipher: str
    kdf: str
    rounds: int
    salt: str


@dataclass(frozen=True, slots=True)
class Compression:
    """How the archive was compressed."""

    method: str
    level: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about one archive. Sizes are in bytes, times UTC in ISO 8601.

    ``reader`` is the oldest pgstash that reads this format; empty in manifests from before it.
    ``sha256`` is the digest of the archive object as it is stored: what ``sha256sum`` says.
    ``options`` are those that the user added to pg_dump: with some the backup is a partial one.
    ``roles`` and ``extensions`` are what a target must have, ``globals_sha256`` is the digest of
    the plain text of the roles stored beside the archive, None where there are none, and
    ``schema_sha256`` that of the objects in pg_dump's custom format. ``left_out`` are tables whose
    rows pg_dump leaves out without an error.
    """

    format: int
    reader: str = field(default="", kw_only=True)
    tool: str
    id: str
    archive: str
    started: str
    finished: str
    server: str
    client: str
    database: Database
    raw_bytes: int
    stored_bytes: int
    sha256: str
    compression: Compression
    encryption: Encryption | None
    tables: Sequence[Table]
    members: Sequence[Member]
    options: Sequence[str] = field(default_factory=list)
    roles: Sequence[str] = field(default_factory=list)
    extensions: Sequence[Extension] = field(default_factory=list)
    globals_sha256: str | None = None
    schema_sha256: str | None = None
    left_out: Sequence[LeftOut] = field(default_factory=list)


# Tables and members come in their ten thousands: as rows under one line of column names.
_TABULAR: Mapping[str, type[Table | Member]] = {"tables": Table, "members": Member}


def dump(manifest: Manifest, authenticate: Callable[[bytes], str] | None) -> bytes:
    """Return the manifest as JSON, with an ``hmac`` over all that precedes it if there is a key.

    The HMAC covers the exact bytes before its own line, so that no re-encoding is needed to
    check it.
    """
    value: dict[str, Any] = {each.name: getattr(manifest, each.name) for each in fields(manifest)}
    for name in ("database", "compression", "encryption"):
        value[name] = asdict(value[name]) if value[name] else None
    value["extensions"] = [asdict(extension) for extension in manifest.extensions]
    value["left_out"] = [asdict(table) for table in manifest.left_out]
    for name, row in _TABULAR.items():
        columns = [each.name for each in fields(row)]
        value[name] = {
            "columns": columns,
            "rows": [[getattr(item, column) for column in columns] for item in value[name]],
        }
    lines = (f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
    body = ("{\n" + ",\n".join(lines)).encode("ascii")
    if authenticate is None:
        return body + b"\n}\n"
    return body + f',\n"hmac": "{authenticate(body)}"\n}}\n'.encode("ascii")


def load(text: bytes, authenticate: Callable[[bytes], str] | None) -> Manifest:
    """Read what :func:`dump` wrote, or what a later pgstash wrote in the same format.

    With a key the HMAC must be there; without one it must not, since nobody could check it.
    Keys that are not known are ignored. That is as safe without a key: damage shows in gzip's
    CRC-32, and whoever can write to the store can write a manifest without such keys as well.
    Raises CorruptedError where it, or its HMAC, is wrong, NewerFormatError.
    """
    match = _HMAC.search(text)
    if authenticate is None:
        if match:
            raise CorruptedError("the manifest has an HMAC, and there is no key to check it with")
    elif not match or not hmac.compare_digest(
        authenticate(text[: match.start()]).encode(), match[1]
    ):
        raise CorruptedError("the manifest's HMAC does not match: it was changed")
    try:
        value = json.loads(text)
        refuse_newer("the manifest", value)
        if value["format"] != FORMAT:
            raise CorruptedError(f"the manifest has format {value['format']}, which never was")
        ready = {name: typed.read_rows(row, value[name]) for name, row in _TABULAR.items()}
        return typed.read(Manifest, value, **ready)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptedError(f"the manifest is not one of pgstash's: {error}") from error


def refuse_newer(what: str, value: Mapping[str, object]) -> None:
    """Raise NewerFormatError if a manifest, or the metadata of an archive, has a later format.

    Nothing but ``format``, ``reader`` and ``tool`` is read: the rest may mean anything.
    """
    found = value.get("format")
    if isinstance(found, str) and found.isascii() and found.isdecimal():
        found = int(found[:9])  # metadata are strings
    if type(found) is not int or found <= FORMAT:
        return
    reader, tool = value.get("reader"), value.get("tool")
    message = f"{what} has format {found}; this pgstash reads {FORMAT}"
    if isinstance(reader, str) and _VERSION.fullmatch(reader):
        raise NewerFormatError(
            f"{message}, and pgstash {reader} or newer is needed",
            hint=f"Install pgstash {reader} or newer, and read the backup with that.",
        )
    wrote = f" ({tool:.40})" if isinstance(tool, str) else ""
    raise NewerFormatError(message, hint=f"Use the pgstash that wrote it{wrote}, or a newer one.")
