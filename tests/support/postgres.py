"""Real PostgreSQL servers for tests: throwaway clusters of any installed major.

``scripts/setup`` puts the programs into ``.cache/postgresql/<major>``. A cluster
listens on 127.0.0.1 and on a socket of its own, and dies with the process that
started it. Its data is not meant to survive anything: ``fsync`` is off.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self
from urllib.parse import quote

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from support import databases

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REPOSITORY = Path(__file__).resolve().parents[2]
# A superuser whose name is not that of an operating system user: nothing may depend on it.
SUPERUSER = "admin"
# With special characters, so that whoever pastes it into a URI unescaped is found out.
PASSWORD = "p@ss:w/rd %'\\"
# Servers up to 17 warn when a publication is created: the clusters have wal_level = minimal.
_NO_LOGICAL_CHANGES = "is insufficient to publish logical changes"
_FIRST_WITH_STRATEGIES = 15
START_TIMEOUT = 60.0  # seconds; a start takes about one
ROOM_IN_MEMORY = 12 * 1024**3  # bytes
SYSTEM_PATH = ("/usr/local/bin", "/usr/bin", "/bin")


def test_majors() -> list[int]:
    """Return the majors to test with, oldest first, as ``scripts/test`` chose them."""
    return sorted(int(major) for major in os.environ.get("PGSTASH_TEST_MAJORS", "14 18").split())


def beside_publications(stderr: str) -> list[str]:
    """Return the lines without the server's warnings that publications will not work here."""
    return [line for line in stderr.splitlines() if not line.endswith(_NO_LOGICAL_CHANGES)]


def installation(major: int) -> Path:
    """Return the folder that holds ``bin``, ``lib`` and ``share`` of a major."""
    folder = (REPOSITORY / ".cache" / "postgresql" / str(major)).resolve()
    if not (folder / "bin" / "postgres").exists():
        raise RuntimeError(f'no PostgreSQL {major}: run scripts/setup --postgresql "{major}"')
    return folder


def bin_dir(major: int) -> Path:
    """Return the folder of a major's programs: psql, pg_dump and the others."""
    return installation(major) / "bin"


def clean_environment(*bin_dirs: Path) -> dict[str, str]:
    """Return an environment that holds nothing of the developer's, with these tools on PATH."""
    return {
        "PATH": os.pathsep.join([*map(str, bin_dirs), *SYSTEM_PATH]),
        "HOME": "/nonexistent",  # no ~/.pgpass, ~/.psqlrc, ~/.aws
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }


def server_user() -> pwd.struct_passwd | None:
    """Return who runs the server if we may not: PostgreSQL refuses to run as root."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def as_server(*command: str | Path) -> list[str]:
    """Return the command as the server's user, killed when the thread that started it ends."""
    prefix = ["setpriv", "--pdeathsig", "QUIT"]
    if user := server_user():
        prefix += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return [*prefix, *map(str, command)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@functools.cache
def folder_of_servers() -> Path:
    """Return a folder with a short path, as sockets need, that the server's user can get to.

    It is in memory if there is room for all servers: the many small files of a new database cost
    six times as much CPU time on a disk.
    """
    disk, memory = Path("/tmp"), Path("/dev/shm")  # noqa: S108 - mkdtemp's names are random
    if not memory.is_dir() or _available_memory() < ROOM_IN_MEMORY:
        return disk
    return memory if shutil.disk_usage(memory).free >= ROOM_IN_MEMORY else disk


@contextlib.contextmanager
def folder_for_throwaway_servers() -> Iterator[Path]:
    """Make a folder for ``TMPDIR``: with a short path, and the server's user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="drills-", dir=folder_of_servers()))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _available_memory() -> int:
    """Return how many bytes processes can still have, by /proc/meminfo; proc(5)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    [kibibytes] = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kibibytes) * 1024


@dataclass(frozen=True)
class Database:
    """One database of a cluster, and the ways to reach it."""

    cluster: Cluster
    name: str

    @property
    def uri(self) -> str:
        """The address as people write it into ``DATABASE_URL``, whatever the name holds."""
        login = quote(self.cluster.user, safe="")
        if self.cluster.password:
            login += ":" + quote(self.cluster.password, safe="")
        return (
            f"postgresql://{login}@{self.cluster.host}:{self.cluster.port}"
            f"/{quote(self.name, safe='')}"
        )

    @property
    def conninfo(self) -> str:
        """The address as libpq's ``key=value`` pairs."""
        return make_conninfo(
            host=self.cluster.host,
            port=self.cluster.port,
            user=self.cluster.user,
            password=self.cluster.password or None,
            dbname=self.name,
        )

    @property
    def bin_dir(self) -> Path:
        """The client programs of the server's own major."""
        return self.cluster.bin_dir

    def run_sql(self, script: str | bytes | Path) -> str:
        """Run a script, text or a file, through psql; return what it printed.

        Raises RuntimeError at the script's first error.
        """
        if isinstance(script, Path):
            script = script.read_bytes()
        elif isinstance(script, str):
            script = script.encode()
        command = [
            str(self.bin_dir / "psql"),
            "-XqAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            self.conninfo,
        ]
        done = subprocess.run(
            command, input=script, env=clean_environment(), capture_output=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"psql on {self.name!r}: {done.stderr.decode(errors='replace')}")
        return done.stdout.decode(errors="replace")

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """Connect, committing each statement by itself."""
        return psycopg.connect(self.conninfo, autocommit=True)

    def plain_dump(self, *options: str, tools: Path | None = None) -> bytes:
        """Return what pg_dump writes: the yardstick for an archive."""
        command = [str((tools or self.bin_dir) / "pg_dump"), *options, "-d", self.conninfo]
        return subprocess.run(
            command, env=clean_environment(), stdout=subprocess.PIPE, check=True
        ).stdout

    def drop(self) -> None:
        """Drop the database, with whoever is connected."""
        self.cluster.drop_database(self.name)


