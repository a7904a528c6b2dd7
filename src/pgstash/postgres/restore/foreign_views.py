"""Materialized views in a restore: a foreign server that does not answer must not fail it.

Such a view is filled with rows of another server, which may be down or unknown to the target; a
drill must not log in there at all. So its REFRESH may fail, or is left out. The view is empty then,
and a warning names it with the statement that fills it. Views that read an empty one are treated
alike.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence

from pgstash.events import Emit, Warned
from pgstash.postgres.restore import target
from pgstash.postgres.restore.copy_loader import Loader
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.quoting import literal

_SHOWN = 5

# Whether the view reads a foreign table or an empty view, or calls dblink: directly, or through
# other views, partitions and children. What other functions read is not in any catalog.
_READS_FOREIGN = b"""
    EXISTS (
        WITH RECURSIVE reader (oid) AS (
            SELECT c.oid FROM pg_catalog.pg_class c
            WHERE c.relkind = 'f'
                  OR c.relkind = 'm' AND NOT c.relispopulated
                     AND c.oid <> <name>::pg_catalog.regclass
            UNION ALL
            SELECT r.ev_class
            FROM pg_catalog.pg_extension e
            JOIN pg_catalog.pg_depend f
                 ON f.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
                    AND f.refobjid = e.oid AND f.deptype = 'e'
                    AND f.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
            JOIN pg_catalog.pg_depend d
                 ON d.refclassid = f.classid AND d.refobjid = f.objid
                    AND d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
            JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
            WHERE e.extname = 'dblink'
            UNION
            SELECT edge.reader
            FROM reader JOIN (
                SELECT r.ev_class, d.refobjid
                FROM pg_catalog.pg_rewrite r
                JOIN pg_catalog.pg_depend d
                     ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
                        AND d.objid = r.oid
                        AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                WHERE r.ev_type = '1' AND r.ev_class <> d.refobjid
                UNION ALL
                SELECT i.inhparent, i.inhrelid FROM pg_catalog.pg_inherits i
            ) AS edge (reader, source) ON edge.source = reader.oid
        )
        SELECT FROM reader WHERE oid = <name>::pg_catalog.regclass)
"""

# A function may read foreign tables. 08 and HV are the classes of errors of connections and of
# foreign data (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_FILL = (
    b"""
DO <tag> BEGIN
    REFRESH MATERIALIZED VIEW <view>;
EXCEPTION WHEN OTHERS THEN
    IF pg_catalog.substr(SQLSTATE, 1, 2) IN ('08', 'HV') OR """
    + _READS_FOREIGN
    + b""" THEN
        RAISE WARNING '% is not filled: %', <name>, SQLERRM;
    ELSE
        RAISE;
    END IF;
END <tag>;
"""
)

# The setting, which old minor versions do not have, keeps functions from foreign tables too: 55000.
_FILL_IN_DRILL = (
    b"""
DO <tag> BEGIN
    IF NOT """
    + _READS_FOREIGN
    + b""" THEN
        PERFORM pg_catalog.set_config(s.name, 'foreign-table', true) FROM pg_catalog.pg_settings s
            WHERE s.name = 'restrict_nonsystem_relation_kind';
        REFRESH MATERIALIZED VIEW <view>;
    END IF;
EXCEPTION WHEN OTHERS THEN
    IF pg_catalog.substr(SQLSTATE, 1, 2) IN ('08', 'HV') OR SQLSTATE = '55000' THEN
        RAISE WARNING '% is not filled: %', <name>, SQLERRM;
    ELSE
        RAISE;
    END IF;
END <tag>;
"""
)
# On one line, like the statement that they replace: errors name lines.
_ON_ONE_LINE = {
    for_drill: b" ".join(text.split())
    for for_drill, text in {False: _FILL, True: _FILL_IN_DRILL}.items()
}
_PLACE = re.compile(rb"<(\w+)>")

_MAY_READ_FOREIGN = """
    SELECT EXISTS (SELECT FROM pg_catalog.pg_foreign_server)
           OR EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'dblink')
"""
_EMPTY = (
    b"SELECT FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass(%b)"
    b" AND relkind = 'm' AND NOT relispopulated"
)


def filling(view: bytes, *, for_drill: bool) -> bytes:
    """Return the statement, on one line, that fills a view if possible.

    ``view`` is quoted as in a dump. With ``for_drill`` no foreign server is contacted.
    """
    tag = b"$pgstash$"
    while tag in view:
        tag = tag[:-1] + b"_$"
    values = {b"tag": tag, b"view": view, b"name": literal(view)}
    return _PLACE.sub(lambda place: values[place[1]], _ON_ONE_LINE[for_drill]) + b"\n"


def may_read_foreign(server: Server) -> bool:
    """Return whether any view of the database may read foreign tables. Raises TargetLostError."""
    with target.connected(server) as session:
        return session.execute(_MAY_READ_FOREIGN).fetchone() == (True,)


def fill(
    server: Server,
    statements: Sequence[bytes],
    header: bytes,
    *,
    lc_monetary: str | None,
    emit: Emit,
) -> None:
    """Fill views one by one with the statements of :func:`filling`.

    ``header`` are the statements that set a session up. Raises RestoreError.
    """
    quiet = target.without_event_triggers(server)
    session = Loader(quiet, header, lc_monetary=lc_monetary, emit=emit)
    with contextlib.closing(session):
        for statement in statements:
            session.run(statement)


def warn_of_empty(server: Server, views: Sequence[bytes], emit: Emit, *, for_drill: bool) -> None:
    """Warn of those of these views that are still empty. Raises TargetLostError."""
    if not views:
        return
    quiet = target.without_event_triggers(server)
    with target.connected(quiet, "SQL_ASCII") as session:  # names are bytes
        empty = [
            view.decode(server.codec, "replace")
            for view in views
            if session.execute(_EMPTY % literal(view)).fetchone() is not None
        ]
    if not empty:
        return
    more = f" and {len(empty) - _SHOWN} more" if len(empty) > _SHOWN else ""
    what = "1 materialized view is" if len(empty) == 1 else f"{len(empty)} materialized views are"
    named = f"{what} empty: {', '.join(empty[:_SHOWN])}{more}."
    if for_drill:
        emit(Warned(f"{named} A drill contacts no foreign servers, and did not fill them"))
        return
    refreshes = " ".join(f"REFRESH MATERIALIZED VIEW {view};" for view in empty[:_SHOWN])
    emit(
        Warned(
            f"{named} They read foreign tables, or a view that does, and could not be filled. "
            f"When the foreign server answers, run: {refreshes}",
            to_do=True,
        )
    )
