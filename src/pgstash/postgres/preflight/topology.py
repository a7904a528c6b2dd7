"""What kind of server it is and how it is reached: standby, TLS, its clock."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass

from pgstash.postgres.server import query
from pgstash.postgres.server.connection import Connection, Server

_QUERY = """
    SELECT pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()),
           pg_catalog.pg_is_in_recovery(),
           pg_catalog.current_setting('max_standby_streaming_delay'),
           pg_catalog.current_setting('hot_standby_feedback')::pg_catalog.bool,
           (SELECT pg_catalog.count(*) FROM pg_catalog.pg_class
            WHERE relkind = 'r' AND relpersistence = 'u')
"""


@dataclass(frozen=True, slots=True)
class Topology:
    """``clock_ahead`` is in seconds, ``unlogged_tables`` is a number.

    ``encrypted`` refers to pgstash's own connection. Whether a pooler encrypts its connection to
    the server is unknown.
    """

    clock_ahead: float
    standby: bool
    standby_delay: str
    standby_feedback: bool
    unlogged_tables: int
    encrypted: bool


def check(server: Server, clock: Callable[[], float] = time.time) -> Topology:
    """Ask the server what it is, and compare ``clock`` with its own. Raises DatabaseError."""
    with query.opened(server, "what kind of server it is") as asked:
        began = clock()
        row = asked.execute(_QUERY).fetchone()
        ended = clock()
        if row is None:
            raise AssertionError("a query without FROM has a row")
        epoch, standby, delay, feedback, unlogged = row
        return Topology(
            clock_ahead=epoch - (began + ended) / 2,
            standby=standby,
            standby_delay=query.text(delay, server),
            standby_feedback=feedback,
            unlogged_tables=unlogged,
            encrypted=bool(asked.pgconn.ssl_in_use),
        )


def is_local(connection: Connection) -> bool:
    """Return whether the connection stays on this machine."""
    host = connection.parameters["host"]
    try:
        return ipaddress.ip_address(connection.parameters.get("hostaddr") or host).is_loopback
    except ValueError:
        return host.startswith(("/", "@")) or host == "localhost"
