"""One session with the database of a queue, for procrastinate and for statements of our own.

procrastinate brings a pool of sessions, and waits for their answers without a limit. Here each
answer has a limit, a signal interrupts the wait, and after any error the session is closed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, LiteralString, Self, TypeVar

import psycopg
from procrastinate import connector, exceptions
from procrastinate.manager import JobManager
from psycopg import conninfo, pq
from psycopg.abc import PQGen
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb

from pgstash.errors import ConfigurationError, DatabaseError, DatabaseUnreachableError
from pgstash.postgres.scratch.scratch_database import isolated
from pgstash.postgres.server import login_refusal

SCHEMA = "pgstash_queue"

MIGRATE = "Run `pgstash queue migrate`."
OWNER = "Use the role that ran `pgstash queue migrate`."

_CONNECT = 5  # seconds; a worker that stops has not much more
_ANSWER = 20.0
_STATEMENT = "15s"

# A connection that leads nowhere is noticed in half a minute.
_PARAMETERS = {
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
}

_NOT_MIGRATED = ("3F000", "42P01", "42703", "42704", "42883")
_NOT_ALLOWED = "42501"

_Value = TypeVar("_Value")


class _Session(psycopg.Connection[DictRow]):
    """A session whose waits end."""

    def wait(
        self, gen: PQGen[_Value], interval: float = 0.1, timeout: float | None = None
    ) -> _Value:
        """Wait for an answer. Raises OperationalError if it takes too long."""
        return super().wait(gen, interval, _ANSWER if timeout is None else timeout)


class _Connector(connector.BaseConnector):
    """Lets procrastinate use the session. What is a coroutine there ends at its first step."""

    def __init__(self, session: _Session) -> None:
        self._session = session

    def get_sync_connector(self) -> connector.BaseConnector:
        return self

    def execute_query(self, query: LiteralString, **arguments: object) -> None:
        self._execute(query, arguments)

    def execute_query_one(self, query: LiteralString, **arguments: object) -> dict[str, Any]:
        return self._execute(query, arguments).fetchall()[0]

    def execute_query_all(self, query: LiteralString, **arguments: object) -> list[dict[str, Any]]:
        return self._execute(query, arguments).fetchall()

    async def execute_query_async(self, query: LiteralString, **arguments: object) -> None:
        self.execute_query(query, **arguments)

    async def execute_query_one_async(
        self, query: LiteralString, **arguments: object
    ) -> dict[str, Any]:
        return self.execute_query_one(query, **arguments)

    async def execute_query_all_async(
        self, query: LiteralString, **arguments: object
    ) -> list[dict[str, Any]]:
        return self.execute_query_all(query, **arguments)

    def _execute(
        self, query: LiteralString, arguments: dict[str, object]
    ) -> psycopg.Cursor[DictRow]:
        given = {name: _adapted(value) for name, value in arguments.items()}
        try:
            return self._session.execute(query, given)
        except psycopg.errors.UniqueViolation as error:
            name = error.diag.constraint_name
            raise exceptions.UniqueViolation(constraint_name=name, queueing_lock=None) from error


def _adapted(value: object) -> object:
    """Return a value as psycopg sends it: objects as JSON, also inside of lists and tuples."""
    if isinstance(value, dict):
        return Jsonb(value)
    if isinstance(value, list):
        return [_adapted(each) for each in value]
    if isinstance(value, tuple):
        return tuple(_adapted(each) for each in value)
    return value


def at_once(coroutine: Coroutine[Any, Any, _Value]) -> _Value:
    """Return the result of one of procrastinate's coroutines, which waits for this session only."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: _Value = done.value
        return result
    raise AssertionError("a coroutine waits for something else than the session")


class Link:
    """A session. Its methods raise DatabaseError after which it is closed."""

    def __init__(self, url: str) -> None:
        """Log in to the database of QUEUE_URL.

        Raises DatabaseUnreachableError if no server answers, DatabaseLoginError if one refuses.
        """
        self._session = _login(url)
        self.manager = JobManager(_Connector(self._session))
        try:
            with self.translated():
                for name, value in (
                    ("search_path", SCHEMA),
                    ("statement_timeout", _STATEMENT),
                    ("client_min_messages", "warning"),
                ):
                    self.rows(
                        "SELECT set_config(%(name)s, %(value)s, false)", name=name, value=value
                    )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return the link, which the end of the block closes."""
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Close the session."""
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether no error has closed the session."""
        return not self._session.closed

    def close(self) -> None:
        """Close the session; closing it again is allowed."""
        self._session.close()

    def rows(self, query: LiteralString, **arguments: object) -> list[dict[str, Any]]:
        """Run a statement inside :meth:`translated`, and return its rows."""
        cursor = self._session.execute(query, arguments)
        return cursor.fetchall() if cursor.description else []

    def run(self, script: LiteralString) -> None:
        """Run several statements inside :meth:`translated`."""
        self._session.execute(script)

    @contextlib.contextmanager
    def translated(self, *, whole: bool = False) -> Iterator[None]:
        """Raise DatabaseError for what fails in the block; as a ``whole``, it is a transaction."""
        try:
            with self._session.transaction() if whole else contextlib.nullcontext():
                yield
        except (exceptions.UniqueViolation, exceptions.AlreadyEnqueued):
            raise
        except (psycopg.Error, exceptions.ConnectorException) as error:
            cause = error if isinstance(error, psycopg.Error) else error.__cause__
            self.close()
            raise _failure(cause) from error
        except BaseException:
            # A signal may have come while an answer was awaited: it would be that to the next one.
            self.close()
            raise


def _login(url: str) -> _Session:
    complete = conninfo.make_conninfo(
        isolated(url),
        **{
            "connect_timeout": str(_CONNECT),
            "application_name": "pgstash queue",
            "client_encoding": "UTF8",  # whatever PGCLIENTENCODING is
        }
        | {key: value for key, value in _PARAMETERS.items() if f"{key}=" not in url},
    )
    try:
        return _Session.connect(complete, autocommit=True, row_factory=dict_row)
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        probe = conninfo.make_conninfo(complete, connect_timeout=2).encode()
        if pq.PGconn.ping(probe) == pq.Ping.OK:
            message = f"QUEUE_URL: the database refused the login: {reason}"
            raise login_refusal.error(probe, message) from error
        raise DatabaseUnreachableError(
            f"QUEUE_URL: the database cannot be reached: {reason}"
        ) from error


def _failure(cause: BaseException | None) -> DatabaseError | ConfigurationError:
    state = cause.sqlstate if isinstance(cause, psycopg.Error) else None
    reason = " ".join(str(cause).split())
    if state in _NOT_MIGRATED:
        return ConfigurationError(
            [f"QUEUE_URL: the database has no queue of this version: {reason}. {MIGRATE}"]
        )
    if state == _NOT_ALLOWED:
        lacks = f"QUEUE_URL: the role lacks a privilege: {reason}"
        return ConfigurationError([f"{lacks}. {OWNER}"])
    return DatabaseUnreachableError(f"QUEUE_URL: the queue does not answer: {reason}")
