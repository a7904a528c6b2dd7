"""What psql reports of a refused statement is read, and nothing else."""

from __future__ import annotations

from pgstash.postgres.restore.owners_and_privileges import Refused
from pgstash.postgres.restore.owners_in_transaction import Giving

UNITS = [(b"ALTER TABLE a OWNER TO b;",), (b"GRANT SELECT ON a TO c;",)]
OF_REPORT = (
    'psql:<stdin>:12: WARNING:  PGS01: 1 42501 must be owner of table "a',
    'b"',
    "CONTEXT:  PL/pgSQL function inline_code_block line 5 at RAISE",
    "LOCATION:  exec_stmt_raise, pl_exec.c:3941",
)
OTHERS = (
    "psql:<stdin>:13: WARNING:  01007: no privileges were granted",
    "LOCATION:  restrict_and_check_grant, aclchk.c:330",
    "psql:<stdin>:14: WARNING:  PGS01: planted",
    "psql:<stdin>:14: WARNING:  PGS01: 2 42501 no such unit",
    "psql:<stdin>:15: ERROR:  42P07: relation exists",
    "psql:<stdin>:15: STATEMENT:  CREATE TABLE a ();",
)


def test_reports_are_read_whole_and_other_messages_are_not() -> None:
    giving = Giving((), UNITS)
    assert [giving.read(line) for line in (*OTHERS, *OF_REPORT, *OTHERS)] == [
        *(False for _ in OTHERS),
        *(True for _ in OF_REPORT),
        *(False for _ in OTHERS),
    ]
    assert giving.refused == [Refused(UNITS[1], "42501", 'must be owner of table "a')]


def test_units_are_reported_in_their_order() -> None:
    giving = Giving((), UNITS)
    for number in (1, 0):
        giving.read(f"psql:<stdin>:1: AVERTISSEMENT:  PGS01: {number} 42704 no role")
    assert [each.statements for each in giving.refused] == UNITS


def test_a_warning_that_nothing_was_revoked_is_of_the_unit_on_its_line() -> None:
    giving = Giving((b"SET a = b;",), [(b"GRANT a\nTO b;",), (b"REVOKE c\nFROM d;",), (b"e;",)])
    script = list(giving.script())
    first = 100 + script[0].count(b"\n")  # after 100 lines
    ends = [first + sum(each.count(b"\n") for each in script[1 : 2 + n]) for n in range(3)]
    lines = [
        f"psql:<stdin>:{ends[1]}: WARNING:  01006: planted",  # of a statement before these
        f"psql:<stdin>:{first}: WARNING:  PGS01: begin",
        f"psql:<stdin>:{ends[1]}: WARNING:  01006: no privileges could be revoked",
        f"psql:<stdin>:{ends[1] - 1}: WARNING:  01006: of no block",
        f"psql:<stdin>:{ends[2]}: WARNING:  01000: another warning",
    ]
    assert [giving.read(line) for line in lines] == [False, True, True, False, False]
    [refused] = giving.refused
    assert refused.statements == (b"REVOKE c\nFROM d;",)
    assert (refused.state, refused.reason) == ("01006", "no privileges could be revoked")


def test_nothing_is_run_without_units() -> None:
    assert list(Giving([b"SET a = b;"], ()).script()) == []
