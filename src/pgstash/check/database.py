"""The preflight of the database: login, client tools, rights, and what stands in between."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pgstash.check.finding import Finding, clock, skipped
from pgstash.errors import DatabaseError, PgstashError, PoolerError, PoolTooSmallError
from pgstash.postgres import extensions, required, rights, situation, source, tools
from pgstash.postgres.required import Requirement
from pgstash.postgres.rights import Rights, some
from pgstash.postgres.situation import Situation
from pgstash.postgres.source import Server

_OF_RIGHTS = ("tables", "sequences", "large objects", "row security")
_OF_SITUATION = ("pooler", "standby", "database TLS", "database clock")
_BEFORE_SITUATION = ("login", "client tools", *_OF_RIGHTS)
_OBJECTS = (
    "New ones need it too: best let the backup run as a member of the role that owns them. "
    "BYPASSRLS does not cover large objects, nor does pg_read_all_data before PostgreSQL 19."
)
_WEAK_MODES = ("disable", "allow", "prefer")


@dataclass(frozen=True, slots=True)
class Plan:
    """Which database; ``environment`` is what client tools may choose from.

    ``options`` are those of pg_dump, ``required`` the tables that must be in a backup.
    """

    source_url: str
    environment: Mapping[str, str]
    clock: Callable[[], float]
    options: Sequence[str] = ()
    required: Sequence[Requirement] = ()


def look(plan: Plan) -> Generator[Finding, None, Server | None]:
    """Yield what is found; return the server, if one let us in."""
    try:
        server = source.look(plan.source_url)
    except (PoolerError, PoolTooSmallError) as error:
        yield Finding.of("pooler", error)
        others = (*_BEFORE_SITUATION, *_OF_SITUATION[1:])
        yield from skipped(others, "the pooler in between is not fit for a backup")
        return None
    except DatabaseError as error:
        yield Finding.of("login", error)
        others = (*_BEFORE_SITUATION[1:], *_OF_SITUATION)
        yield from skipped(others, "there was no login to look with")
        return None
    database, connection = server.database, server.connection
    user = connection.parameters.get("user", "")
    yield Finding(
        "login",
        "ok",
        f"PostgreSQL {server.version} at {database.host}:{database.port} as {user}, "
        f"database {database.name}",
    )
    yield from _tools(server, plan.environment)
    yield from _rights(server, plan.options)
    if plan.required:
        yield _required(server, plan.required)
    yield from _situation(server, plan.clock)
    return server


def _tools(server: Server, environment: Mapping[str, str]) -> Iterator[Finding]:
    try:
        found = tools.find(server.major, environment.get("PATH", ""), environment)
        tools.refuse_unknown_parameters(found, server.connection, environment)
    except PgstashError as error:
        yield Finding.of("client tools", error)
        return
    if found.major == server.major:
        yield Finding("client tools", "ok", f"pg_dump {found.version} in {found.folder}")
        return
    yield Finding(
        "client tools",
        "warning",
        f"pg_dump {found.version} in {found.folder}, newer than the server",
        f"Backups are complete, and a restore into PostgreSQL {server.major} may stumble over "
        f"settings that it does not know. Install the client of PostgreSQL {server.major}.",
    )


def _rights(server: Server, options: Sequence[str]) -> Iterator[Finding]:
    try:
        found = rights.look(server, options)
        closed = rights.closed_mappings(server, options)
        of_extensions = extensions.look(server, options)
    except DatabaseError as error:
        yield Finding.of(_OF_RIGHTS[0], error)
        yield from skipped(_OF_RIGHTS[1:], "the rights could not be looked at")
        return
    yield _tables(found)
    yield _sequences(found)
    yield _large_objects(found)
    yield _row_security(found)
    if found.subscriptions and not found.superuser:
        yield Finding(
            "subscriptions",
            "warning",
            f"pg_dump leaves {found.subscriptions} out: only a superuser may read them",
            "Keep their CREATE SUBSCRIPTION statements elsewhere, or back up as a superuser.",
        )
    if closed:
        yield Finding("user mappings", "warning", *rights.told_of_mappings(closed))
    for problem, remedy in extensions.told_of(of_extensions):
        yield Finding("extensions", "warning", problem, remedy)


def _required(server: Server, requirements: Sequence[Requirement]) -> Finding:
    try:
        required.look_up(server, requirements)
    except PgstashError as error:
        return Finding.of("required tables", error)
    return Finding("required tables", "ok", f"all {len(requirements)} are there")


def _tables(found: Rights) -> Finding:
    lacking = found.unreadable_tables
    if not (lacking or found.closed_schemas):
        return Finding("tables", "ok", f"{found.role} may read all {found.tables}")
    parts = []
    if found.closed_schemas:
        parts.append(f"may not use the schemas {some(found.closed_schemas)}")
    if lacking:
        parts.append(f"may not read {len(lacking)} of {found.tables}: {some(lacking)}")
    return Finding(
        "tables",
        "failure",
        f"{found.role} {' and '.join(parts)}",
        "\n".join(found.grants("TABLE", lacking, found.closed_schemas)),
    )


def _sequences(found: Rights) -> Finding:
    lacking = found.unreadable_sequences
    if not lacking:
        return Finding("sequences", "ok", f"{found.role} may read all {found.sequences}")
    return Finding(
        "sequences",
        "failure",
        f"{found.role} may not read {len(lacking)} of {found.sequences}: {some(lacking)}",
        "\n".join(found.grants("SEQUENCE", lacking)),
    )


def _large_objects(found: Rights) -> Finding:
    if not found.unreadable_object_count:
        return Finding("large objects", "ok", f"{found.role} may read all {found.large_objects}")
    oids = [str(oid) for oid in found.unreadable_objects]
    return Finding(
        "large objects",
        "failure",
        f"{found.role} may not read {found.unreadable_object_count} of {found.large_objects}: "
        f"{some(oids, found.unreadable_object_count)}",
        "\n".join([*found.object_grants, _OBJECTS]),
    )


def _row_security(found: Rights) -> Finding:
    if not found.guarded_tables:
        return Finding("row security", "ok", f"hides nothing from {found.role}")
    return Finding(
        "row security",
        "failure",
        f"policies bind {found.role}, and pg_dump refuses: {some(found.guarded_tables)}",
        f"ALTER ROLE {found.role} BYPASSRLS;",
    )


def _situation(server: Server, now: Callable[[], float]) -> Iterator[Finding]:
    try:
        found = situation.look(server, now)
    except DatabaseError as error:
        yield Finding.of(_OF_SITUATION[0], error)
        yield from skipped(_OF_SITUATION[1:], "the server could not be asked")
        return
    yield _pooler(server)
    yield from _standby(found)
    yield _tls(server, found)
    yield clock("database clock", found.clock_ahead, "the database's clock")


def _pooler(server: Server) -> Finding:
    if not server.pooled:
        return Finding("pooler", "ok", "none: the server itself answers")
    return Finding(
        "pooler",
        "warning",
        "a connection pooler answers in the server's place; it keeps one session for each login",
        "Backups work, as long as it pools by session. Let DATABASE_URL lead to the server itself "
        "if you can: many poolers cut long sessions, and a backup takes up to DUMP_JOBS + 4 of "
        "the pool's.",
    )


def _standby(found: Situation) -> Iterator[Finding]:
    if not found.standby:
        yield Finding("standby", "ok", "none: this is a primary")
        return
    settings = (
        f"max_standby_streaming_delay = {found.standby_delay}, "
        f"hot_standby_feedback = {'on' if found.standby_feedback else 'off'}"
    )
    if found.standby_feedback or found.standby_delay == "-1":
        yield Finding("standby", "ok", f"this is one, and it bears with long queries: {settings}")
    else:
        yield Finding(
            "standby",
            "warning",
            f"this is one, and may cancel a long dump: {settings}",
            "On the standby set hot_standby_feedback = on, or raise max_standby_streaming_delay "
            "beyond the length of a backup (-1: wait for ever), or back up the primary.",
        )
    if found.unlogged_tables:
        yield Finding(
            "unlogged tables",
            "warning",
            f"{found.unlogged_tables}, whose rows are not on a standby and so not in its backups",
            "Back up the primary, or ALTER TABLE … SET LOGGED what is to be kept.",
        )


def _tls(server: Server, found: Situation) -> Finding:
    mode = server.connection.parameters.get("sslmode", "prefer")
    if situation.is_local(server.connection):
        return Finding("database TLS", "ok", "not needed: the connection stays on this machine")
    if not found.encrypted:
        return Finding(
            "database TLS",
            "warning",
            f"off (sslmode={mode}): whoever is in between reads the password's proof and all data",
            "Turn ssl on in the server, and put sslmode=verify-full into DATABASE_URL.",
        )
    if mode in _WEAK_MODES:
        return Finding(
            "database TLS",
            "warning",
            f"on, and sslmode={mode} would go on without it",
            "Put sslmode=verify-full, or at least sslmode=require, into DATABASE_URL.",
        )
    return Finding("database TLS", "ok", f"on, sslmode={mode}")
