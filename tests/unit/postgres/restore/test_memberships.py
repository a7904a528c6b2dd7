"""Memberships are read as pg_dumpall writes them, and nothing else is taken for one."""

from __future__ import annotations

import pytest

from pgstash.postgres.restore.memberships import Membership, read

SCRIPT = rb"""
--
-- Role memberships
--
-- GRANT commented TO out;

CREATE ROLE "GRANT a TO b;
GRANT in_a_name TO of_a_role;
";
ALTER ROLE app SET pgstash.own TO 'it''s
GRANT in_a_text TO of_a_setting;
';
GRANT team TO app WITH ADMIN OPTION GRANTED BY postgres;
GRANT "Odd ""n""; --" TO "a, b" WITH ADMIN OPTION, INHERIT FALSE, SET FALSE GRANTED BY "p g";
GRANT team TO plain;
GRANT team TO later WITH FUTURE THING;
GRANT SELECT ON TABLE t TO plain;
"""


def test_what_is_a_membership() -> None:
    assert read(SCRIPT) == [
        Membership("team", "app", ("ADMIN OPTION",)),
        Membership('Odd "n"; --', "a, b", ("ADMIN OPTION", "INHERIT FALSE", "SET FALSE")),
        Membership("team", "plain"),
    ]


def test_a_role_that_inherits_nothing() -> None:
    """Servers before 16 write this for the role, later ones for each membership."""
    script = b"""
CREATE ROLE "on ""call";
ALTER ROLE "on ""call" WITH NOSUPERUSER NOINHERIT NOCREATEROLE LOGIN PASSWORD 'x';
ALTER ROLE plain WITH NOSUPERUSER INHERIT NOCREATEROLE;
GRANT team TO "on ""call" GRANTED BY postgres;
GRANT admins TO "on ""call" WITH ADMIN OPTION GRANTED BY postgres;
GRANT late TO "on ""call" WITH INHERIT TRUE GRANTED BY postgres;
GRANT team TO plain GRANTED BY postgres;
"""
    assert read(script) == [
        Membership("team", 'on "call', ("INHERIT FALSE",)),
        Membership("admins", 'on "call', ("ADMIN OPTION", "INHERIT FALSE")),
        Membership("late", 'on "call', ("INHERIT TRUE",)),
        Membership("team", "plain"),
    ]


@pytest.mark.parametrize(
    ("options", "major", "statement"),
    [
        (("INHERIT FALSE",), 15, 'ALTER ROLE "b" NOINHERIT; GRANT "a" TO "b";'),
        (("ADMIN OPTION", "SET FALSE"), 15, 'GRANT "a" TO "b" WITH ADMIN OPTION;'),
        (("INHERIT FALSE",), 16, 'GRANT "a" TO "b" WITH INHERIT FALSE;'),
    ],
)
def test_what_a_person_can_run(options: tuple[str, ...], major: int, statement: str) -> None:
    assert Membership("a", "b", options).by_hand(major) == statement


@pytest.mark.parametrize(
    ("options", "major", "statement"),
    [
        ((), 14, 'GRANT "a" TO "b";'),
        ((), 18, 'GRANT "a" TO "b";'),
        (("ADMIN OPTION",), 14, 'GRANT "a" TO "b" WITH ADMIN OPTION;'),
        (("ADMIN OPTION", "INHERIT TRUE"), 14, 'GRANT "a" TO "b" WITH ADMIN OPTION;'),
        (("INHERIT TRUE", "SET TRUE"), 15, 'GRANT "a" TO "b";'),
        (("INHERIT TRUE",), 16, 'GRANT "a" TO "b" WITH INHERIT TRUE;'),
        (("INHERIT FALSE",), 16, 'GRANT "a" TO "b" WITH INHERIT FALSE;'),
        # An older server would let the member inherit, or become the group.
        (("INHERIT FALSE",), 15, None),
        (("SET FALSE",), 15, None),
    ],
)
def test_no_server_grants_more(options: tuple[str, ...], major: int, statement: str | None) -> None:
    assert Membership("a", "b", options).statement(major) == statement
