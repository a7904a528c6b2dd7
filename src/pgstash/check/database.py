"""The preflight of the database: login, client tools, privileges, and the connection."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pgstash.check.finding import Finding, clock, skipped
from pgstash.counting import counted
from pgstash.errors import DatabaseError, PgstashError, PoolerError, PoolTooSmallError
from pgstash.postgres.dump import extension_omissions, required_tables
from pgstash.postgres.dump import globals as role_dump
from pgstash.postgres.dump.required_tables import Requirement
from pgstash.postgres.preflight import privileges, topology
from pgstash.postgres.preflight.privileges import Privileges, some
from pgstash.postgres.preflight.topology import Topology
from pgstash.postgres.server import login
from pgstash.postgres.server.connection import Password, Server
from pgstash.postgres.tools import installed

_OF_RIGHTS = ("tables", "sequences", "large objects", "row security")
_OF_SITUATION = ("pooler", "standby", "database TLS", "database clock")
_BEFORE_SITUATION = ("login", "client tools", *_OF_RIGHTS)
_OBJECTS = (
    "New large objects need it too, so preferably run backups as a member of the role that owns "
    "them. BYPASSRLS does not cover large objects, nor does pg_read_all_data before PostgreSQL 19."
)
_WEAK_MODES = ("disable", "allow", "prefer")


@dataclass(frozen=True, slots=True)
class Plan:
    """Which database to check; client tools get their environment from ``environment``.

    ``options`` are those of pg_dump, ``required`` the tables that must be in a backup, and
    ``globals_passwords`` is whether it is to hold the passwords of roles. ``source_password``
    returns the password for one login, if it is not in ``source_url``.
    """

    source_url: str
    environment: Mapping[str, str]
    clock: Callable[[], float]
    options: Sequence[str] = ()
    required: Sequence[Requirement] = ()
    globals_passwords: bool = False
    source_password: Password | None = field(default=None, repr=False)


def look(plan: Plan) -> Generator[Finding, None, Server | None]:
    """Yield the findings; return the server, if the login succeeded."""
    try:
        server = login.inspect(plan.source_url, plan.source_password)
    except (PoolerError, PoolTooSmallError) as error:
        yield Finding.of("pooler", error)
        others = (*_BEFORE_SITUATION, *_OF_SITUATION[1:])
        yield from skipped(others, "the connection pooler is not suitable for backups")
        return None
    except DatabaseError as error:
        yield Finding.of("login", error)
        others = (*_BEFORE_SITUATION[1:], *_OF_SITUATION)
        yield from skipped(others, "the login failed")
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
    if plan.globals_passwords:
        yield _role_passwords(server)
    yield from _situation(server, plan.clock)
    return server


def _tools(server: Server, environment: Mapping[str, str]) -> Iterator[Finding]:
    try:
        found = installed.find(server.major, environment.get("PATH", ""), environment)
        installed.refuse_unknown_parameters(found, server.connection, environment)
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
        f"Backups are complete, but a restore into PostgreSQL {server.major} may fail at settings "
        f"that it does not know. Install the client of PostgreSQL {server.major}.",
    )


def _rights(server: Server, options: Sequence[str]) -> Iterator[Finding]:
    try:
        found = privileges.check(server, options)
        closed = privileges.closed_mappings(server, options)
        omissions = extension_omissions.find(server, options)
    except DatabaseError as error:
        yield Finding.of(_OF_RIGHTS[0], error)
        yield from skipped(_OF_RIGHTS[1:], "the privileges could not be checked")
        return
    yield _tables(found)
    yield _sequences(found)
    yield _large_objects(found)
    yield _row_security(found)
    if found.subscriptions and not found.superuser:
        yield Finding(
            "subscriptions",
            "warning",
            f"pg_dump leaves out {counted(found.subscriptions, 'subscription')}: only a superuser "
            "may read them",
            "Keep their CREATE SUBSCRIPTION statements elsewhere, or back up as a superuser.",
        )
    if closed:
        yield Finding("user mappings", "warning", *privileges.closed_mappings_warning(closed))
    for problem, remedy in extension_omissions.warnings(omissions):
        yield Finding("extensions", "warning", problem, remedy)


def _required(server: Server, requirements: Sequence[Requirement]) -> Finding:
    try:
        required_tables.look_up(server, requirements)
    except PgstashError as error:
        return Finding.of("required tables", error)
    return Finding("required tables", "ok", f"found {counted(len(requirements), 'table')}")


def _role_passwords(server: Server) -> Finding:
    try:
        problem = role_dump.passwords_problem(server)
    except DatabaseError as error:
        return Finding.of("role passwords", error)
    if problem:
        return Finding("role passwords", "warning", *problem)
    return Finding("role passwords", "ok", "may be read, and are stored with the roles")


def _tables(found: Privileges) -> Finding:
    lacking = found.unreadable_tables
    if not (lacking or found.closed_schemas):
        return Finding("tables", "ok", _may_read(found.role, found.tables))
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


def _sequences(found: Privileges) -> Finding:
    lacking = found.unreadable_sequences
    if not lacking:
        return Finding("sequences", "ok", _may_read(found.role, found.sequences))
    return Finding(
        "sequences",
        "failure",
        f"{found.role} may not read {len(lacking)} of {found.sequences}: {some(lacking)}",
        "\n".join(found.grants("SEQUENCE", lacking)),
    )


def _large_objects(found: Privileges) -> Finding:
    if not found.unreadable_object_count:
        return Finding("large objects", "ok", _may_read(found.role, found.large_objects))
    oids = [str(oid) for oid in found.unreadable_objects]
    return Finding(
        "large objects",
        "failure",
        f"{found.role} may not read {found.unreadable_object_count} of {found.large_objects}: "
        f"{some(oids, found.unreadable_object_count)}",
        "\n".join([*found.object_grants, _OBJECTS]),
    )


def _may_read(role: str, number: int) -> str:
    return f"{role} may read all {number:,}" if number else "none in this database"


def _row_security(found: Privileges) -> Finding:
    if not found.guarded_tables:
        return Finding("row security", "ok", f"hides nothing from {found.role}")
    return Finding(
        "row security",
        "failure",
        f"policies apply to {found.role}, so pg_dump refuses to read {some(found.guarded_tables)}",
        f"ALTER ROLE {found.role} BYPASSRLS;",
    )


def _situation(server: Server, now: Callable[[], float]) -> Iterator[Finding]:
    try:
        found = topology.check(server, now)
    except DatabaseError as error:
        yield Finding.of(_OF_SITUATION[0], error)
        yield from skipped(_OF_SITUATION[1:], "a query failed")
        return
    yield _pooler(server)
    yield from _standby(found)
    yield _tls(server, found)
    yield clock("database clock", found.clock_ahead, "the database's clock")


def _pooler(server: Server) -> Finding:
    if not server.pooled:
        return Finding("pooler", "ok", "none: this is a direct connection")
    return Finding(
        "pooler",
        "warning",
        "a connection pooler is in use; it keeps one session for each login",
        "Backups work while it pools by session. If you can, connect DATABASE_URL to the server "
        "directly: many poolers end long sessions, and a backup takes up to DUMP_JOBS + 4 sessions "
        "of the pool.",
    )


def _standby(found: Topology) -> Iterator[Finding]:
    if not found.standby:
        yield Finding("standby", "ok", "none: this is a primary")
        return
    settings = (
        f"max_standby_streaming_delay = {found.standby_delay}, "
        f"hot_standby_feedback = {'on' if found.standby_feedback else 'off'}"
    )
    if found.standby_feedback or found.standby_delay == "-1":
        yield Finding("standby", "ok", f"this is a standby that allows long queries: {settings}")
    else:
        yield Finding(
            "standby",
            "warning",
            f"this is a standby, and it may cancel a long dump: {settings}",
            "On the standby set hot_standby_feedback = on, or raise max_standby_streaming_delay "
            "above the duration of a backup (-1: no limit), or back up the primary.",
        )
    if found.unlogged_tables:
        yield Finding(
            "unlogged tables",
            "warning",
            f"{counted(found.unlogged_tables, 'table')}: their rows are not on a standby, so its "
            "backups do not contain them",
            "Back up the primary, or run ALTER TABLE … SET LOGGED on tables that matter.",
        )


def _tls(server: Server, found: Topology) -> Finding:
    mode = server.connection.parameters.get("sslmode", "prefer")
    if topology.is_local(server.connection):
        return Finding("database TLS", "ok", "not needed: the connection stays on this machine")
    if not found.encrypted:
        return Finding(
            "database TLS",
            "warning",
            f"off (sslmode={mode}): anyone on the network path can read all data and the "
            "password exchange",
            "Turn ssl on in the server, and add sslmode=verify-full to DATABASE_URL.",
        )
    if mode in _WEAK_MODES:
        return Finding(
            "database TLS",
            "warning",
            f"on, but sslmode={mode} permits a connection without it",
            "Add sslmode=verify-full, or at least sslmode=require, to DATABASE_URL.",
        )
    return Finding("database TLS", "ok", f"on, sslmode={mode}")
