"""Whether what is in a database has to be restored in the order of its script.

A CHECK that reads other rows than its own is not supported, and not prevented either
(https://www.postgresql.org/docs/current/ddl-constraints.html). Such a database can be restored or
not by which rows are there already: so these have to be the same ones each time.
"""

from __future__ import annotations

from collections.abc import Sequence

# Who declares a function IMMUTABLE promises that it reads no table; generated columns and the keys
# of partitions take no others, which makes people promise it of functions that do. What is
# PostgreSQL's own, or an extension's, is not asked for. (No backslash: what it means is a setting.)
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

# It is the generated column that depends on the function until PostgreSQL 14, its default since.
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
"""Asks what is computed while rows are loaded by a function that may read other tables.

The answer is one row of two names, as bytes: what calls, and the function; none if nothing does.
"""

OF_EXTENSIONS = b"""
    SELECT n.nspname, c.relname
    FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_class c ON c.oid = d.objid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype = 'e'
          AND c.relkind IN ('r', 'p')
"""
"""Asks for the tables of extensions: they alone may have triggers and foreign keys by then."""

OF_VIEWS = (
    _CALLS
    % b"""
    d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND EXISTS (
        SELECT FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
        WHERE r.oid = d.objid AND c.relkind = 'm')
"""
)
"""The same of materialized views: what one reads by a function nobody knows it to depend on."""


def reason(row: Sequence[bytes | None]) -> str:
    """Say in words what an answer means."""
    what, function = ((name or b"something").decode(errors="replace") for name in row)
    return f"{what} calls {function}, which may read other tables"
