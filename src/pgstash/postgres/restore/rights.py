"""What the restoring role may create, by asking the server.

PostgreSQL lets only superusers create some kinds of objects. Managed services have roles of their
own that may create some of them nevertheless. So the server is asked by a trial, in a transaction
that is rolled back. Where no trial is possible, the rules of PostgreSQL's documentation decide.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import psycopg

from pgstash.postgres.restore import present_extensions, target
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.query import Connection
from pgstash.postgres.server.quoting import identifier

NOT_AVAILABLE = "it is not available on the server"
"""The reason for an extension whose package is not installed."""

_SUPERUSER = "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user"
_MAY_CREATE = "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')"
_AVAILABLE = """
    SELECT v.name, v.superuser AND NOT v.trusted
    FROM pg_catalog.pg_available_extensions a
    JOIN pg_catalog.pg_available_extension_versions v
         ON v.name = a.name AND v.version = a.default_version
"""
_INSTALLED = """
    SELECT extname, pg_catalog.pg_has_role(extowner, 'USAGE'),
           pg_catalog.quote_ident(extname), pg_catalog.obj_description(oid, 'pg_extension')
    FROM pg_catalog.pg_extension
"""
_WRAPPERS = """
    SELECT fdwname, pg_catalog.has_foreign_data_wrapper_privilege(oid, 'USAGE')
    FROM pg_catalog.pg_foreign_data_wrapper
"""
_LANGUAGES = """
    SELECT lanname, lanpltrusted AND pg_catalog.has_language_privilege(oid, 'USAGE')
    FROM pg_catalog.pg_language
"""
_TYPES = """
    SELECT pg_catalog.format_type(oid, NULL), pg_catalog.pg_has_role(typowner, 'USAGE')
    FROM pg_catalog.pg_type
"""
_TABLES_OF_EXTENSIONS = """
    SELECT c.relname, n.nspname, pg_catalog.has_table_privilege(c.oid, 'INSERT')
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_depend d
         ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid
            AND d.deptype = 'e'
    WHERE c.relkind IN ('r', 'p')
"""
_MAY_SUBSCRIBE = "SELECT pg_catalog.pg_has_role('pg_create_subscription', 'USAGE')"
_FIRST_WITH_SUBSCRIBERS = 16

# All that a trial creates is in this schema, and rolled back with it.
_PREPARE = "SET LOCAL lock_timeout = '10s'"
_SCHEMA = "CREATE SCHEMA pgstash_trial; SET LOCAL search_path = pgstash_trial"
_EVENT_TRIGGER = """
    CREATE FUNCTION pgstash_trial.does_nothing() RETURNS event_trigger LANGUAGE plpgsql
        AS 'BEGIN END';
    CREATE EVENT TRIGGER pgstash_trial ON ddl_command_end WHEN TAG IN ('CREATE AGGREGATE')
        EXECUTE FUNCTION pgstash_trial.does_nothing()
