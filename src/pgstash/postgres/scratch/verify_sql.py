"""Runs the user's own checks of a restored database, VERIFY_SQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

from pgstash.postgres.server import query


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one statement of the user: whether it passed, and what it returned."""

    passed: bool
    found: str


def run(session: query.Connection, statements: str, codec: str) -> Iterator[Answer]:
    """Run the user's statements, and yield the answer to each of them.

    A query passes if it returns a row; a single boolean must be true. A statement that does not
    return rows passes. The first error ends it, and is the last answer. ``codec`` is that of the
    database.
    """
    # Statements run with the search_path that the users of the database have.
    session.execute("RESET search_path")
    try:
        cursor = session.execute(statements.encode(codec, "surrogateescape"))
    except psycopg.Error as error:
        yield Answer(passed=False, found=" ".join(str(error).split()))
        return
    except UnicodeEncodeError:
        yield Answer(
            passed=False, found="it has characters that the encoding of the database does not have"
        )
        return
    more: bool | None = True
    while more:
        yield _answer(cursor)
        more = cursor.nextset()


def _answer(cursor: psycopg.Cursor[tuple[Any, ...]]) -> Answer:
    if cursor.description is None:
        return Answer(passed=True, found=f"ran ({cursor.statusmessage})")
    row = cursor.fetchone()
    if row is None:
        return Answer(passed=False, found="returned no row")
    if cursor.rowcount == 1 and len(row) == 1:
        if row[0] is None:
            return Answer(passed=False, found="returned NULL")
        if isinstance(row[0], bool):
            return Answer(passed=row[0], found=f"returned {str(row[0]).lower()}")
    return Answer(passed=True, found=f"returned {cursor.rowcount} row{'s'[: cursor.rowcount != 1]}")
