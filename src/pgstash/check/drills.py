"""The preflight of drills: is there a place to restore into, and can it take the source."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pgstash import events
from pgstash.check.finding import Finding
from pgstash.errors import PgstashError
from pgstash.postgres.dump import globals as globals_dump
from pgstash.postgres.restore import bound_extensions
from pgstash.postgres.scratch import readiness, scratch_database, throwaway_server
from pgstash.postgres.server import login
from pgstash.postgres.server.connection import Server

_TOPIC = "drills"
_NONE_WANTED = "VERIFY_INTERVAL is not set, so restores are not tested automatically"
_DATABASE = "pgstash_check"


@dataclass(frozen=True, slots=True)
class Plan:
    """Whether the service runs drills, and on which server; None for a throwaway server.

    Of a ``partial`` dump a drill may not need all roles and extensions of the source.
    """

    wanted: bool
    scratch_url: str | None = field(repr=False)
    environment: Mapping[str, str]
    partial: bool = False


def look(plan: Plan, source: Server | None) -> Finding:
    """Return whether a drill has a place to restore into, which can take the ``source``.

    A throwaway server is started and stopped for that.
    """
    if not plan.wanted:
        return Finding(_TOPIC, "skipped", _NONE_WANTED)
    if plan.scratch_url is None and source is None:
        return Finding(_TOPIC, "skipped", "the version of the server is unknown")
    warned: list[str] = []

    def listen(event: events.Event) -> None:
        if isinstance(event, events.Warned):
            warned.append(event.message)

    try:
        required = globals_dump.required(source) if source else globals_dump.Required((), ())
        with _place(plan, source, required, listen) as (server, where):
            if source and server.major < source.major:
                warned.append(
                    f"PostgreSQL {server.version} is older than the source: a restore may need "
                    "what only newer servers have"
                )
            wanted = globals_dump.Required((), ()) if plan.partial else required
            readiness.refuse(server, wanted)
    except PgstashError as error:
        return Finding.of(_TOPIC, error)
    return Finding(_TOPIC, "warning" if warned else "ok", "; ".join([where, *warned]))


@contextlib.contextmanager
def _place(
    plan: Plan, source: Server | None, required: globals_dump.Required, emit: events.Emit
) -> Iterator[tuple[Server, str]]:
    """Yield the server that a drill would restore on, and words for it."""
    if plan.scratch_url is not None:
        server = scratch_database.look(scratch_database.isolated(plan.scratch_url))
        if source is not None:
            scratch_database.keep_off(server, source, emit)
        where = f"{server.database.host}:{server.database.port}"
        yield server, f"restore on PostgreSQL {server.version} at {where}"
    elif source is not None:
        settings = bound_extensions.server_settings(required.extensions, _DATABASE)
        with throwaway_server.running(
            source.major, source.database.bytes, settings, plan.environment, emit
        ) as made:
            where = f"restore into a throwaway server of PostgreSQL {made.version}"
            yield login.inspect(made.url), where