"""
_PUBLICATION = "CREATE PUBLICATION pgstash_trial FOR ALL TABLES"
_WRAPPER = "CREATE FOREIGN DATA WRAPPER pgstash_trial"

# insufficient_privilege; feature_not_supported: an extension that is not available, or not allowed.
_REFUSED = frozenset({"42501", "0A000"})


class Rights:
    """Answers what the role of a session may create in the database, or in a new one.

    With ``new`` the database of the session is another one on the same server, and nothing in it
    counts. An answer that no trial gave is the one of the documentation; with ``hopeful`` it is
    yes, because the new database itself is asked later: then the answers are ``guessed``. Methods
    raise psycopg.Error.
    """

    def __init__(self, session: Connection, major: int, *, new: bool, hopeful: bool) -> None:
        """Prepare the transaction of the session for trials."""
        self._session = session
        self._major = major
        self._new = new
        self._hopeful = hopeful
        self.guessed = False
        self._available: Mapping[bytes, bool] = dict(session.execute(_AVAILABLE).fetchall())
        self._there = self._rows(_INSTALLED)
        self._owned: dict[bytes, bool] = {}
        session.execute(_PREPARE)
        self._may_create = session.execute(_MAY_CREATE).fetchone() == (True,)
        self._can_try = self._may_create and self._tried(_SCHEMA) is True
        self.event_triggers = cache(lambda: self._decided(_EVENT_TRIGGER))
        self.publications_of_all = cache(lambda: self._decided(_PUBLICATION))
        self.wrappers = cache(lambda: self._decided(_WRAPPER))
        self._wrappers = cache(lambda: self._rows(_WRAPPERS))
        self._languages = cache(lambda: self._rows(_LANGUAGES))
        self._types = cache(lambda: self._rows(_TYPES))

    def extension(self, name: bytes) -> str:
        """Return why the role cannot create an extension; empty if it can, or need not."""
        if name in self._there and not self._new:
            return ""
        for_superusers = self._available.get(name)
        if for_superusers is None:
            return NOT_AVAILABLE
        # A trial of a large extension needs a second: the new database itself decides later.
        answer = None if self._hopeful and not for_superusers else self._tried_extension(name)
        if answer is False:
            return "the server does not allow the role to create it"
        if answer:
            return ""
        if for_superusers:
            return "" if self._hope() else "only a superuser may create it"
        allowed = self._new or self._may_create
        return "" if allowed else "the role lacks the privilege CREATE on the database"

    def _tried_extension(self, name: bytes) -> bool | None:
        if name in self._there:  # of the other database
            return True if self._there[name][0] else None
        if not self._can_try:
            return None
        answer = self._tried(b"CREATE EXTENSION %b CASCADE" % identifier(name))
        if answer:
            self._owned[name] = self._rows(_INSTALLED)[name][0]
        return answer

    def may_comment_on(self, name: bytes) -> bool:
        """Return whether the extension belongs to the role, or will."""
        if name in self._there and not self._new:
            return bool(self._there[name][0])
        return self._owned.get(name, True)

    def has_comment(self, name: bytes, statement: bytes) -> bool:
        """Return whether an extension has the comment of a statement, or will by itself."""
        found = self._rows(_INSTALLED).get(name)
        if found is None or found[2] is None:
            return False
        _, quoted, comment = found
        return statement == present_extensions.comment_on(quoted, comment)

    def subscriptions(self) -> bool:
        """Return whether the role may create subscriptions."""
        if self._major < _FIRST_WITH_SUBSCRIBERS:
            return False
        return self._session.execute(_MAY_SUBSCRIBE).fetchone() == (True,)

    def wrapper(self, name: bytes) -> bool:
        """Return whether the role may create servers of a foreign data wrapper.

        One that is not there is still to be created by the role, or is the subject of a trial.
        """
        return bool(self._wrappers().get(name, (True,))[0])

    def language(self, name: bytes) -> bool:
        """Return whether the role may create functions in a language, or will."""
        return bool(self._languages().get(name, (True,))[0])

    def type(self, name: bytes) -> bool:
        """Return whether a type is there and belongs to the role; ``name`` is as in a dump."""
        return bool(self._types().get(name, (False,))[0])

    def table_of_extension(self, name: bytes) -> bool:
        """Return whether an extension that is there, or was tried, has a table of this name."""
        return name in self._rows(_TABLES_OF_EXTENSIONS) or self._hope()

    def may_fill(self, schema: bytes, name: bytes) -> bool:
        """Return whether the role may load rows into a table of an extension that is there."""
        if self._new:
            return True
        found = self._session.execute(_TABLES_OF_EXTENSIONS).fetchall()
        return (name, schema, False) not in found

    def _rows(self, question: str) -> Mapping[bytes, tuple[Any, ...]]:
        """Return the rows by their first column."""
        rows = self._session.execute(question.encode()).fetchall()
        return {name: tuple(rest) for name, *rest in rows}

    def _decided(self, statement: str) -> bool:
        answer = self._tried(statement) if self._can_try else None
        return self._hope() if answer is None else answer

    def _hope(self) -> bool:
        self.guessed |= self._hopeful
        return self._hopeful

    def _tried(self, statement: str | bytes) -> bool | None:
        """Return whether the server allows a statement; None if that is not the question."""
        try:
            with self._session.transaction():
                text = statement.encode() if isinstance(statement, str) else statement
                self._session.execute(text)
        except psycopg.Error as error:
            if error.sqlstate is None:  # the session is lost
                raise
            return False if error.sqlstate in _REFUSED else None
        return True


@contextlib.contextmanager
def asked(server: Server, *, new: bool, hopeful: bool = False) -> Iterator[Rights | None]:
    """Provide the answers for the length of the block; None for a superuser, who may do all.

    Everything is rolled back. Raises TargetLostError.
    """
    with target.connected(server, "SQL_ASCII") as session:  # names are bytes
        if session.execute(_SUPERUSER).fetchone() == (True,):
            yield None
            return
        with session.transaction(force_rollback=True):
            yield Rights(session, server.major, new=new, hopeful=hopeful)
