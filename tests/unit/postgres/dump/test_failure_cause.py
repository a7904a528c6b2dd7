"""Why a client tool failed is read from the server's codes, in whatever language it answers."""

from __future__ import annotations

import pytest

from pgstash.format.manifest import Database
from pgstash.postgres.dump.failure_cause import Tool
from pgstash.postgres.server.connection import Connection, Server

DATABASE = Database("a", "db", 5432, "UTF8", "C", "C", "c", None, "C", [], 0)
SERVER = Server(18, "18.1", DATABASE, "utf-8", Connection({}, {}))


@pytest.mark.parametrize(
    ("routine", "words"),
    [
        ("palloc, mcxt.c:1104", ["1 GB", "large object", "damaged"]),  # 14 to 16
        (
            "MemoryContextSizeFailure, mcxt.c:1175",
            ["1 GB", "large object", "damaged"],
        ),  # 17 and newer
        ("RelationIdGetRelation, relcache.c:2074", ["server's log"]),
    ],
)
def test_a_value_too_large_for_an_allocation(routine: str, words: list[str]) -> None:
    """The server has no code of its own for it; a damaged row may look the same."""
    said = [
        "psql:<stdin>:16: FEHLER:  XX000: ungültige Größe 1200000003",
        f"LOCATION:  {routine}",
    ]
    hint = Tool("psql", SERVER).failure(3, said).hint
    assert [word for word in words if word not in hint] == []


@pytest.mark.parametrize(
    ("line", "retryable"),
    [
        ("psql:<stdin>:16: FEHLER:  57P01: beende Verbindung", True),
        ("psql:<stdin>:16: FEHLER:  40001: breche Anfrage ab", True),
        ("psql:<stdin>:16: FEHLER:  53300: zu viele Verbindungen", True),
        ("psql:<stdin>:16: FEHLER:  42501: keine Berechtigung", False),
        ("psql:<stdin>:16: FEHLER:  XX001: ungültige Seite", False),
        ("psql:<stdin>:16: FEHLER:  55000: nimmt keine Verbindungen an", False),
        ("pg_dump: error: server closed the connection unexpectedly", True),
        ("pg_dump: unrecognized option '--nonsense'", False),
    ],
)
def test_what_stays_wrong_is_not_worth_another_try(line: str, *, retryable: bool) -> None:
    assert Tool("psql", SERVER).failure(3, [line]).retryable is retryable
