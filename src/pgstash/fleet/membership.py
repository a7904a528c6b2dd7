"""Which workers live, and which of them leads, according to the queue."""

from __future__ import annotations

from datetime import datetime

from pgstash.fleet.connector import Link, at_once

_LEADER = 0x7067_7374_6173_0002
_NAME = "pgstash worker "


class Membership:
    """A session with the queue. Methods raise as those of Queue do."""

    def __init__(self, link: Link) -> None:
        """Use a session."""
        self._link = link

    @property
    def is_open(self) -> bool:
        """Whether no error has closed the session."""
        return self._link.is_open

    def close(self) -> None:
        """Close the session."""
        self._link.close()

    def now(self) -> datetime:
        """Return the time of the server's clock, which all workers share."""
        with self._link.translated():
            [row] = self._link.rows("SELECT clock_timestamp() AS now")
        found: datetime = row["now"]
        return found

    def leads(self) -> bool:
        """Return whether this session is the one that plans, until it ends; one at a time is."""
        with self._link.translated():
            [row] = self._link.rows(
                "SELECT pg_try_advisory_lock(%(lock)s) AS is_ours", lock=_LEADER
            )
        return bool(row["is_ours"])

    def belongs_to(self, worker: int) -> None:
        """Let the session have the name of its worker, for :meth:`depose`."""
        with self._link.translated():
            self._link.rows(
                "SELECT set_config('application_name', %(name)s, false)", name=f"{_NAME}{worker}"
            )

    def depose(self, seconds: float) -> bool:
        """End the session that leads if its worker gave no sign of life for ``seconds``.

        The lock of a process that was stopped, or whose machine sleeps, would stay. Return whether
        there was one.
        """
        query = (
            "SELECT pg_terminate_backend(a.pid) AS done FROM pg_locks AS l JOIN pg_stat_activity "
            "AS a ON a.pid = l.pid LEFT JOIN procrastinate_workers AS w ON a.application_name = "
            "%(name)s || w.id WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 "
            "AND (l.classid::bigint << 32) + l.objid::bigint = %(lock)s AND l.database = (SELECT "
            "oid FROM pg_database WHERE datname = current_database()) AND a.backend_start < now() "
            "- make_interval(secs => %(seconds)s) AND (w.id IS NULL OR w.last_heartbeat < now() - "
            "make_interval(secs => %(seconds)s))"
        )
        with self._link.translated():
            rows = self._link.rows(query, name=_NAME, lock=_LEADER, seconds=seconds)
        return any(row["done"] for row in rows)

    def register(self) -> int:
        """Begin to live as a worker; return its number."""
        with self._link.translated():
            return at_once(self._link.manager.register_worker())

    def beat(self, worker: int) -> bool:
        """Give a sign of life; return whether the worker still counts as alive."""
        query = (
            "UPDATE procrastinate_workers SET last_heartbeat = now() WHERE id = %(id)s RETURNING id"
        )
        with self._link.translated():
            return bool(self._link.rows(query, id=worker))

    def leave(self, worker: int) -> None:
        """End the life of a worker that runs nothing any more."""
        with self._link.translated():
            at_once(self._link.manager.unregister_worker(worker))
