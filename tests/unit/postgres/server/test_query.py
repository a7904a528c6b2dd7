"""A query that fails is reported by what it asked for, and by what may help."""

from __future__ import annotations

import psycopg
import pytest

from pgstash.errors import DatabaseError, DatabaseLoginError, DatabaseUnreachableError
from pgstash.postgres.server import query
from pgstash.postgres.server.session import NotAnsweredError


def by_libpq(state: str) -> psycopg.Error:
    """Return an error as a session by libpq alone raises it."""
    error = psycopg.OperationalError("ERROR:  no")
    error.sqlstate = state
    return error


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            psycopg.errors.QueryCanceled("too long"),
            DatabaseUnreachableError,
            "the database did not report its tables within 60 s",
        ),
        (
            NotAnsweredError("the server does not answer"),
            DatabaseUnreachableError,
            "the database did not report its tables within 60 s",
        ),
        (
            psycopg.OperationalError("server closed\nthe connection"),
            DatabaseUnreachableError,
            "the connection was lost: server closed the connection",
        ),
        (
            psycopg.errors.LockNotAvailable("locked"),
            DatabaseUnreachableError,
            "the database did not report its tables: locked",
        ),
        (
            psycopg.errors.InsufficientPrivilege("no"),
            DatabaseLoginError,
            "the database did not report its tables: no",
        ),
        (
            by_libpq("42501"),
            DatabaseUnreachableError,
            "the database did not report its tables: ERROR: no",
        ),
    ],
    ids=["canceled", "not answered", "lost", "locked", "refused", "refused, by libpq"],
)
def test_a_failed_query(error: psycopg.Error, kind: type[DatabaseError], message: str) -> None:
    failure = query.failure(error, "its tables")
    assert type(failure) is kind
    assert failure.message == message


@pytest.mark.parametrize(("major", "knows"), [(16, False), (17, True)])
def test_a_long_transaction_has_no_timeout(major: int, *, knows: bool) -> None:
    begin, *settings = query.begin(major, "READ COMMITTED", {"jit": "off"}).split("; ")
    assert begin == "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY"
    assert all(setting.startswith("SET LOCAL ") for setting in settings)
    assert "SET LOCAL search_path = ''" in settings
    assert "SET LOCAL jit = off" in settings
    assert ("SET LOCAL transaction_timeout = 0" in settings) is knows
