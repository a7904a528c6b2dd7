"""Reports what a restore would do, for a dry run."""

from __future__ import annotations

from pgstash import events
from pgstash.postgres.restore.request import Request
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools.installed import ClientTools
from pgstash.repository.archive import Archive
from pgstash.restore.table_selection import Selection


def planned(
    archive: Archive,
    selected: Selection | None,
    server: Server,
    client: ClientTools,
    request: Request,
) -> events.RestorePlanned:
    """Return the event that describes the restore of an archive, or of its ``selected`` tables."""
    manifest = archive.manifest
    raw_bytes = manifest.raw_bytes if manifest else None
    tables = len(manifest.tables) if manifest else None
    rows = sum(table.rows for table in manifest.tables) if manifest else None
    if selected:
        raw_bytes, tables, rows = selected.raw_bytes, len(selected.names), selected.rows
    return events.RestorePlanned(
        name=archive.name,
        host=server.database.host,
        database=server.database.name if request.create is None else request.create,
        created=request.create is not None,
        server=server.version,
        client=client.version,
        verified=manifest is not None,
        raw_bytes=raw_bytes,
        tables=tables,
        rows=rows,
    )
