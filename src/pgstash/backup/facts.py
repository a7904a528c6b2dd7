"""What is said of one backup: in its manifest, in the metadata of its objects, to its hooks."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote

from pgstash import __version__, anomaly, events
from pgstash import manifest as manifests
from pgstash.identity import Identity
from pgstash.pipeline import encryption
from pgstash.pipeline.tally import split_name
from pgstash.postgres.source import Server
from pgstash.postgres.tools import ClientTools

# S3 keeps metadata in headers: ASCII, one line, 2 KB together
# (https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html).
_HEADER_SAFE = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
_LONGEST_HEADER = 255


def encryption_of(key: encryption.Key | None) -> manifests.Encryption | None:
    """Return what openssl must be told, and nothing secret."""
    if key is None:
        return None
    return manifests.Encryption(
        cipher="aes-256-cbc",
        kdf="pbkdf2-hmac-sha256",
        rounds=encryption.ROUNDS,
        salt=key.salt.hex(),
    )


def tables(rows_by_name: Mapping[bytes, int], codec: str) -> list[manifests.Table]:
    """Return the tables that were counted, their names decoded."""
    found = []
    for qualified, rows in rows_by_name.items():
        schema, table = (part.decode(codec, "surrogateescape") for part in split_name(qualified))
        found.append(manifests.Table(schema, table, rows))
    return found


def identity_of(database: manifests.Database) -> Identity:
    """Return of which source the backup of a database is."""
    return Identity(database.name, database.system, database.host, str(database.port))


def encoded(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return metadata as they are stored."""
    return {key: header(value) for key, value in metadata.items()}


def metadata(  # noqa: PLR0913 - what is known before the first byte
    server: Server,
    client: ClientTools,
    started: datetime,
    backup_id: str,
    *,
    encrypted: bool,
    of_source: Mapping[str, str],
) -> dict[str, str]:
    """Return what a reader needs to know of an archive when the manifest is not at hand.

    ``of_source`` is what tells its source from others.
    """
    values = {
        "timestamp": iso(started),
        **of_source,
        "id": backup_id,
        "format": str(manifests.FORMAT),
        "reader": manifests.READER,
        "tool": f"pgstash {__version__}",
        "server": server.version,
        "client": client.version,
        "encoding": server.database.encoding,
        "compression": "gzip",
        "encryption": f"aes-256-cbc pbkdf2 {encryption.ROUNDS}" if encrypted else "none",
    }
    return encoded(values)


def facts(manifest: manifests.Manifest, seconds: float) -> dict[str, str]:
    """Return what a reader may want to know of a backup without its key."""
    size = figures(manifest)
    values = {
        "id": manifest.id,
        "raw-bytes": str(size.raw_bytes),
        "stored-bytes": str(manifest.stored_bytes),
        "tables": str(size.tables),
        "rows": str(size.rows),
        "seconds": f"{seconds:.1f}",
        "server": manifest.server,
        **identity_of(manifest.database).metadata(),
    }
    return encoded(values)


def figures(manifest: manifests.Manifest) -> anomaly.Figures:
    """Return how large a backup is."""
    return anomaly.Figures(
        raw_bytes=manifest.raw_bytes,
        tables=len(manifest.tables),
        rows=sum(table.rows for table in manifest.tables),
    )


def told_to_verify(server: Server, location: str, name: str) -> dict[str, str]:
    """Return what the hook that reads the script finds in its environment."""
    return {
        "PGSTASH_HOOK": "verify",
        "PGSTASH_BACKUP": name,
        "PGSTASH_LOCATION": location,
        "PGSTASH_HOST": server.database.host,
        "PGSTASH_DATABASE": server.database.name,
    }


def told_of_failure(event: events.BackupFailed) -> dict[str, str]:
    """Return what the hook at the end finds in its environment after a failure."""
    return {
        "PGSTASH_STATUS": "failure",
        "PGSTASH_BACKUP": event.name,
        "PGSTASH_SECONDS": f"{event.seconds:.1f}",
        "PGSTASH_ERROR": event.error,
        "PGSTASH_EXIT_CODE": str(event.exit_code),
        "PGSTASH_HOST": event.host,
        "PGSTASH_DATABASE": event.database,
    }


def told_of_success(manifest: manifests.Manifest, location: str, seconds: float) -> dict[str, str]:
    """Return what the hook at the end finds in its environment after a success."""
    return {
        "PGSTASH_STATUS": "success",
        "PGSTASH_BACKUP": manifest.archive,
        "PGSTASH_LOCATION": location,
        "PGSTASH_SECONDS": f"{seconds:.1f}",
        "PGSTASH_RAW_BYTES": str(manifest.raw_bytes),
        "PGSTASH_STORED_BYTES": str(manifest.stored_bytes),
        "PGSTASH_EXIT_CODE": "0",
        "PGSTASH_HOST": manifest.database.host,
        "PGSTASH_DATABASE": manifest.database.name,
    }


def header(value: str) -> str:
    """Percent-encode what a header cannot carry: non-ASCII, controls, spaces at the ends."""
    inner = _HEADER_SAFE if value == value.strip() else _HEADER_SAFE.strip()
    return quote(value, safe=inner, errors="surrogateescape")[:_LONGEST_HEADER]


def iso(moment: datetime) -> str:
    """Return a moment as ISO 8601 in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
