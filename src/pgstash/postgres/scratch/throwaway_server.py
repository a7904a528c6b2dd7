"""A throwaway PostgreSQL server on a private socket: started for one drill, then removed.

Its data is not meant to survive anything, so nothing waits for the disk. Whoever started it holds a
lock on a file of its folder; where nobody does, it was left by a process that was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
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

from pgstash.child import Group
from pgstash.errors import ScratchError
from pgstash.events import Emit, Notice, Warned
from pgstash.postgres import tools
from pgstash.postgres.process import child_environment

_PREFIX = "pgstash-drill-"
_LOCK = "lock"
_LIBRARIES = "shared_preload_libraries"
_PORT = 5432
_SUPERUSER = "postgres"

# Whoever runs a server that we may not run ourselves: PostgreSQL refuses to run as root.
_SERVER_USERS = ("postgres", "nobody")

_SECONDS_TO_START = 60.0
_SECONDS_TO_STOP = 2.0
_SECONDS_BETWEEN_LOOKS = 0.05
_SECONDS_TO_TAKE_THE_LOCK = 60.0
_LINES_TOLD = 5

# A restored database has no dead rows, and no more WAL than the setting below.
_ROOM_FACTOR = 1.2
_ROOM_BESIDE = 512 * 1024 * 1024

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


# What the environment may want of another server's login: this one trusts who gets to its socket.
_LOGIN = {
    "channel_binding": "disable",
    "gssencmode": "disable",
    "require_auth": "",
    "requirepeer": "",
}


@dataclass(frozen=True, slots=True)
class Throwaway:
    """A server that runs: ``url`` reaches it, ``version`` is 16.15."""

    url: str
    version: str


def room_for(database_bytes: int) -> int:
    """Return how many bytes of disk a restored database of this size needs, from above."""
    return round(database_bytes * _ROOM_FACTOR) + _ROOM_BESIDE


@contextlib.contextmanager
def running(
    major: int,
    database_bytes: int,
    settings: Mapping[str, str],
    environment: Mapping[str, str],
    emit: Emit,
) -> Iterator[Throwaway]:
    """Run a server of this major, or of the next newer one installed, for the length of the block.

    ``database_bytes`` is the size of what is to be restored, ``settings`` are made besides those of
    every drill; libraries that cannot be loaded are left out. What earlier ones left is removed
    first. Raises ScratchError where there are no programs, no room, or it does not start.
    """
    programs = tools.find_server(major, environment.get("PATH", ""), environment)
    parent = Path(tempfile.gettempdir())
    _sweep(parent, emit)
    needed, free = room_for(database_bytes), shutil.disk_usage(parent).free
    if free < needed:
        raise ScratchError(
            f"{parent} has {free / 1e9:.1f} GB free, and the drill needs about {needed / 1e9:.1f}",
            hint="Make room, let TMPDIR name a larger directory, or set VERIFY_DATABASE_URL.",
        )
    user = _server_user()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    with contextlib.ExitStack() as stack:
        # Last in, first out: the lock is held until the folder is gone.
        stack.enter_context(_locked(folder))
        stack.callback(_remove, folder, emit)
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
            # Whatever needs them says so.
            server.stop()
            server.start({name: settings[name] for name in settings if name != _LIBRARIES})
        emit(Notice(f"A throwaway PostgreSQL {programs.version} runs in {folder}"))
        yield Throwaway(server.url, programs.version)


class _Server:
    """One data directory and its server."""

    def __init__(
        self,
        programs: tools.ClientTools,
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
        # All that the environment might say of another server is said here.
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
            raise ScratchError(f"initdb could not set a server up: {self._last_words()}")

    def start(self, more: Mapping[str, str]) -> None:
        settings = {**_SETTINGS, **more, "unix_socket_directories": str(self._folder)}
        options = [f"--{name}={value}" for name, value in settings.items()]
        process = self._run(self._programs.folder / "postgres", ["-D", self._data, *options])
        self._process = process
        give_up = time.monotonic() + _SECONDS_TO_START
        while refusal := self._refusal():
            if process.poll() is not None:
                raise ScratchError(f"the throwaway server does not start: {self._last_words()}")
            if time.monotonic() > give_up:
                raise ScratchError(
                    f"the throwaway server does not let us in: {refusal}\n{self._last_words()}"
                )
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def stop(self) -> None:
        """Stop it at once: nothing of it is worth a checkpoint."""
        if self._process is None:
            return
        group = Group(self._process)
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGQUIT)
        group.exits(_SECONDS_TO_STOP)
        group.end(_SECONDS_TO_STOP)

    def _refusal(self) -> str:
        """Return why nobody can log in yet; empty where that can be done."""
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

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return "\n".join(lines[-_LINES_TOLD:]) or "and says nothing"


def _server_user() -> pwd.struct_passwd | None:
    """Return who is to run the server; None for whoever runs pgstash."""
    if os.geteuid() != 0:
        return None
    for name in _SERVER_USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ScratchError(
        "PostgreSQL does not run as root, and there is neither a user postgres nor nobody",
        hint="Run pgstash as another user, or set VERIFY_DATABASE_URL.",
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # Python's descriptors are not inherited: the lock ends with this very process.
    with (folder / _LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove(folder: Path, emit: Emit) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        emit(Warned(f"{folder}, which a drill left, cannot be removed: remove it yourself"))


def _sweep(parent: Path, emit: Emit) -> None:
    """Remove what drills left that were killed, their servers first."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, or removed just now
            lock = folder / _LOCK
            if not lock.exists():
                # Made just now, and not locked yet; or killed in that very moment.
                if time.time() - folder.stat().st_mtime > _SECONDS_TO_TAKE_THE_LOCK:
                    _remove(folder, emit)
                continue
            with lock.open("rb+") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                emit(Notice(f"Removing {folder}, which a drill left that was killed"))
                _kill(folder)
                _remove(folder, emit)


def _kill(folder: Path) -> None:
    """End the server of a data directory, if it is the one that its file names."""
    pid_file = folder / "data" / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().partition("\n")[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return
    if os.fsencode(folder / "data") not in command.split(b"\0"):
        return
    os.kill(pid, signal.SIGQUIT)
    give_up = time.monotonic() + _SECONDS_TO_STOP
    while Path(f"/proc/{pid}").exists() and time.monotonic() < give_up:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
