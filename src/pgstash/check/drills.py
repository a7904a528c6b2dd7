"""The preflight of drills: is there a place to restore into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pgstash.check.finding import Finding
from pgstash.errors import PgstashError
from pgstash.postgres.scratch import scratch_database
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools import installed

_TOPIC = "drills"
_NONE_WANTED = "VERIFY_INTERVAL is not set, so restores are not tested automatically"


@dataclass(frozen=True, slots=True)
class Plan:
    """Whether the service runs drills, and on which server; None for a throwaway server."""

    wanted: bool
    scratch_url: str | None = field(repr=False)
    environment: Mapping[str, str]


def look(plan: Plan, source: Server | None) -> Finding:
    """Return whether a drill has a place to restore into; ``source`` determines its version."""
    if not plan.wanted:
        return Finding(_TOPIC, "skipped", _NONE_WANTED)
    try:
        if plan.scratch_url is not None:
            server = scratch_database.look(scratch_database.isolated(plan.scratch_url))
            where = f"{server.database.host}:{server.database.port}"
            return Finding(_TOPIC, "ok", f"restore on PostgreSQL {server.version} at {where}")
        if source is None:
            return Finding(_TOPIC, "skipped", "the version of the server is unknown")
        found = installed.find_server(
            source.major, plan.environment.get("PATH", ""), plan.environment
        )
    except PgstashError as error:
        return Finding.of(_TOPIC, error)
    return Finding(_TOPIC, "ok", f"restore into a throwaway server of PostgreSQL {found.version}")
