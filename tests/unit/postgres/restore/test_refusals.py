"""A refused statement is identified by codes and labels, in whatever language the message is."""

from __future__ import annotations

import pytest

from pgstash.errors import StatementError, TargetLostError
from pgstash.postgres.restore.refusals import LockTableFullError, Refusal, refused

NO_FUNCTION = "CONTEXT:  COPY t, Zeile 1, Spalte n: »fehlt«"
BY_FUNCTION = "CONTEXT:  SQL-Funktion »f« Anweisung 1\nCOPY t, Zeile 1: »1«\nTABLE NAME:  t"


@pytest.mark.parametrize(
    ("state", "text", "statement", "hint"),
    [
        ("42P01", f"x\n{NO_FUNCTION}", "COPY t FROM stdin;", ""),
        ("42P01", f"x\n{BY_FUNCTION}", "COPY t FROM stdin;", "search_path"),
        ("42P01", f"x\n{NO_FUNCTION}", "SELECT 1;", "search_path"),
        ("42P01", "x\nQUERY:  SELECT\nCONTEXT:  y", "COPY t FROM stdin;", "search_path"),
        ("22P02", "Eingabesyntax für Typ money", "COPY t FROM stdin;", "lc_monetary"),
        ("22P02", "Eingabesyntax für Typ integer", "COPY t FROM stdin;", ""),
        (
            "42883",
            "x",
            "CREATE FUNCTION f()\n    LANGUAGE c\n    AS 'lib{}', 'f';",
            "library lib{},",
        ),
        ("42704", "x", "CREATE USER MAPPING FOR a SERVER b;", "Create the role"),
        ("57014", "x", "SELECT 1;", "canceled"),
    ],
)
def test_hints(state: str, text: str, statement: str, hint: str) -> None:
    error = refused(Refusal(state, text, statement), "message")
    assert isinstance(error, StatementError)
    assert hint in error.hint
    assert bool(hint) == (error.hint != StatementError.default_hint)


@pytest.mark.parametrize(
    ("state", "text", "kind"),
    [
        ("57P01", "x", TargetLostError),
        ("08006", "x", TargetLostError),
        (
            "53200",
            "Sie müssen möglicherweise max_locks_per_transaction erhöhen",
            LockTableFullError,
        ),
        ("53200", "kein Speicher", StatementError),
    ],
)
def test_kinds(state: str, text: str, kind: type[Exception]) -> None:
    assert type(refused(Refusal(state, text, ""), "message")) is kind


def test_nothing_confidential_is_in_a_headline() -> None:
    statement = "CREATE USER MAPPING FOR a SERVER b OPTIONS (password 'sesame');"
    headline = Refusal("42704", "x", statement).headline
    assert (
        headline == "x (SQLSTATE 42704)\nSTATEMENT: CREATE USER MAPPING FOR a SERVER b OPTIONS (…"
    )
