"""Updates the statistics for the planner, so that the first queries after a restore are fast.

A dump of before PostgreSQL 18 has none, and autovacuum takes minutes to find the tables; those that
are partitioned it never analyses (https://www.postgresql.org/docs/current/routine-vacuuming.html).
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from pgstash import events, workers
from pgstash.counting import counted
from pgstash.errors import RestoreError, TargetLostError
from pgstash.postgres.restore import copy_loader, target
from pgstash.postgres.restore.copy_loader import Loader
from pgstash.postgres.server import query, time_limits
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.quoting import literal, qualified
from pgstash.throttle import PROGRESS_SECONDS, Throttle
from pgstash.workers import Crew

_SHOWN = 5
# ANALYZE of several tables has a transaction for each. A message for each small one would take as
# long as its work, and a session for a few of them longer.
_PAGES_AT_ONCE = 1000
_TABLES_AT_ONCE = 300
_SECONDS_TO_END = 2.0
_SETTINGS = (
    f"{query.EMPTY_SEARCH_PATH}; SET client_encoding = 'SQL_ASCII';"  # names are bytes
    f"SET lock_timeout = '{time_limits.STATISTICS_LOCK}s'"
)

# ANALYZE of a table reads its children too, and that of a partitioned table analyses all of them.
# If one of them is a foreign table, it would log in to the foreign server.
_TABLES = b"""
    WITH RECURSIVE reads_foreign (oid) AS (
        SELECT c.oid FROM pg_catalog.pg_class c WHERE c.relkind = 'f'
        UNION
        SELECT i.inhparent
        FROM reads_foreign r JOIN pg_catalog.pg_inherits i ON i.inhrelid = r.oid
    ), wanted (oid) AS (
        SELECT c.oid
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'm') AND c.relpersistence <> 't'
              AND n.nspname NOT IN ('pg_catalog', 'information_schema')
              AND <chosen>
    )
    SELECT n.nspname, c.relname, CASE c.relkind WHEN 'p' THEN <most> ELSE c.relpages END,
           pg_catalog.pg_has_role(c.relowner, 'USAGE') OR pg_catalog.pg_has_role(d.datdba, 'USAGE'),
           c.oid IN (SELECT oid FROM reads_foreign)
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
    WHERE c.oid IN (SELECT oid FROM wanted) AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_inherits i
        WHERE i.inhrelid = c.oid AND c.relispartition
              AND i.inhparent IN (SELECT oid FROM wanted)
              AND i.inhparent NOT IN (SELECT oid FROM reads_foreign))
    ORDER BY c.relkind = 'p' DESC, c.relpages DESC, c.oid
"""
EVERY = b"true"
"""The condition for all tables."""

LACKING = b"""(
    EXISTS (SELECT FROM pg_catalog.pg_statistic_ext e WHERE e.stxrelid = c.oid)
    OR NOT EXISTS (SELECT FROM pg_catalog.pg_stats s
                   WHERE s.schemaname = n.nspname AND s.tablename = c.relname))"""
"""The condition for tables without statistics, and for those with extended statistics.

