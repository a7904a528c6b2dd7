"""Whether the rows of a database must be restored in the order of its script.

PostgreSQL does not support a CHECK that reads other rows than its own, but does not prevent it
either (https://www.postgresql.org/docs/current/ddl-constraints.html). Whether such a database can
be restored depends on the rows that are already there. So they must be the same each time.
"""

from __future__ import annotations

from collections.abc import Sequence

# A function that is declared IMMUTABLE must not read tables. But generated columns and partition
# keys accept only such functions, so people declare it for functions that do. Functions of
# PostgreSQL and of extensions are not considered. (No backslash: its meaning is a setting.)
_CALLS = b"""
    SELECT pg_catalog.pg_describe_object(used.classid, used.objid, used.objsubid),
           pg_catalog.pg_describe_object('pg_catalog.pg_proc'::pg_catalog.regclass, p.oid, 0)
    FROM (
        SELECT d.classid, d.objid, d.objsubid, CASE d.refclassid
            WHEN 'pg_catalog.pg_proc'::pg_catalog.regclass THEN d.refobjid
            ELSE o.oprcode END AS function
        FROM pg_catalog.pg_depend d LEFT JOIN pg_catalog.pg_operator o
            ON d.refclassid = 'pg_catalog.pg_operator'::pg_catalog.regclass AND o.oid = d.refobjid
        WHERE d.refclassid IN ('pg_catalog.pg_proc'::pg_catalog.regclass,
                               'pg_catalog.pg_operator'::pg_catalog.regclass)
          AND (%b)
    ) used JOIN pg_catalog.pg_proc p ON p.oid = used.function
    WHERE p.oid >= 16384
      AND (p.provolatile <> 'i' OR CASE WHEN p.prokind = 'f'
               THEN pg_catalog.regexp_replace(
                   pg_catalog.pg_get_functiondef(p.oid),
                   '[[:<:]](distinct[[:space:]]+|extract[[:space:]]*[(][^()]*)from[[:>:]]', '', 'gi'
               ) ~* '[[:<:]](from|table)[[:>:]]' END)
      AND NOT EXISTS (
          SELECT FROM pg_catalog.pg_depend e
          WHERE e.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND e.objid = p.oid
                AND e.deptype = 'e')
    ORDER BY 1, 2 LIMIT 1
"""

# Up to PostgreSQL 14 the generated column depends on the function, later on its default does.
OF_ROWS = (
    _CALLS
    % b"""
    d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND EXISTS (
        SELECT FROM pg_catalog.pg_constraint c
        WHERE c.oid = d.objid AND c.contype = 'c' AND c.convalidated)
    OR d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND EXISTS (
        SELECT FROM pg_catalog.pg_attrdef e JOIN pg_catalog.pg_attribute a
            ON a.attrelid = e.adrelid AND a.attnum = e.adnum
        WHERE e.oid = d.objid AND a.attgenerated = 's')
    OR d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND EXISTS (
        SELECT FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = d.objid AND a.attnum = d.objsubid AND a.attgenerated = 's')
    OR d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND EXISTS (
        SELECT FROM pg_catalog.pg_partitioned_table t WHERE t.partrelid = d.objid)
"""
)
"""Asks what calls a function that may read other tables while rows are loaded.

The answer is one row of two names, as bytes: the caller and the function. It is empty if nothing
calls such a function.
"""

OF_EXTENSIONS = b"""
    SELECT n.nspname, c.relname
    FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_class c ON c.oid = d.objid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype = 'e'
          AND c.relkind IN ('r', 'p')
"""
"""Asks for the tables of extensions: only they may already have triggers and foreign keys."""

OF_VIEWS = (
    _CALLS
    % b"""
    d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND EXISTS (
        SELECT FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
        WHERE r.oid = d.objid AND c.relkind = 'm')
"""
)
"""The same for materialized views: no catalog records what a view reads by a function."""


def reason(row: Sequence[bytes | None]) -> str:
    """Describe an answer in words."""
    what, function = ((name or b"something").decode(errors="replace") for name in row)
    return f"{what} calls {function}, which may read other tables"
