"""Whether the rows of a database have to be loaded in the order of its script.

A CHECK that reads other rows than its own is not supported, and not prevented either
(https://www.postgresql.org/docs/current/ddl-constraints.html). Such a database can be restored or
not by which rows are there already: so these have to be the same ones each time.
"""

from __future__ import annotations

from collections.abc import Sequence

# What is computed while rows are loaded, and by which function that is not PostgreSQL's own. Who
# declares one IMMUTABLE promises that it reads no table; generated columns take no others, which
# makes people promise it of functions that do. (It is the column that depends on the function until
# PostgreSQL 14, its default since.)
QUESTION = b"""
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
          AND (d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND EXISTS (
                   SELECT FROM pg_catalog.pg_constraint c
                   WHERE c.oid = d.objid AND c.contype = 'c' AND c.convalidated)
               OR d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND EXISTS (
                   SELECT FROM pg_catalog.pg_attrdef e JOIN pg_catalog.pg_attribute a
                       ON a.attrelid = e.adrelid AND a.attnum = e.adnum
                   WHERE e.oid = d.objid AND a.attgenerated = 's')
               OR d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND EXISTS (
                   SELECT FROM pg_catalog.pg_attribute a
                   WHERE a.attrelid = d.objid AND a.attnum = d.objsubid AND a.attgenerated = 's'))
    ) used JOIN pg_catalog.pg_proc p ON p.oid = used.function
    WHERE p.oid >= 16384
      AND (p.provolatile <> 'i' OR CASE WHEN p.prokind = 'f'
               THEN pg_catalog.pg_get_functiondef(p.oid) ~* '\\mfrom\\M' END)
    ORDER BY 1, 2 LIMIT 1
"""
"""Asks what needs it and for which function: one row of two names, as bytes, if anything does."""


def reason(row: Sequence[bytes | None]) -> str:
    """Say in words what the answer means."""
    what, function = ((name or b"something").decode(errors="replace") for name in row)
    return f"The rows keep pg_dump's order: {what} calls {function}, which may read other tables"