pg_dump 18 does not dump extended ones (https://www.postgresql.org/docs/18/app-pgdump.html)."""

_NAMED = b"n.nspname::pg_catalog.text || '.' || c.relname::pg_catalog.text = ANY (ARRAY[%s])"


@dataclass(frozen=True, slots=True)
class _Tables:
    """Quoted names: ``batches`` to analyse, the others not."""

    batches: list[list[bytes]]
    of_others: list[bytes]
    foreign: list[bytes]


def named(server: Server, names: Sequence[str]) -> bytes:
    """Return the condition for tables with these names ("schema.name")."""
    literals = (literal(name.encode(server.codec, "surrogateescape")) for name in names)
    return _NAMED % b", ".join(literals)


def analyse(into: Server, which: bytes, jobs: int, emit: events.Emit) -> None:
    """Run ANALYZE by ``jobs`` sessions for each table that fulfils the condition ``which``.

    What cannot be analysed is a warning. Raises TargetLostError if a session is lost.
    """
    quiet = target.without_event_triggers(into)
    tables = _tables(quiet, which)
    refused = _analyse(quiet, tables.batches, jobs, emit) if tables.batches else []
    _warn(quiet, tables, refused, emit)


def _tables(server: Server, which: bytes) -> _Tables:
    with target.connected(server, "SQL_ASCII") as session:  # names are bytes
        wanted = _TABLES.replace(b"<most>", b"%d" % _PAGES_AT_ONCE).replace(b"<chosen>", which)
        rows = session.execute(wanted).fetchall()
    tables = _Tables([], [], [])
    room = 0
    for schema, name, size, own, foreign in rows:
        table = qualified(schema, name)
        if foreign or not own:
            (tables.foreign if foreign else tables.of_others).append(table)
            continue
        if size >= room or len(tables.batches[-1]) == _TABLES_AT_ONCE:
            tables.batches.append([])
            room = _PAGES_AT_ONCE
        tables.batches[-1].append(table)
        room -= size
    return tables


def _analyse(
    server: Server, batches: Sequence[Sequence[bytes]], jobs: int, emit: events.Emit
) -> list[tuple[bytes, str]]:
    """Analyse these tables; return those that the server refused, with its reasons."""
    todo: queue.SimpleQueue[Sequence[bytes]] = queue.SimpleQueue()
    for batch in batches:
        todo.put(batch)
    refused: list[tuple[bytes, str]] = []
    done, total, throttle = 0, sum(map(len, batches)), Throttle()
    emit(events.PhaseStarted("statistics", total))
    emit(events.Informed(f"Updating the statistics of {counted(total, 'table')} (ANALYZE)"))
    with copy_loader.opened(
        server, _SETTINGS.encode(), min(jobs, len(batches)), lc_monetary=None, emit=emit
    ) as sessions:
        results = workers.crew(
            [partial(_work, session, todo) for session in sessions],
            stop=partial(_end, sessions),
            seconds_to_end=_SECONDS_TO_END,
            idle=(PROGRESS_SECONDS, _Analysed(0, [])),
        )
        with contextlib.closing(results):
            for result in results:
                done += result.count
                refused += result.refused
                if throttle.is_due():
                    emit(events.StepsDone(done))
    return refused


@dataclass(frozen=True, slots=True)
class _Analysed:
    """A ``count`` of tables; some of them were ``refused``, with a reason."""

    count: int
    refused: Sequence[tuple[bytes, str]]


def _work(session: Loader, todo: queue.SimpleQueue[Sequence[bytes]], crew: Crew[_Analysed]) -> None:
    while not crew.stopping:
        try:
            tables = todo.get_nowait()
        except queue.Empty:
            return
        if not (reason := _refusal(session, tables)):
            crew.hand_over(_Analysed(len(tables), []))
            continue
        # One of them is refused, and those after it were left out.
        for table in tables:
            if len(tables) > 1:
                reason = _refusal(session, [table])
            crew.hand_over(_Analysed(1, [(table, reason)] if reason else []))


def _refusal(session: Loader, tables: Sequence[bytes]) -> str:
    """Analyse tables; return why the server refused one, empty if it did not."""
    try:
        session.run(b"ANALYZE " + b", ".join(tables))
    except TargetLostError:
        raise
    except RestoreError as error:  # such as a function in an expression of an index
        return error.message
    return ""


def _end(sessions: Sequence[Loader]) -> None:
    for session in sessions:
        session.end()


def _warn(
    server: Server, tables: _Tables, refused: Sequence[tuple[bytes, str]], emit: events.Emit
) -> None:
    """Warn of the tables that have no statistics; those with foreign tables never get all."""
    if tables.foreign:
        named = _some(server, tables.foreign)
        reason = "ANALYZE would log in to foreign servers for their children or partitions"
        emit(events.Informed(f"Statistics were not updated for {named}: {reason}"))
    lines = []
    if tables.of_others:
        count = counted(len(tables.of_others), "table")
        lines.append(f"{count} of other roles: {_some(server, tables.of_others)}")
    lines += [f"{_some(server, [table])}: {reason}" for table, reason in refused[:_SHOWN]]
    if len(refused) > _SHOWN:
        lines.append(f"and {len(refused) - _SHOWN} more")
    if lines:
        lines.insert(0, "Some statistics for the planner were not updated. Run ANALYZE for:")
        emit(events.Warned("\n".join(lines), to_do=True))


def _some(server: Server, names: Sequence[bytes]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    shown = (name.decode(server.codec, "replace") for name in names[:_SHOWN])
    return ", ".join(shown) + more
