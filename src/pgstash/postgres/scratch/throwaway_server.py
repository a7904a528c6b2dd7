"""A throwaway PostgreSQL server on a private socket: started for one drill, then removed.

Its data does not have to survive anything, so nothing waits for the disk.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import conninfo, pq

from pgstash.errors import ScratchError
from pgstash.events import Emit, Notice
from pgstash.postgres.scratch import throwaway_folder
from pgstash.postgres.tools import installed
from pgstash.postgres.tools.environment import child_environment
from pgstash.processes.child import Group

_LIBRARIES = "shared_preload_libraries"
_PORT = 5432
_SUPERUSER = "postgres"

# The users to run a server as if pgstash is root: PostgreSQL refuses to run as root.
_SERVER_USERS = ("postgres", "nobody")

_SECONDS_TO_START = 60.0
_SECONDS_TO_STOP = 2.0
_SECONDS_BETWEEN_CHECKS = 0.05
_LINES_SHOWN = 5

# A restored database has no dead rows, and no more WAL than set below.
_ROOM_FACTOR = 1.2
_ROOM_IN_ADDITION = 512 * 1024 * 1024

_SETTINGS = {
    "listen_addresses": "",
    "port": str(_PORT),
    "unix_socket_permissions": "0700",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    "autovacuum": "off",
    "maintenance_work_mem": "128MB",
    "dynamic_shared_memory_type": "mmap",  # /dev/shm of a container may be tiny
    "log_min_error_statement": "panic",
    "max_prepared_transactions": "0",
    "max_connections": "100",
}


# The environment may set these for other servers; this one trusts every login on its socket.
_LOGIN = {
    "channel_binding": "disable",
    "gssencmode": "disable",
    "require_auth": "",
    "requirepeer": "",
}


@dataclass(frozen=True, slots=True)
class Throwaway:
    """A running server: its ``url``, and its ``version``, for example 16.15."""

    url: str
    version: str


def room_for(database_bytes: int) -> int:
    """Return the bytes of disk that a restored database of this size needs at most."""
    return round(database_bytes * _ROOM_FACTOR) + _ROOM_IN_ADDITION


@contextlib.contextmanager
def running(
    major: int,
    database_bytes: int,
    settings: Mapping[str, str],
    environment: Mapping[str, str],
    emit: Emit,
) -> Iterator[Throwaway]:
    """Run a server of this major, or of the next newer one installed, for the length of the block.

    ``database_bytes`` is the size of the database to restore, ``settings`` are those in addition to
    the settings of every drill; libraries that cannot be loaded are left out. Leftovers of drills
    that were killed are removed first. Raises ScratchError if there are no programs, there is no
    room, or the server does not start.
    """
    programs = installed.find_server(major, environment.get("PATH", ""), environment)
    parent = Path(tempfile.gettempdir())
    throwaway_folder.sweep(parent, emit)
    needed, free = room_for(database_bytes), shutil.disk_usage(parent).free
    if free < needed:
        raise ScratchError(
            f"{parent} has {free / 1e9:.1f} GB free; the drill needs about {needed / 1e9:.1f} GB",
            hint="Free some space, set TMPDIR to a larger directory, or set VERIFY_DATABASE_URL.",
        )
    user = _server_user()
    folder = Path(tempfile.mkdtemp(prefix=throwaway_folder.PREFIX, dir=parent))
    with contextlib.ExitStack() as stack:
        # Last in, first out: the lock is held until the folder is gone.
        stack.enter_context(throwaway_folder.locked(folder))
        stack.callback(throwaway_folder.remove, folder, emit)
        if user:
            os.chown(folder, user.pw_uid, user.pw_gid)
        server = _Server(programs, folder, user, child_environment(environment))
        server.initialise()
        stack.callback(server.stop)
        try:
            server.start(settings)
        except ScratchError:
            if _LIBRARIES not in settings:
                raise
            # If something needs them, the restore fails with an error that names it.
            server.stop()
            server.start({name: settings[name] for name in settings if name != _LIBRARIES})
        emit(Notice(f"A throwaway PostgreSQL {programs.version} runs in {folder}"))
        yield Throwaway(server.url, programs.version)


class _Server:
    """One data directory and its server."""

    def __init__(
        self,
        programs: installed.ClientTools,
        folder: Path,
        user: pwd.struct_passwd | None,
        environment: Mapping[str, str],
    ) -> None:
        self._programs = programs
        self._folder = folder
        self._data = folder / "data"
        self._log = folder / "log"
        self._user = user
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        # Every parameter that the environment might set for another server is set here.
        known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
        return conninfo.make_conninfo(
            host=str(self._folder),
            hostaddr="",
            port=_PORT,
            user=_SUPERUSER,
            password="",
            dbname="postgres",
            options="",
            sslmode="disable",
            target_session_attrs="any",
            **{name: value for name, value in _LOGIN.items() if name in known},
        )

    def initialise(self) -> None:
        arguments: list[str | Path] = [
            *("--pgdata", self._data),
            *("--username", _SUPERUSER),
            *("--auth", "trust"),
            *("--encoding", "UTF8"),
            *("--locale", "C"),
            "--no-sync",
        ]
        process = self._run(self._programs.folder / "initdb", arguments)
        group = Group(process)
        try:
            ended = group.exits(_SECONDS_TO_START)
        finally:
            group.end()
        if not ended or process.returncode:
            raise ScratchError(f"initdb failed: {self._last_lines()}")

    def start(self, more: Mapping[str, str]) -> None:
        settings = {**_SETTINGS, **more, "unix_socket_directories": str(self._folder)}
        options = [f"--{name}={value}" for name, value in settings.items()]
        process = self._run(self._programs.folder / "postgres", ["-D", self._data, *options])
        self._process = process
        give_up = time.monotonic() + _SECONDS_TO_START
        while refusal := self._refusal():
            if process.poll() is not None:
                raise ScratchError(f"the throwaway server does not start: {self._last_lines()}")
            if time.monotonic() > give_up:
                raise ScratchError(
                    f"logging in to the throwaway server failed: {refusal}\n{self._last_lines()}"
                )
            time.sleep(_SECONDS_BETWEEN_CHECKS)

    def stop(self) -> None:
        """Stop it at once, without a checkpoint: its data is not needed any more."""
        if self._process is None:
            return
        group = Group(self._process)
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGQUIT)
        group.exits(_SECONDS_TO_STOP)
        group.end(_SECONDS_TO_STOP)

    def _refusal(self) -> str:
        """Return why a login fails; empty if it succeeds."""
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError as error:
            return " ".join(str(error).split())
        return ""

    def _run(self, program: Path, arguments: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        user, group = (self._user.pw_uid, self._user.pw_gid) if self._user else (None, None)
        with self._log.open("ab") as log:
            try:
                return subprocess.Popen(  # noqa: S603 - a path found by tools, no shell
                    [program, *arguments],
                    cwd=self._folder,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    user=user,
                    group=group,
                    extra_groups=[] if self._user else None,
                    start_new_session=True,
                )
            except OSError as error:
                raise ScratchError(
                    f"{program} cannot be started: {error}",
                    hint="Check that it may be executed"
                    + (f" by the user {self._user.pw_name}." if self._user else "."),
                ) from error

    def _last_lines(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return "\n".join(lines[-_LINES_SHOWN:]) or "it logged nothing"


def _server_user() -> pwd.struct_passwd | None:
    """Return the user to run the server as; None for the user that runs pgstash."""
    if os.geteuid() != 0:
        return None
    for name in _SERVER_USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ScratchError(
        "PostgreSQL does not run as root, and there is no user postgres and no user nobody",
        hint="Run pgstash as another user, or set VERIFY_DATABASE_URL.",
    )
