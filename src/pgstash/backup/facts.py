"""The facts of one backup, as its manifest, its metadata and its hooks need them."""

from __future__ import annotations

from collections.abc import Mapping

from pgstash import __version__, events
from pgstash.backup.job import Job
from pgstash.format import manifest as manifests
from pgstash.format import metadata as stored_metadata
from pgstash.format.iso_time import iso
from pgstash.pipeline import encryption
from pgstash.pipeline.sql_scanner import split_name
from pgstash.postgres.dump.moment import Moment
from pgstash.postgres.tools.installed import ClientTools


def encryption_of(key: encryption.Key | None, rounds: int) -> manifests.Encryption | None:
    """Return the parameters that openssl needs, none of them secret."""
    if key is None:
        return None
    return manifests.Encryption(
        cipher="aes-256-cbc",
        kdf="pbkdf2-hmac-sha256",
        rounds=rounds,
        salt=key.salt.hex(),
    )


def snapshot_of(moment: Moment | None) -> manifests.Snapshot | None:
    """Return the moment of the snapshot as the manifest records it."""
    return manifests.Snapshot(moment.time, moment.wal) if moment else None


def tables(rows_by_name: Mapping[bytes, int], codec: str) -> list[manifests.Table]:
    """Return the tables whose rows were counted, their names decoded."""
    found = []
    for qualified, rows in rows_by_name.items():
        schema, table = (part.decode(codec, "surrogateescape") for part in split_name(qualified))
        found.append(manifests.Table(schema, table, rows))
    return found


def metadata(job: Job, client: ClientTools, key: encryption.Key | None) -> dict[str, str]:
    """Return the metadata of an archive, which describe it if the manifest is not at hand."""
    sealing = job.sealing
    values = {
        "timestamp": iso(job.started),
        **job.others.metadata(job.started),
        "id": job.id,
        "format": str(sealing.format),
        "reader": sealing.reader,
        "tool": f"pgstash {__version__}",
        "server": job.server.version,
        "client": client.version,
        "encoding": job.server.database.encoding,
        "compression": "gzip",
        "encryption": f"aes-256-cbc pbkdf2 {sealing.rounds}" if key else "none",
        **sealing.metadata(key),
    }
    return stored_metadata.encoded(values)


def hook_environment_to_verify(job: Job) -> dict[str, str]:
    """Return the variables of the hook that reads the script."""
    return {
        "PGSTASH_HOOK": "verify",
        "PGSTASH_BACKUP": job.name,
        "PGSTASH_LOCATION": job.location,
        "PGSTASH_HOST": job.server.database.host,
        "PGSTASH_DATABASE": job.server.database.name,
    }


def hook_environment_after_failure(event: events.BackupFailed) -> dict[str, str]:
    """Return the variables of the hook at the end after a failure."""
    following = {"PGSTASH_NEXT_ATTEMPT": iso(event.next_attempt)} if event.next_attempt else {}
    return following | {
        "PGSTASH_STATUS": "failure",
        "PGSTASH_BACKUP": event.name,
        "PGSTASH_SECONDS": f"{event.seconds:.1f}",
        "PGSTASH_ERROR": event.error,
        "PGSTASH_EXIT_CODE": str(event.exit_code),
        "PGSTASH_REPEATED": str(event.repeated).lower(),
        "PGSTASH_HOST": event.host,
        "PGSTASH_DATABASE": event.database,
    }


def hook_environment_after_success(
    manifest: manifests.Manifest, location: str, seconds: float
) -> dict[str, str]:
    """Return the variables of the hook at the end after a success."""
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