@dataclass
class Cluster:
    """A server of one major with a data directory of its own, running inside ``with``.

    ``auth`` is ``trust`` or ``scram-sha-256`` (then a password is wanted), ``settings``
    are put on the server's command line. ``programs`` is the folder of the server's programs, where
    that is not the one of ``scripts/setup``.
    """

    major: int
    auth: str = "trust"
    settings: Mapping[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    user: str = SUPERUSER
    port: int = 0
    programs: Path | None = None
    _folder: Path | None = None
    _process: subprocess.Popen[bytes] | None = None
    _templates: set[str] = field(default_factory=set)

    @property
    def bin_dir(self) -> Path:
        """The folder of the server's programs, and the clients of its major."""
        return self.programs or bin_dir(self.major)

    @property
    def password(self) -> str:
        """The superuser's password; empty where none is wanted."""
        return "" if self.auth == "trust" else PASSWORD

    @property
    def folder(self) -> Path:
        """The folder that holds data, socket and log."""
        if self._folder is None:
            raise RuntimeError("the cluster is not set up")
        return self._folder

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        return (self.folder / "log").read_text(errors="replace")

    def __enter__(self) -> Self:
        self._folder = Path(
            tempfile.mkdtemp(prefix=f"pgstash-postgresql-{self.major}-", dir=folder_of_servers())
        )
        try:
            if user := server_user():
                os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._initialise()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        # dblink and postgres_fdw find their libpq by this.
        if self.programs:
            return clean_environment()
        return clean_environment() | {"LD_LIBRARY_PATH": str(installation(self.major) / "lib")}

    def _initialise(self) -> None:
        password_file = self.folder / "password"
        password_file.write_text(PASSWORD + "\n")
        password_file.chmod(0o644)
        command = as_server(
            self.bin_dir / "initdb",
            *("--pgdata", self.folder / "data"),
            *("--username", self.user),
            *("--pwfile", password_file),
            *("--auth", self.auth),
            *("--encoding", "UTF8"),
            *("--locale", "C"),
            "--no-sync",
        )
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"initdb {self.major}: {done.stdout.decode(errors='replace')}")

    def start(self) -> None:
        """Start the server, on the port that it had before if there was one."""
        self.port = self.port or free_port()
        settings = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "max_connections": "50",
            "shared_buffers": "32MB",
            "dynamic_shared_memory_type": "mmap",  # /dev/shm of a container may be tiny
            "max_wal_size": "256MB",
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "off",
            "wal_level": "minimal",
            "max_wal_senders": "0",
            **self.settings,
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                as_server(self.bin_dir / "postgres", "-D", self.folder / "data", *options),
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the tests; they stop the server
            )
        self._wait_until_ready(self._process)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self.maintenance.connect().close()
            except psycopg.OperationalError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"PostgreSQL {self.major} does not start:\n{self.log}"
                    ) from None
                time.sleep(0.05)
            else:
                return

    def stop(self, signum: int = signal.SIGQUIT) -> None:
        """Stop the server: at once (SIGQUIT), or SIGINT for an orderly shutdown."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signum)
        self._process.wait()
        self._process = None

    @property
    def maintenance(self) -> Database:
        """The database ``postgres``, where other databases are made and dropped."""
        return Database(self, "postgres")

    def create_database(
        self, name: str, *, template: str = "template0", encoding: str = "UTF8"
    ) -> Database:
        """Create a database, empty unless another template is named."""
        # Half the CPU time of the default, which copies block by block through the WAL.
        strategy = " STRATEGY file_copy" if self.major >= _FIRST_WITH_STRATEGIES else ""
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {} ENCODING {}" + strategy)
        with self.maintenance.connect() as connection:
            connection.execute(
                create.format(sql.Identifier(name), sql.Identifier(template), sql.Literal(encoding))
            )
        return Database(self, name)

    def drop_database(self, name: str) -> None:
        """Drop a database, with whoever is connected, if it exists."""
        with self.maintenance.connect() as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )

    def load_sample(self, sample: str, name: str | None = None) -> Database:
        """Create a database with the contents of ``support/databases/<sample>.sql``.

        The script runs once per cluster, into a template that is cloned from then on.
        """
        template = f"template_{sample}"
        encoding = databases.encoding(sample)
        if template not in self._templates:
            database = self.create_database(template, encoding=encoding)
            database.run_sql(databases.path(sample))
            self._templates.add(template)
        name = name or f"{sample}_{uuid.uuid4().hex[:8]}"
        return self.create_database(name, template=template, encoding=encoding)


class Clusters:
    """The clusters of a test session: started when first asked for, stopped at its end."""

    def __init__(self) -> None:
        self._running = contextlib.ExitStack()
        self.get = functools.cache(self._start)

    def _start(self, major: int, auth: str = "trust") -> Cluster:
        return self._running.enter_context(Cluster(major, auth=auth))

    def close(self) -> None:
        """Stop them all."""
        self._running.close()


class MakeDatabase(Protocol):
    """The type of the fixture ``make_database``."""

    def __call__(self, sample: str = "empty", on: Cluster | None = None) -> Database:
        """Create a database with a sample's contents, by default on the newest major."""


@contextlib.contextmanager
def temporary_database(cluster: Cluster, sample: str = "empty") -> Iterator[Database]:
    """Provide a database with a sample's contents, and drop it afterwards."""
    database = cluster.load_sample(sample)
    try:
        yield database
    finally:
        database.drop()
