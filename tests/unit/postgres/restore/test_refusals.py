"""What a server refused is found by codes and labels, in whatever language it says it."""

from __future__ import annotations

import pytest

from pgstash.errors import StatementError, TargetLostError
from pgstash.postgres.refusals import LockTableFullError, Refusal, Stderr, refused

GERMAN = """\
psql:<stdin>:7: WARNUNG:  42809: Typumwandlung wird ignoriert
LOCATION:  CreateCast, functioncmds.c:1598
psql:<stdin>:9: HINWEIS:  00000: Relation »a« existiert bereits, wird übersprungen
zweite Zeile
LOCATION:  transformCreateStmt, parse_utilcmd.c:209
psql:<stdin>:12: FEHLER:  42P01: Relation »fehlt« existiert nicht
LINE 2:   fehlt;
          ^
QUERY:  SELECT n FROM fehlt
CONTEXT:  PL/pgSQL-Funktion sucht() Zeile 1 bei SQL-Anweisung
LOCATION:  parserOpenTable, parse_relation.c:1381
psql:<stdin>:12: STATEMENT:  SELECT
  sucht();
"""
FRENCH = GERMAN.replace("WARNUNG", "ATTENTION").replace("FEHLER", "ERREUR")


@pytest.mark.parametrize("said", [GERMAN, FRENCH])
def test_the_error_is_what_the_statement_follows(said: str) -> None:
    told: list[str] = []
    stderr = Stderr(told.append, ())
    for line in said.splitlines():
        stderr.hear(line)
    stderr.finish()
    found = stderr.found(lost=False)
    assert found
    line, refusal = found
    assert (line, refusal.state, refusal.statement) == ("12", "42P01", "SELECT\n  sucht();")
    assert refusal.text.startswith("Relation »fehlt« existiert nicht\n")
    assert "search_path" in refusal.hint
    assert len(told) == 3
    assert stderr.before.startswith(
        "\n(2 messages before it, the first one: Typumwandlung wird ignoriert)"
    )


def test_without_a_statement_there_is_no_error() -> None:
    stderr = Stderr(lambda _line: None, ())
    for line in GERMAN.splitlines()[:2]:
        stderr.hear(line)
    assert stderr.found(lost=False) is None
    assert stderr.found(lost=True) is None
    stderr.hear("psql:<stdin>:9: FATAL:  57P01: Abbruch der Verbindung")
    stderr.hear("psql:<stdin>:9: error: connection to server was lost")
    assert stderr.of_psql == "psql:<stdin>:9: error: connection to server was lost"
    assert stderr.found(lost=False) is None
    found = stderr.found(lost=True)
    assert found
    assert found[1].state == "57P01"


def test_a_flood_is_counted_and_shortened() -> None:
    told: list[str] = []
    secret = "correct horse battery"
    stderr = Stderr(told.append, (secret,))
    for number in range(1000):
        stderr.hear(f"psql:<stdin>:1: W:  01000: {'x' * 490} {secret} {number}")
        for _ in range(100):
            stderr.hear("more")
    stderr.finish()
    assert told[-1] == "(980 more messages were left out)"
    assert len(told) < 300
    assert max(map(len, told)) <= 504
    assert "correct" not in "".join(told)


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
