"""The manifest of a backup: a JSON object that describes the contents of its archive."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from pgstash.errors import CorruptedError, NewerFormatError
from pgstash.format import authenticated_json, typed_json
from pgstash.format.authenticated_json import Authenticate
from pgstash.format.identity import Identity

FORMAT = 1
"""Raised for whatever an older reader must not ignore. It ignores keys that it does not know."""

READER = "0.2.0"
"""The oldest pgstash that reads manifests of FORMAT: raised together with it, and stored.

Early builds of 0.1.0 call them damaged, because those did not ignore unknown keys yet."""

NEWEST = 2
"""The format of backups whose passphrase is wrapped, or that use more rounds of PBKDF2.

Other backups keep FORMAT, so that an older pgstash reads them."""

NEWEST_READER = "0.3.0"

LARGEST = 128 * 1024 * 1024
"""The largest companion in bytes that is read, and so may be stored: a million members fit."""

_VERSION = re.compile(r"\d{1,9}(\.\w{1,20}){0,5}", re.ASCII)

# pg_dump's own three sections, and three parts that it has no name for.
Section = Literal["header", "drops", "pre-data", "data", "sequences", "post-data"]


@dataclass(frozen=True, slots=True)
class Member:
    """One piece of an archive that can be decompressed on its own.

    ``offset`` counts from the start of the compressed stream, which in an encrypted archive is the
    output of decryption. ``stored`` is the compressed length and ``raw`` the plain length, in
    bytes. ``sha256`` is the digest of the compressed bytes; gzip's own CRC-32 covers the plain
    ones. ``section``, ``table`` (an index into the manifest's tables) and ``rows`` are None if the
    member was cut by size, with any content. The section ``header`` sets up the session, ``drops``
    holds the statements that --clean adds and an empty database does not need, and ``sequences``
    sets the sequences. A member with a ``table`` is a whole COPY block of it, so such members can
    be loaded in any order. One without ``rows`` continues in the next member, in the middle of a
    row.
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
    """A table whose rows are in the archive, and their number."""

    schema: str
    name: str
    rows: int


@dataclass(frozen=True, slots=True)
class Extension:
    """An extension of the database, with its version and schema.

    ``database_setting`` names the server setting that allows the extension in this database only.
    """

    name: str
    version: str
    schema: str | None = None
    database_setting: str | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A table of an extension whose rows no dump includes; ``rows`` is an estimate or None."""

    schema: str
    name: str
    extension: str
    rows: int | None


@dataclass(frozen=True, slots=True)
class Database:
    """The source database at the time of the backup.

    ``settings`` are those of ALTER DATABASE … SET. ``system`` is the system identifier of the
    server, None if the server does not disclose it.
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

    @property
    def identity(self) -> Identity:
        """The source that a backup of this database belongs to."""
        return Identity(self.name, self.system, self.host, str(self.port))


@dataclass(frozen=True, slots=True)
class Encryption:
    """How the archive was encrypted: the parameters for openssl, none of them secret."""

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
class Snapshot:
    """The moment of the server just before the snapshot of the dump.

    ``time`` is that of the server's clock, UTC in ISO 8601. ``wal`` is the position in its WAL as
    ``pg_lsn``, on a standby that of the last replayed record; None if it is not disclosed.
    """

    time: str
    wal: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The description of one archive. Sizes are in bytes, times are UTC in ISO 8601.

    ``reader`` is the oldest pgstash that reads this manifest; empty in manifests from before that
    key. ``sha256`` is the digest of the archive object as stored, as ``sha256sum`` prints it.
    ``options`` are those that the user added to pg_dump; some of them make the backup partial.
    ``roles`` and ``extensions`` must exist in a target. ``globals_sha256`` is the digest of the
    plain text of the stored roles, None if there are none, ``privileges_sha256`` that of the script
    of owners and privileges, and ``schema_sha256`` that of the objects in pg_dump's custom format.
    ``globals_passwords`` is whether the stored roles include the hashes of their passwords.
    ``privilege_roles`` are the roles in the script of owners and privileges.
    ``statistics_sha256`` is the digest of the script of statistics for the planner.
    ``left_out`` are tables whose rows pg_dump skips without an error. ``snapshot`` is None if it is
    unknown.
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
    globals_passwords: bool = False
    privileges_sha256: str | None = None
    privilege_roles: Sequence[str] = field(default_factory=list)
    schema_sha256: str | None = None
    statistics_sha256: str | None = None
    left_out: Sequence[LeftOut] = field(default_factory=list)
    snapshot: Snapshot | None = None


# There are tens of thousands of tables and members, so they are rows under one list of columns.
_TABULAR: Mapping[str, type[Table | Member]] = {"tables": Table, "members": Member}


def dump(manifest: Manifest, authenticate: Authenticate | None) -> bytes:
    """Return the manifest as JSON, with an HMAC if there is a key."""
    value: dict[str, Any] = {each.name: getattr(manifest, each.name) for each in fields(manifest)}
    for name in ("database", "compression", "encryption", "snapshot"):
        value[name] = asdict(value[name]) if value[name] else None
    value["extensions"] = [asdict(extension) for extension in manifest.extensions]
    value["left_out"] = [asdict(table) for table in manifest.left_out]
    for name, row in _TABULAR.items():
        columns = [each.name for each in fields(row)]
        value[name] = {
            "columns": columns,
            "rows": [[getattr(item, column) for column in columns] for item in value[name]],
        }
    return authenticated_json.dump(value, authenticate)


def load(text: bytes, authenticate: Authenticate | None) -> Manifest:
    """Read the output of :func:`dump`, also that of a later pgstash in the same format.

    Unknown keys are ignored. That is safe without a key too: gzip's CRC-32 reveals damage, and
    anyone who can write to the store could also write a manifest without such keys. Raises
    CorruptedError if the manifest or its HMAC is wrong, NewerFormatError.
    """
    authenticated_json.check("the manifest", text, authenticate)
    try:
        value = json.loads(text)
        refuse_newer("the manifest", value)
        if value["format"] not in (FORMAT, NEWEST):
            raise CorruptedError(f"the manifest has format {value['format']}, which does not exist")
        ready = {name: typed_json.read_rows(row, value[name]) for name, row in _TABULAR.items()}
        return typed_json.read(Manifest, value, **ready)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptedError(f"the manifest is not valid: {error}") from error


def refuse_newer(what: str, value: Mapping[str, object]) -> None:
    """Raise NewerFormatError if a manifest or the metadata of an archive has a later format.

    Only ``format``, ``reader`` and ``tool`` are read: the meaning of the rest is unknown.
    """
    found = value.get("format")
    if isinstance(found, str) and found.isascii() and found.isdecimal():
        found = int(found[:9])  # metadata are strings
    if type(found) is not int or found <= NEWEST:
        return
    reader, tool = value.get("reader"), value.get("tool")
    message = f"{what} has format {found}; this pgstash reads {NEWEST}"
    if isinstance(reader, str) and _VERSION.fullmatch(reader):
        raise NewerFormatError(
            f"{message}, and pgstash {reader} or newer is required",
            hint=f"Install pgstash {reader} or newer, and read the backup with it.",
        )
    wrote = f" ({tool:.40})" if isinstance(tool, str) else ""
    raise NewerFormatError(message, hint=f"Use the pgstash that wrote it{wrote} or a newer one.")
