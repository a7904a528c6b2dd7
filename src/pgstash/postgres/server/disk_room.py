"""How much room the disk of a server has, if it runs on this machine."""

from __future__ import annotations

import contextlib
import os
import socket
import sys

from pgstash.errors import DatabaseError
from pgstash.postgres.server import query
from pgstash.postgres.server.connection import Server

# Without that role there is no row. A setting would raise an error.
_WHERE = """
    SELECT setting FROM pg_catalog.pg_settings WHERE name = 'data_directory'
"""


def free(server: Server) -> int | None:
    """Return the free bytes of the file system with the server's data directory.

    A server cannot be asked for that. So it is None unless the server is reached by a Unix socket,
    runs among the processes that this one sees, and discloses its data directory. Tablespaces
    are not considered.
    """
    by_socket = server.connection.parameters["host"].startswith(("/", "@"))
    if server.pooled or not by_socket:
        return None
    with (
        contextlib.suppress(DatabaseError, OSError, UnicodeError),
        query.opened(server, "its data directory") as session,
    ):
        if _of_this_machine(session.fileno()):
            for (directory,) in session.execute(_WHERE).fetchall():
                found = os.statvfs(directory)
                return found.f_bavail * found.f_frsize
    return None


def _of_this_machine(descriptor: int) -> bool:
    """Return whether the process at the other end of a Unix socket has a number here.

    It has none if it runs in another container: the same path is another directory there. Source:
    SO_PEERCRED in unix(7), pid_namespaces(7).
    """
    peer = getattr(socket, "SO_PEERCRED", None)
    if peer is None:
        return False
    with socket.socket(fileno=os.dup(descriptor)) as ours:
        return int.from_bytes(ours.getsockopt(socket.SOL_SOCKET, peer, 4), sys.byteorder) > 0
