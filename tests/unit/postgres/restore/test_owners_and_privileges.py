"""A script of owners and privileges is taken apart by statements, whatever names hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstash.postgres.restore.owners_and_privileges import (
    Refusals,
    chosen,
    parts,
    session_of,
    statements_of,
)

HEADER = b"""--
-- PostgreSQL database dump; it's one "
--

\\restrict abc

SET client_encoding = 'UTF8';
"""
CLOSING = b"""

--
-- PostgreSQL database dump complete
--

\\unrestrict abc

"""
OWNERS = (
    b"ALTER TABLE s.t OWNER TO app",
    b'ALTER FUNCTION s."f;(int)"(integer) OWNER TO "odd ""; GRANT x"',
    b"ALTER LARGE OBJECT 42 OWNER TO app",
    b'ALTER DATABASE :"DBNAME" OWNER TO app',
    b'ALTER TABLE "a\nGRANT -- b" OWNER TO "it\'s"',
    b'ALTER TABLE "--\n-- The database itself\n" OWNER TO app',
)
PRIVILEGES = (
    b"GRANT SELECT ON TABLE s.t TO reader",
    b'REVOKE ALL ON TABLE "x OWNER TO y;" FROM PUBLIC',
    b"ALTER DEFAULT PRIVILEGES FOR ROLE app GRANT SELECT ON TABLES TO reader",
    b"SET SESSION AUTHORIZATION reader",
    b"RESET SESSION AUTHORIZATION",
)
OTHERS = (
    b"COMMENT ON DATABASE :\"DBNAME\" IS E'GRANT; OWNER TO x; \\\\ it''s -- all'",
    b"ALTER DATABASE :\"DBNAME\" SET work_mem TO '7MB'",
    b"ALTER DATABASE :\"DBNAME\" SET app.motd TO 'change OWNER TO bob'",
    b'ALTER ROLE "OWNER TO x" IN DATABASE :"DBNAME" SET search_path FROM CURRENT',
    b"SET search_path = ''",
)
COMMENT = b"\n--\n-- Name: it's \"; GRANT; Type: TABLE\n--\n\n"


def written(statements: list[bytes]) -> bytes:
    return HEADER + b"".join(COMMENT + each + b";\n" for each in statements) + CLOSING


@given(st.lists(st.sampled_from(OWNERS)), st.lists(st.sampled_from(OTHERS)))
def test_the_database_has_a_script_of_its_own(objects: list[bytes], others: list[bytes]) -> None:
    before = written(objects).removesuffix(CLOSING)
    border = b"--\n-- The database itself\n--\n\n"
    of_database = b"".join(each + b";\n" for each in others) + CLOSING
    found = parts(before + border + of_database)
    assert found[0] == before + b"--\n"
    assert b"SET client_encoding = 'UTF8';" in found[1]
    assert b"\\restrict abc" in found[1]
    assert found[1].endswith(b"-- The database itself\n--\n\n" + of_database)
    assert all(found[1].count(each) <= 1 + others.count(each) for each in objects)
    assert parts(before) == (before, b"")


@pytest.mark.parametrize("owners", [False, True])
@pytest.mark.parametrize("privileges", [False, True])
@given(statements=st.lists(st.sampled_from([*OWNERS, *PRIVILEGES, *OTHERS])))
def test_what_is_not_wanted_is_left_out(
    statements: list[bytes], *, owners: bool, privileges: bool
) -> None:
    left = chosen(written(statements), owners=owners, privileges=privileges)
    wanted = [
        each
        for each in statements
        if (owners or each not in OWNERS) and (privileges or each not in PRIVILEGES)
    ]
    assert left.split() == written(wanted).split()


def test_statements_are_without_comments() -> None:
    script = written([OWNERS[0], *PRIVILEGES, *OTHERS])
    assert session_of(script) == [b"SET client_encoding = 'UTF8';"]
    assert statements_of(script) == [each + b";" for each in (OWNERS[0], *PRIVILEGES, *OTHERS)]


def test_a_grant_of_nothing_is_refused_and_other_warnings_are_not() -> None:
    """psql shows the statement after an error only."""
    refusals = Refusals()
    for line in (
        'psql:<stdin>:7: ERROR:  42501: must be able to SET ROLE "app"',
        "psql:<stdin>:7: LOCATION:  check_can_set_role, acl.c:5341",
        "psql:<stdin>:7: STATEMENT:  ALTER TABLE s.t OWNER TO app;",
        'psql:<stdin>:8: WARNING:  01007: no privileges were granted for "t"',
        "psql:<stdin>:8: LOCATION:  restrict_and_check_grant, aclchk.c:330",
        'psql:<stdin>:9: AVERTISSEMENT:  01006: no privileges could be revoked for "t"',
        "psql:<stdin>:10: WARNING:  01000: planted",
        "psql:<stdin>:11: ERROR:  42501: permission denied for schema s",
        "psql:<stdin>:11: STATEMENT:  GRANT",
        "psql:<stdin>:12: ERROR:  a name",
    ):
        refusals.read(line)
    assert refusals.total == 4
    assert set(refusals.lines) == {7, 8, 9, 11}
