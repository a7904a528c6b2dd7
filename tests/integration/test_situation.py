"""What stands between pgstash and the server, and what the server is."""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pgstash.check import database as checks
from pgstash.check.finding import Finding
from pgstash.postgres.dump import failure_cause
from pgstash.postgres.preflight import topology
from pgstash.postgres.server import login
from pgstash.postgres.server.connection import Connection
from support.postgres import Cluster, Database, MakeDatabase
from support.proxy import TcpProxy


def look(uri: str) -> dict[str, Finding]:
    plan = checks.Plan(uri, {}, time.time)
    return {finding.topic: finding for finding in checks.look(plan)}


@contextlib.contextmanager
def pooler(port: int) -> Iterator[int]:
    """Forward to a server, and name a process of its own at the login, as PgBouncer does."""
    listener = socket.create_server(("127.0.0.1", 0))
    ends: list[socket.socket] = [listener]

    def forward(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def answer(server: socket.socket, client: socket.socket) -> None:
        """Pass whole messages on, up to the one that names the process."""
        stream = server.makefile("rb")
        with contextlib.suppress(OSError, struct.error):
            while True:
                kind = stream.read(1)
                if kind == b"N":  # the answer to a request for encryption has no length
                    client.sendall(kind)
                    continue
                (length,) = struct.unpack("!i", stream.read(4))
                body = stream.read(length - 4)
                if kind == b"K":
                    body = struct.pack("!i", 1_999_999_999) + body[4:]
                client.sendall(kind + struct.pack("!i", length) + body)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                ends.extend((client, server))
                threading.Thread(target=forward, args=(client, server), daemon=True).start()
                threading.Thread(target=answer, args=(server, client), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def through(database: Database, port: int) -> str:
    return database.uri.replace(f":{database.cluster.port}/", f":{port}/")


def test_a_pooler_is_told_from_what_only_forwards(make_database: MakeDatabase) -> None:
    database = make_database()
    with pooler(database.cluster.port) as port:
        finding = look(through(database, port))["pooler"]
    assert (finding.state, "DATABASE_URL" in finding.remedy) == ("warning", True)
    with TcpProxy(database.cluster.port) as proxy:
        assert look(through(database, proxy.port))["pooler"].state == "ok"


@pytest.mark.newest_first
def test_a_standby_and_its_settings(major: int) -> None:
    settings = {"wal_level": "replica", "hot_standby": "on"}
    with Cluster(major, settings=settings) as cluster:
        cluster.maintenance.run_sql(
            "CREATE UNLOGGED TABLE fleeting (a int); CREATE TABLE kept (a int)"
        )
        assert look(cluster.maintenance.uri)["standby"].found == "none: this is a primary"
        identity = login.identify(cluster.maintenance.uri, 10)
        cluster.stop(signal.SIGINT)
        (cluster.folder / "data" / "standby.signal").touch()
        cluster.start()
        assert login.identify(cluster.maintenance.uri, 10) == identity
        found = look(cluster.maintenance.uri)
        assert found["standby"].state == "warning"
        assert "max_standby_streaming_delay = 30s" in found["standby"].found
        assert "hot_standby_feedback = off" in found["standby"].found
        assert found["unlogged tables"].state == "warning"
        tool = failure_cause.Tool("pg_dump", login.inspect(cluster.maintenance.uri))
        said = ["pg_dump: detail: Command was: COPY public.kept (a) TO stdout;"]
        assert "A standby cancels long queries" in tool.failure(1, said).hint
        cluster.stop(signal.SIGINT)
        cluster.settings = settings | {"hot_standby_feedback": "on"}
        cluster.start()
        found = look(cluster.maintenance.uri)
        assert found["standby"].state == "ok"
        assert "hot_standby_feedback = on" in found["standby"].found


@pytest.mark.parametrize(
    ("host", "address", "local"),
    [
        ("/run/postgresql", None, True),
        ("@abstract", None, True),
        ("localhost", "::1", True),
        ("db", "127.0.0.1", True),
        ("db.example.com", "192.0.2.1", False),
        ("localhost", "192.0.2.1", False),
        ("db.example.com", None, False),
    ],
)
def test_what_stays_on_this_machine(host: str, address: str | None, *, local: bool) -> None:
    parameters = {"host": host} | ({"hostaddr": address} if address else {})
    assert topology.is_local(Connection(parameters, {})) is local


@pytest.mark.parametrize(
    ("mode", "encrypted", "state", "words"),
    [
        ("prefer", False, "warning", "off"),
        ("disable", False, "warning", "off"),
        ("prefer", True, "warning", "permits a connection without it"),
        ("require", True, "ok", "on"),
        ("verify-full", True, "ok", "on"),
    ],
)
def test_tls_to_another_machine(
    mode: str, *, encrypted: bool, state: str, words: str, make_database: MakeDatabase
) -> None:
    server = login.inspect(make_database().uri)
    found = replace(topology.check(server), encrypted=encrypted)
    parameters = {"host": "db.example.com", "sslmode": mode}
    far = replace(server, connection=Connection(parameters, {}))
    finding = checks._tls(far, found)  # noqa: SLF001 - no other machine is at hand
    assert finding.state == state
    assert words in finding.found
