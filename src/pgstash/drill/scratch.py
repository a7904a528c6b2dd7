"""The scratch of a drill: a database on a throwaway server, or on a server for drills."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pgstash import events
from pgstash.errors import DatabaseError
from pgstash.format.manifest import Manifest
from pgstash.postgres.restore import bound_extensions
from pgstash.postgres.scratch import scratch_database, throwaway_server
from pgstash.postgres.server import login
from pgstash.postgres.server.connection import Password

# On a server of its own no name is taken.
_DATABASE = "pgstash_drill"


@dataclass(frozen=True, slots=True)
class Place:
    """Where scratch may be.

    ``scratch_url`` is a server where databases may be created; None for a throwaway server.
    ``source_url`` is the source, which must not be used as scratch; None if it is unknown. If it
    has no password, ``source_password`` returns one for each login.
    """

    scratch_url: str | None = field(repr=False)
    source_url: str | None = field(repr=False)
    source_password: Password | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Scratch:
    """Where to restore to: the new ``database`` is created via ``url``; ``where`` is for people."""

    url: str
    database: str
    where: str


@contextlib.contextmanager
def opened(
    place: Place,
    manifest: Manifest,
    environment: Mapping[str, str],
    emit: events.Emit,
    warn: events.Emit,
) -> Iterator[Scratch]:
    """Provide scratch for a backup for the length of the block, and remove it at the end.

    ``environment`` is where the programs of a server are found; ``warn`` receives what the proof
    records. Raises ScratchError.
    """
    if place.scratch_url is None:
        major = int(manifest.server.partition(".")[0])
        size = manifest.database.bytes
        settings = bound_extensions.server_settings(manifest.extensions, _DATABASE)
        with throwaway_server.running(major, size, settings, environment, emit) as server:
            where = f"a throwaway server of PostgreSQL {server.version}"
            yield Scratch(server.url, _DATABASE, where)
        return
    url = scratch_database.isolated(place.scratch_url)
    shared = scratch_database.look(url)
    if place.source_url is not None:
        try:
            source = login.inspect(place.source_url, place.source_password)
            scratch_database.keep_off(shared, source, warn)
        except DatabaseError as error:
            emit(events.Notice(f"Cannot check that scratch is not the source: {error.message}"))
    with scratch_database.name(shared, emit) as database:
        host = f"{shared.database.host}:{shared.database.port}"
        yield Scratch(url, database, f"the database {database} on {host}")
