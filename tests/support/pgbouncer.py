"""PgBouncer in front of a server, and an application at work through it.

The program is Debian's package ``pgbouncer``. It runs as nobody, with its files in a folder of its
own, and dies with the process that started it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import quote

import psycopg

from support.postgres import (
    START_TIMEOUT,
    Cluster,
    Database,
    as_server,
    clean_environment,
    free_port,
    server_user,
)

PROGRAM = Path("/usr/sbin/pgbouncer")

# Set in each session as the client that gets it has them.
_OF_THE_POOLER = (
    "application_name",
    "client_encoding",
    "DateStyle",
    "standard_conforming_strings",
    "TimeZone",
)


@dataclass
class PgBouncer:
    """A pooler, running inside ``with``; it lets in whoever the cluster knows, without a password.

    ``mode`` is its pool_mode, ``size`` the server sessions of each user and database, ``settings``
    what else is in its configuration; ``users`` are those who may log in besides the superuser.
    ``aliases`` are its own names for databases.
    """

    cluster: Cluster
    mode: str = "transaction"
    size: int = 20
    users: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    _folder: Path | None = None
    _process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        """The folder that holds configuration, log and socket."""
        if self._folder is None:
            raise RuntimeError("the pooler is not set up")
        return self._folder

    @property
    def log(self) -> str:
        """What the pooler has logged so far."""
        return (self.folder / "log").read_text(errors="replace")

    def uri(self, database: Database, user: str = "", host: str = "127.0.0.1") -> str:
        """The address of a database through the pooler."""
        login, name = quote(user or self.cluster.user), quote(database.name, safe="")
        where = host if host.startswith("[") else quote(host, safe="")
        return f"postgresql://{login}@{where}:{self.port}/{name}"

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="pgstash-pgbouncer-", dir="/tmp"))
        try:
            self.port = free_port()
            self._configure()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def reconfigure(self, **changed: str) -> None:
        """Change settings while clients are connected."""
        self.settings = {**self.settings, **changed}
        self._configure()
        self.command("RELOAD")

    def command(self, command: str) -> None:
        """Give the pooler a command, as its administrator."""
        with psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=self.cluster.user,
            dbname="pgbouncer",
            autocommit=True,
            cursor_factory=psycopg.ClientCursor,
        ) as admin:
            admin.execute(command)

    def settings_left(self, database: Database) -> set[tuple[str, str]]:
        """Return what sessions of a transaction pool have been left with, all of them at once."""
        left: set[tuple[str, str]] = set()
        with contextlib.ExitStack() as stack:
            for _ in range(self.size):
                client = stack.enter_context(psycopg.connect(self.uri(database)))
                left |= set(
                    client.execute(
                        "SELECT name, setting FROM pg_settings"
                        " WHERE source = 'session' AND name <> ALL (%s)",
                        [list(_OF_THE_POOLER)],
                    ).fetchall()
                )
        return left

    def _configure(self) -> None:
        settings = {
            "listen_addr": "127.0.0.1,::1",
            "listen_port": str(self.port),
            "unix_socket_dir": str(self.folder),
            "auth_type": "trust",
            "auth_file": str(self.folder / "users"),
            "admin_users": self.cluster.user,
            "pool_mode": self.mode,
            "default_pool_size": str(self.size),
            "max_client_conn": "200",
            **self.settings,
        }
        at = f"host={self.cluster.host} port={self.cluster.port}"
        lines = [
            "[databases]",
            *(f"{name} = {at} dbname={real}" for name, real in self.aliases.items()),
            f"* = {at}",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        (self.folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        users = [self.cluster.user, *self.users]
        (self.folder / "users").write_text("".join(f'"{user}" ""\n' for user in users))

    def _start(self) -> None:
        if user := server_user():
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                as_server(PROGRAM, self.folder / "pgbouncer.ini"),
                cwd=self.folder,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                for address in ("127.0.0.1", "::1"):
                    socket.create_connection((address, self.port)).close()
                with socket.socket(socket.AF_UNIX) as probe:  # it listens there last
                    probe.connect(str(self.folder / f".s.PGSQL.{self.port}"))
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PgBouncer does not start:\n{self.log}") from None
                time.sleep(0.05)
            else:
                return


@dataclass
class Application:
    """Clients at work on the table ``items``, whose name they do not qualify."""

    uri: str
    clients: int = 12
    statements: int = 0
    errors: list[str] = field(default_factory=list)
    _ending: threading.Event = field(default_factory=threading.Event)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def wait_for(self, statements: int) -> None:
        """Return when so many more statements have run, or one has failed."""
        wanted = self.statements + statements
        deadline = time.monotonic() + START_TIMEOUT
        while self.statements < wanted and not self.errors:
            if time.monotonic() > deadline:
                raise RuntimeError("the application stands still")
            time.sleep(0.01)

    def _work(self, number: int) -> None:
        """Run single statements, and transactions of two, with a short rest after each."""
        with contextlib.suppress(Exception):
            while not self._ending.is_set():
                try:
                    with psycopg.connect(self.uri, autocommit=True, prepare_threshold=None) as own:
                        self._loop(own, number)
                except psycopg.Error as error:
                    with self._counting:
                        self.errors.append(str(error))
                    self._ending.wait(0.05)

    def _loop(self, own: psycopg.Connection[tuple[object, ...]], number: int) -> None:
        while not self._ending.is_set():
            if number % 3 == 0:
                with own.transaction():
                    own.execute("SELECT count(*) FROM items WHERE id < 10")
                    own.execute("UPDATE counters SET n = n + 1 WHERE id = %s", [number])
            else:
                own.execute("SELECT count(*) FROM items WHERE id < 10")
            with self._counting:
                self.statements += 1
            self._ending.wait(0.01)


@contextlib.contextmanager
def at_work(pooler: PgBouncer, database: Database, clients: int = 12) -> Iterator[Application]:
    """Let an application work through the pooler until the end of the block."""
    with database.connect() as session:
        session.execute(
            "CREATE TABLE IF NOT EXISTS items AS SELECT n AS id FROM generate_series(1, 1000) n"
        )
        session.execute(
            "CREATE TABLE IF NOT EXISTS counters AS"
            " SELECT n AS id, 0 AS n FROM generate_series(0, 100) n"
        )
    application = Application(pooler.uri(database), clients)
    threads = [
        threading.Thread(target=application._work, args=(number,), daemon=True)  # noqa: SLF001
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        application.wait_for(clients)  # each has got its first answer
        yield application
    finally:
        application._ending.set()  # noqa: SLF001
        for thread in threads:
            thread.join(START_TIMEOUT)
