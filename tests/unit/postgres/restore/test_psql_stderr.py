"""The error that ended psql is found among its messages, in whatever language they are."""

from __future__ import annotations

import pytest

from pgstash.postgres.restore.psql_stderr import Stderr

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
        stderr.read(line)
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
        stderr.read(line)
    assert stderr.found(lost=False) is None
    assert stderr.found(lost=True) is None
    stderr.read("psql:<stdin>:9: FATAL:  57P01: Abbruch der Verbindung")
    stderr.read("psql:<stdin>:9: error: connection to server was lost")
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
        stderr.read(f"psql:<stdin>:1: W:  01000: {'x' * 490} {secret} {number}")
        for _ in range(100):
            stderr.read("more")
    stderr.finish()
    assert told[-1] == "(980 more messages not shown)"
    assert len(told) < 300
    assert max(map(len, told)) <= 504
    assert "correct" not in "".join(told)
